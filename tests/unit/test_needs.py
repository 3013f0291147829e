"""A harness names what a machine lacks; under CI its tests fail then, or a suite could pass by running nowhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.lab.needs import Needs, demand, missing

EVERYWHERE = Needs({"sh": "dash", "/bin/sh": "dash"})
NOWHERE = Needs({"no-such-program": "its-package", "/no/such/program": "another"})


def test_what_is_missing_is_named() -> None:
    assert missing(EVERYWHERE) is None
    assert missing(EVERYWHERE, NOWHERE) == "the Debian packages another, its-package"
    assert missing(Needs(others=(lambda: None, lambda: "a device", lambda: "more"))) == "a device"


def test_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert missing(EVERYWHERE, Needs(root=True)) == "root"


def test_a_suite_is_skipped_and_fails_under_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    demand("this", EVERYWHERE)
    with pytest.raises(pytest.skip.Exception, match="this needs the Debian packages another, its-package"):
        demand("this", NOWHERE)
    monkeypatch.setenv("CI", "1")
    with pytest.raises(pytest.fail.Exception, match="this needs"):
        demand("this", NOWHERE)


def test_missing_is_written_once() -> None:
    """Each harness declares; one function asks."""
    tests = Path(__file__).parents[1]
    assert [file.name for file in tests.rglob("*.py") if "\ndef missing(" in file.read_text()] == ["needs.py"]
