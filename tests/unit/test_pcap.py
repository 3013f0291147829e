"""A capture that lost packets, or never began, says nothing: it must not pass for a quiet one."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.patience import LabError
from tests.lab.pcap import packets, require_complete, wait_for_start


def test_a_half_written_packet_is_left_out() -> None:
    whole = b"\0" * 24 + struct.pack("<IIII", 1, 500_000, 3, 3) + b"abc" + struct.pack("<IIII", 2, 0, 2, 2) + b"de"
    assert list(packets(whole)) == [(1.5, b"abc"), (2.0, b"de")]
    for missing in (1, 2, 17):
        assert list(packets(whole[:-missing])) == [(1.5, b"abc")]
    assert list(packets(b"")) == []


@pytest.mark.parametrize("said", ["", "3 packets captured\n1 packets dropped by kernel\n"])
def test_a_capture_that_lost_packets_is_refused(tmp_path: Path, said: str) -> None:
    (tmp_path / "errors").write_text(said)
    with pytest.raises(LabError, match="not complete"):
        require_complete(tmp_path / "errors")
    (tmp_path / "errors").write_text("3 packets captured\n0 packets dropped by kernel\n")
    require_complete(tmp_path / "errors")


def test_a_capture_that_does_not_start_is_refused(tmp_path: Path) -> None:
    errors = tmp_path / "errors"
    errors.write_text("no such device\n")
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
        with pytest.raises(LabError, match="no such device"):
            wait_for_start(ended, errors)
    errors.write_text("listening on any\n")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as running:
        wait_for_start(running, errors)
        running.communicate(b"\n")
