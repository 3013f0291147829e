"""Texts that people read once and tests compare for ever. WRITE_GOLDEN=1 writes what is there now: then read the
difference."""

from __future__ import annotations

import os
from pathlib import Path


def assert_golden(text: str, file: Path) -> None:
    """The text is the file's."""
    if os.environ.get("WRITE_GOLDEN"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    assert text == file.read_text()
