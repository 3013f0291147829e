"""One line per event that matters, on stderr, as text or as JSON. No secret is ever passed in."""

from __future__ import annotations

import os
import sys
import time

LEVELS = ("debug", "info", "warning", "error")


def enabled(level: str) -> bool:
    """Would a line of this level be written?"""
    threshold = os.environ.get("LOG_LEVEL", "info").lower()
    return LEVELS.index(level) >= (LEVELS.index(threshold) if threshold in LEVELS else 1)


def log(level: str, message: str) -> None:
    """Write one line. LOG_LEVEL and LOG_FORMAT come from the environment: errors are told before it is read."""
    if not enabled(level):
        return
    message = " ".join(message.split())
    if os.environ.get("LOG_FORMAT", "text").lower() == "json":
        from json import dumps

        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = dumps({"time": now, "level": level, "message": message})
    else:
        line = f"init-wg: {message}" if level == "info" else f"init-wg: {level}: {message}"
    relay(line + "\n")


def relay(text: str) -> None:
    """Write what is a line already: a child's. Whoever reads the log may go, or its disk be full: the work goes on."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        return


def debug(message: str) -> None:
    """What helps to follow a run step by step."""
    log("debug", message)


def info(message: str) -> None:
    """What happened, for whoever reads the log later."""
    log("info", message)


def warning(message: str) -> None:
    """What works but should be changed, or is about to stop working."""
    log("warning", message)


def error(message: str) -> None:
    """What failed, where, and what to do: the last line of a run that failed."""
    log("error", message)
