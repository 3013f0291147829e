"""What the watchdog's shell is tested in: a clock that the test moves, and children that end when the test says so."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from heapq import heappop
from typing import cast

import pytest

from watchdog import pages, supervisor
from watchdog.child import Ended
from watchdog.loop import Loop, Timer
from watchdog.web.reply import Reply
from watchdog.web.request import Request


class StillLoop(Loop):
    """Time passes only in `advance`. Seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.time = 1000.0
        self.mistakes: list[Exception] = []

    def forgive(self) -> None:
        """A mistake in a callback is kept from now on, and not raised."""
        self._failed = self.mistakes.append

    def now(self) -> float:  # type: ignore[override]
        return self.time

    def call_later(self, delay: float, call: Callable[[], None]) -> Timer:
        return self.call_at(self.time + delay, call)

    def advance(self, seconds: float) -> None:
        until = self.time + seconds
        while self._timers and self._timers[0].due <= until:
            timer = heappop(self._timers)
            self.time = max(self.time, timer.due)
            if timer.call is not None:
                self._call(timer.call)
        self.time = until


class Process:
    """Stands for watchdog.child.Child."""

    def __init__(
        self,
        system: System,
        pid: int,
        argv: tuple[str, ...],
        environment: Mapping[str, str],
        finished: Callable[[Ended], None],
    ) -> None:
        self.system, self.pid, self.argv, self.environment = system, pid, argv, environment
        self.finished = finished
        self.signals: list[int] = []
        #: By which signals it ends.
        self.obeys = {signal.SIGTERM, signal.SIGKILL}

    @property
    def command(self) -> tuple[str, ...]:
        """Without the interpreter and its options."""
        return self.argv[self.argv.index("-m") + 1 :]

    def signal(self, number: int) -> None:
        self.signals.append(number)
        if number in self.obeys:
            self.system.ended.append((self.pid, number))

    def end(self) -> None:
        self.signal(signal.SIGTERM)

    def reaped(self, status: int) -> None:
        self.finished(Ended(-status, "", "", 1.0, late=False))

    def exits(self, code: int, errors: str = "") -> None:
        """As if it had been reaped."""
        self.finished(Ended(code, "", errors, 1.0, late=False))


class System:
    """Where processes are started and waited for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, loop: StillLoop) -> None:
        #: Why nothing can be started, None when it can.
        self.full: Exception | None = None
        self.started: list[Process] = []
        self.ended: list[tuple[int, int]] = []
        monkeypatch.setattr(supervisor, "Child", self._start)
        monkeypatch.setattr(os, "waitpid", self._wait)
        monkeypatch.setattr(time, "sleep", loop.advance)

    def _start(
        self,
        loop: Loop,
        argv: tuple[str, ...],
        environment: Mapping[str, str],
        timeout: float,
        finished: Callable[[Ended], None],
        inherited: tuple[int, ...] = (),
    ) -> Process:
        if self.full is not None:
            raise self.full
        self.started.append(Process(self, 100 + len(self.started), argv, environment, finished))
        return self.started[-1]

    def _wait(self, pid: int, options: int) -> tuple[int, int]:
        return self.ended.pop(0) if self.ended else (0, 0)


Pages = Mapping[bytes, Callable[[Request], Reply]]


class Port:
    """Stands for the server on its port. reason: why it cannot be listened on, 0 when it can."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reason = 0
        self.pages: Pages = {}
        monkeypatch.setattr(pages, "listen", self._listen)
        monkeypatch.setattr(pages, "Server", self._serve)

    def _listen(self, port: int) -> socket.socket:
        if self.reason:
            raise OSError(self.reason, os.strerror(self.reason))
        return cast("socket.socket", None)

    def _serve(self, loop: Loop, listener: socket.socket, pages: Pages, *_: object) -> tuple[str, ...]:
        self.pages = pages
        return ("one", "two")  # connections

    def get(self, path: str) -> tuple[int, str]:
        reply = self.ask(path)
        return reply.status, reply.body

    def ask(self, path: str, accept: str = "*/*") -> Reply:
        """The reply to a GET with this Accept."""
        request = Request(200, b"GET", path.encode(), keep_alive=True, old=False, accept=accept.encode())
        return self.pages[path.encode()](request)
