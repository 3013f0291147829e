"""The files of tcpdump, and whether they are complete. Read as a whole: tests/lab/judge.py follows
its own while it grows."""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

from .patience import LabError, wait_until

HEADER, RECORD = 24, struct.Struct("<IIII")


def wait_for_start(tcpdump: subprocess.Popen[bytes], errors: Path) -> None:
    """From here on it misses nothing. Raises LabError."""

    def listening() -> bool:
        if tcpdump.poll() is not None:
            raise LabError(f"tcpdump does not start: {errors.read_text()}")
        return "listening on" in errors.read_text()

    wait_until(listening, "tcpdump's start")


def require_complete(errors: Path) -> None:
    """Its last words say that no packet was lost. Raises LabError."""
    lost = re.search(r"(\d+) packets dropped by kernel", errors.read_text())
    if not lost or int(lost[1]):
        raise LabError(f"the capture is not complete: {errors.read_text()}")


def packets(data: bytes) -> Iterator[tuple[float, bytes]]:
    """Each packet with its moment (Unix seconds). The last one, which may be half written, is left out then."""
    position = HEADER
    while position + RECORD.size <= len(data):
        seconds, microseconds, size, _ = RECORD.unpack_from(data, position)
        position += RECORD.size
        packet = data[position : position + size]
        position += size
        if len(packet) == size:
            yield seconds + microseconds / 1e6, packet
