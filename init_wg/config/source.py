"""A file -> its text, and the errors that point into it.

Errors carry file:line, and never a piece of the text: any of it may be a key in the wrong place.
"""
# Paths are plain strings: this is loaded on every start, and pathlib costs more than all of it.

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import NoReturn

from init_wg.errors import ConfigError
from init_wg.log import printable as shown

__all__ = ["LARGEST", "fail", "folder", "lines", "read", "shown"]

LARGEST = 64 * 1024  # bytes; a real file has one or two thousand


def fail(file: str, line: int, what: str) -> NoReturn:
    """Ends with one sentence that has file:line. `from None`: the error before it may quote the text."""
    raise ConfigError(f"{shown(file)}:{line}: {what}") from None


def folder(path: str) -> str:
    """The sentence for a folder where a file should be."""
    return (
        f"{shown(path)}: a folder, not a file: what is mounted here is a folder, which Docker makes where the file of "
        "a bind mount is missing; delete it, put the file in its place, and create the container anew"
    )


def read(path: str, missing: str) -> tuple[str, int]:
    """The text of a small regular file, and its mode. The only place where file contents are read."""
    data, mode = _bytes(path, missing)
    if b"\0" in data:
        what = "NUL bytes, so a binary file or UTF-16: name the right file, or save it as UTF-8"
        _fail_as(path, data, data.index(b"\0"), what)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        _fail_as(path, data, error.start, "not UTF-8 text: name the right file, or save it as UTF-8")
    # Windows editors put a byte order mark first and carriage returns before each line's end.
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    _refuse_control_characters(path, text)
    return text, mode


def _fail_as(path: str, data: bytes, at: int, otherwise: str) -> NoReturn:
    """With what the file is, if it is something that people mount by mistake."""
    from init_wg.config import other_formats

    what = other_formats.data(data)
    sign = "NUL bytes" if data[at] == 0 else "not UTF-8 text"
    fail(path, data.count(b"\n", 0, at) + 1, f"{sign}: {what}" if what else otherwise)


def _bytes(path: str, missing: str) -> tuple[bytes, int]:
    where = shown(path)
    too_large = f"{where}: larger than 64 KiB, so no WireGuard configuration: name the right file"
    try:
        # Before open(), which would wait at a FIFO, and set things going in some devices.
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise ConfigError(folder(path))
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{where}: not a regular file: put the configuration in one")
        if status.st_size > LARGEST:
            raise ConfigError(too_large)
        with open(path, "rb") as file:
            data = file.read(LARGEST + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(missing) from None
    except PermissionError:
        raise ConfigError(f"{where}: no permission to read it: correct its owner or mode") from None
    except (OSError, ValueError):  # ValueError: a NUL in the name
        raise ConfigError(f"{where}: cannot be read: check the path and the volume it is on") from None
    # Files in /proc have the size 0, and others may have grown since.
    if len(data) > LARGEST:
        raise ConfigError(too_large)
    return data, status.st_mode


def _refuse_control_characters(file: str, text: str) -> None:
    """Nothing by which a line looks different from what it says: C0 but tabs and line ends, DEL and C1."""
    line = 1
    for char in text:
        if char == "\n":
            line += 1
        elif char == "\r":
            fail(file, line, "a control character (a carriage return): save the file with Unix or Windows line ends")
        elif (char < " " and char != "\t") or "\x7f" <= char <= "\x9f":
            fail(file, line, "a control character: delete it, or write the line anew in a text editor")


def lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines that say something, counted from 1, without comments: "#" begins one anywhere (wg(8))."""
    for line, whole in enumerate(text.split("\n"), 1):
        content = whole.partition("#")[0].strip(" \t")
        if content:
            yield line, content
