"""`init-wg status --watch`: the same words again and again, until a signal ends it or nobody reads it any more."""

from __future__ import annotations

import gc
import os
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds between two looks.
EVERY = 2.0
_HOME, _END_OF_LINE, _END_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"


def run(look: Callable[[], str]) -> None:
    """Show what `look` says. On a terminal each text replaces the one before; elsewhere an empty line parts them."""
    gc.enable()  # this one has no short life
    between = ""
    try:
        while True:
            text = look()
            if sys.stdout.isatty():
                columns, rows = os.get_terminal_size(sys.stdout.fileno())
                now = time.strftime("%H:%M:%S")
                print(screen(f"{now}, every {EVERY:g} s; Ctrl-C ends it\n\n{text}", columns, rows), end="", flush=True)
            else:
                print(f"{between}{text}", flush=True)
                between = "\n"
            time.sleep(EVERY)
    except BrokenPipeError:
        return


def screen(text: str, columns: int, rows: int) -> str:
    """The whole of a terminal: lines that would wrap, or do not fit, are cut. A size of 0 is not known."""
    lines = text.splitlines()[: rows - 1 if rows else None]
    shown = "".join(f"{line[:columns] if columns else line}{_END_OF_LINE}\n" for line in lines)
    return f"{_HOME}{shown}{_END_OF_SCREEN}"
