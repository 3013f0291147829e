"""SIGTERM, SIGINT and SIGQUIT end every command within a second, as process 1 of a container too: the kernel drops the
signals for which that has no handler.

They end it by an exception, so that whatever must be closed on the way out is closed: a hole in the kill-switch.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # not `signal`, whose import costs more than all of this
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

NAMES = {_signal.SIGTERM: "SIGTERM", _signal.SIGINT: "SIGINT", _signal.SIGQUIT: "SIGQUIT"}
#: Seconds for the way out; or until a second signal.
GRACE = 0.7


class Interrupted(BaseException):
    """A signal has asked for the end. exit_code: 128 and its number, as shells have it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {NAMES[number]}")
        self.exit_code = 128 + number


def install() -> None:
    """From now on. A signal that whoever started us wants ignored (nohup) stays ignored."""
    for number in NAMES:
        if _signal.getsignal(number) is not _signal.SIG_IGN:
            _signal.signal(number, _interrupt)


def _interrupt(number: int, _frame: object) -> NoReturn:
    def end(*_: object) -> NoReturn:
        os._exit(128 + number)

    for each in (*NAMES, _signal.SIGALRM):
        _signal.signal(each, end)
    _signal.setitimer(_signal.ITIMER_REAL, GRACE)
    raise Interrupted(number)
