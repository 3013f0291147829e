"""A peer's file as a QR code. The one importer of segno, which costs a tenth of a second and 12 MB."""

from __future__ import annotations

import io

import segno

# Black and white whatever the terminal's own colours are: not every phone reads an inverted code.
_COLOURS, _END = "\033[40;97m", "\033[0m"


def terminal(text: str) -> bytes:
    """For a terminal: two rows of the code in each line, in UTF-8."""
    lines = io.StringIO()
    _code(text).terminal(lines, compact=True, border=2)
    return "".join(f"{_COLOURS}{line}{_END}\n" for line in lines.getvalue().splitlines()).encode()


def picture(text: str, kind: str) -> bytes:
    """A picture with the white border that readers want. kind: "svg" or "png"."""
    made = io.BytesIO()
    # A light background of its own: a page or a viewer may be dark.
    _code(text).save(made, kind=kind, scale=4, border=4, dark="black", light="white")
    return made.getvalue()


def _code(text: str) -> segno.QRCode:
    # The lowest error correction: screens have no dirt, and the code has to fit a terminal.
    return segno.make(text, error="l", micro=False, boost_error=False)
