"""`python -m watchdog` with words: it tells about itself, and starts for none of them."""

from __future__ import annotations

import sys

import pytest

from init_wg import __version__
from watchdog.__main__ import USAGE, main


@pytest.mark.parametrize(
    ("arguments", "out"), [(["--help"], USAGE), (["-h"], USAGE), (["--version"], f"init-wg-watchdog {__version__}\n")]
)
def test_it_tells_about_itself(
    arguments: list[str], out: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["watchdog", *arguments])
    assert main() == 0
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == (out, "")


@pytest.mark.parametrize("arguments", [["up"], ["--port", "9999"], ["--help", "me"]])
def test_other_words_are_wrong_usage(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["watchdog", *arguments])
    assert main() == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(USAGE)
    assert "is no option of init-wg-watchdog" in shown.err.splitlines()[-1]
