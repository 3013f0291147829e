"""VPN_INPUT_PORTS_FILE: what a provider's client writes there, and what is kept when it is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from init_wg.design.firewall import killswitch
from init_wg.setup.input_ports import extended
from tests.unit import build
from tests.unit.test_killswitch import ORDINARY

#: What the file said when it was right.
BEFORE = killswitch.opened(ORDINARY._replace(input_ports=("6881", "50000-50100")))
OPEN = ("6881", "50000-50100")


def ports(file: Path, ruleset: str = BEFORE, listed: str = "none") -> tuple[str, ...]:
    settings = build.settings(VPN_INPUT_PORTS_FILE=str(file), VPN_INPUT_PORTS=listed)
    return extended(settings, ruleset).input_ports


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", ()),
        ("\n", ()),
        ("# nothing today\n", ()),
        ("51999", ("51999",)),
        ("51999\n", ("51999",)),
        ("51999\r\n52000\r\n", ("51999-52000",)),
        ("52001\n51999 # of gluetun's kind\n", ("51999", "52001")),
        ("50000-50100, 80\n", ("80", "50000-50100")),
    ],
)
def test_what_it_says(tmp_path: Path, content: str, expected: tuple[str, ...]) -> None:
    file = tmp_path / "forwarded_port"
    file.write_text(content)
    assert ports(file) == expected
    assert ports(file, listed="443,444") == (
        ("80", "443-444", *expected[1:]) if "80" in expected else ("443-444", *expected)
    )


def test_without_a_file_there_are_none(tmp_path: Path) -> None:
    assert ports(tmp_path / "not" / "yet") == ()
    assert extended(build.settings(VPN_INPUT_PORTS="80"), BEFORE).input_ports == ("80",)


@pytest.mark.parametrize("content", [b"port 51999", b"0", b"70000", b"{}", b"\xff\xfe5\0", b"5" * 5000, b"51999\n-1\n"])
def test_while_it_is_wrong_the_open_ports_stay(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "forwarded_port"
    file.write_bytes(content)
    assert ports(file) == OPEN
    assert ports(file, ruleset="") == ()
    assert ports(file, ruleset=killswitch.opened(ORDINARY), listed="80") == ("80",)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 3
    assert all(f"warning: VPN_INPUT_PORTS_FILE: {file}" in line and line.isprintable() for line in told)


def test_what_is_no_file_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert ports(pipe) == ports(tmp_path) == OPEN
    assert capsys.readouterr().err.count("not a regular file") == 2
