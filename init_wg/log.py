"""One line per event that matters, on stderr, as text or as JSON. No secret is ever passed in."""

from __future__ import annotations

import os
import sys
import time

#: Milliseconds that a line waits for a reader, once: until something is read again, the next ones do not wait.
PATIENCE = 50
PIPE_BUF = 4096
#: Lines that nobody took, since the start; and how many of them the log has not told yet.
dropped = 0
_untold = 0

LEVELS = ("debug", "info", "warning", "error")


def printable(text: str) -> str:
    """On one line, and without what commands a terminal: names of files and words of others may hold anything."""
    return "".join(char if char.isprintable() else "?" for char in text)


def enabled(level: str) -> bool:
    """Would a line of this level be written?"""
    threshold = os.environ.get("LOG_LEVEL", "info").lower()
    return LEVELS.index(level) >= (LEVELS.index(threshold) if threshold in LEVELS else 1)


def log(level: str, message: str) -> None:
    """Write one line. LOG_LEVEL and LOG_FORMAT come from the environment: errors are told before it is read."""
    if not enabled(level):
        return
    relay(_line(level, printable(" ".join(message.split()))))


def _line(level: str, message: str) -> str:
    if os.environ.get("LOG_FORMAT", "text").lower() == "json":
        from json import dumps

        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return dumps({"time": now, "level": level, "message": message}) + "\n"
    return f"init-wg: {message}\n" if level == "info" else f"init-wg: {level}: {message}\n"


def relay(text: str) -> None:
    """Write what is a line already: a child's. The reader of the log may sleep or go, its disk be full: work goes on.

    Lines that nobody takes are dropped and counted; the next one that is taken comes after a line that says how many.
    """
    global dropped, _untold
    told = _line("warning", f"{_untold} lines of the log are lost: nobody read them") + text if _untold else text
    if _write(told.encode(errors="replace"), 0 if _untold else PATIENCE):
        _untold = 0
        return
    lines = max(1, text.count("\n"))
    dropped += lines
    _untold += lines


def _write(data: bytes, patience: int) -> bool:
    try:
        fd = sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):  # closed from the start; or a stand-in without a descriptor
        return _write_stand_in(data)
    from select import POLLOUT, poll

    ready = poll()
    ready.register(fd, POLLOUT)
    try:
        while data:
            # A descriptor that is ready takes so much at once, if it is a pipe; so that no write ever waits.
            if not ready.poll(patience):
                return False
            data = data[os.write(fd, data[:PIPE_BUF]) :]
    except OSError:
        return False
    return True


def _write_stand_in(data: bytes) -> bool:
    try:
        sys.stderr.write(data.decode())
        sys.stderr.flush()
    except (AttributeError, OSError, ValueError):
        return False
    return True


def debug(message: str) -> None:
    """Details that help to follow a run step by step."""
    log("debug", message)


def info(message: str) -> None:
    """An event, for those who read the log later."""
    log("info", message)


def warning(message: str) -> None:
    """A thing that works but should be changed, or is about to stop working."""
    log("warning", message)


def error(message: str) -> None:
    """The failure, its place and its remedy: the last line of a run that failed."""
    log("error", message)
