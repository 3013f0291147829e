"""One thread, one epoll: file descriptors, timers, signals and ended children all come through here.

`select.epoll` itself and not `selectors`: the latter makes an object per event, and at the rate at which the
health endpoint may be asked that is what costs most.
"""

from __future__ import annotations

import os
import signal
import socket
from heapq import heappop, heappush
from select import EPOLLIN, epoll
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Timer:
    """A call that is due at some time of the monotonic clock, until it is cancelled."""

    __slots__ = ("call", "due")

    def __init__(self, due: float, call: Callable[[], None]) -> None:
        self.due = due
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """It will not be called; doing this twice, or too late, is harmless."""
        self.call = None

    def __lt__(self, other: Timer) -> bool:
        return self.due < other.due


class Loop:
    """Waits for whatever comes first and calls who asked for it. Callbacks must not block.

    failed: told of what a callback raised. It is a mistake in this program, and no reason to end: who ended would
    repair nothing at all.
    """

    def __init__(self, failed: Callable[[Exception], None] | None = None) -> None:
        self._failed = failed
        self._epoll = epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._last = -1
        self._timers: list[Timer] = []
        self._running = False

    @staticmethod
    def now() -> float:
        """Seconds of the monotonic clock, which nobody can set."""
        return monotonic()

    def watch(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        """Call handler(events) whenever fd is ready (level-triggered)."""
        self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def watch_last(self, fd: int, handler: Callable[[int], None]) -> None:
        """The same for the one descriptor that can wait: its handler is called when all others and the timers were."""
        self._last = fd
        self.watch(fd, EPOLLIN, handler)

    def forget(self, fd: int) -> None:
        """Stop watching fd. Call it before the fd is closed."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def call_at(self, due: float, call: Callable[[], None]) -> Timer:
        """Call once, at `due` seconds of the monotonic clock or as soon as possible after it."""
        timer = Timer(due, call)
        heappush(self._timers, timer)
        return timer

    def call_later(self, delay: float, call: Callable[[], None]) -> Timer:
        """Call once, `delay` seconds from now."""
        return self.call_at(monotonic() + delay, call)

    def run(self) -> None:
        """Until stop() is called."""
        self._running = True
        while self._running:
            self.turn()

    def stop(self) -> None:
        """Leave run() once the present callbacks are done."""
        self._running = False

    def turn(self, longest: float = -1) -> None:
        """Wait for one batch of events (at most `longest` seconds; -1 is for ever) and handle it."""
        timers = self._timers
        while timers and timers[0].call is None:
            heappop(timers)
        if timers:
            until = max(0.0, timers[0].due - monotonic())
            longest = until if longest < 0 else min(longest, until)
        # A handler may close a descriptor for which this batch still holds an event, and another may get the
        # same number: so every handler must bear being called with nothing to do.
        last = 0
        for fd, events in self._epoll.poll(longest):
            handler = self._handlers.get(fd)
            if fd == self._last:
                last = events
            elif handler is not None:
                self._call(handler, events)
        if timers:
            now = monotonic()
            while timers and timers[0].due <= now:
                call = heappop(timers).call
                if call is not None:
                    self._call(call)
        handler = self._handlers.get(self._last) if last else None
        if handler is not None:
            self._call(handler, last)

    def _call(self, function: Callable[..., None], *arguments: int) -> None:
        try:
            function(*arguments)
        except Exception as error:
            if self._failed is None:
                raise
            self._failed(error)

    def close(self) -> None:
        """Give the epoll descriptor back; what was watched stays open."""
        self._epoll.close()
        self._handlers.clear()
        self._timers.clear()


def watch_signals(loop: Loop, numbers: Iterable[int], handler: Callable[[int], None]) -> Callable[[], None]:
    """Call handler(number) in the loop for each signal; the answer undoes it.

    Python's own handler runs between two byte codes anywhere; through the wake-up descriptor the work
    is done where everything else is done. Installing any handler also is what makes a signal reach
    PID 1 at all: the kernel drops those that are left at their default.
    """
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    old = {number: signal.signal(number, lambda _number, _frame: None) for number in numbers}

    def ready(_events: int, _open: socket.socket = writer) -> None:
        # Only the interpreter's C code knows the writing end: as a default of this, it stays open.
        for number in reader.recv(4096):
            if number in old:
                handler(number)

    loop.watch(reader.fileno(), EPOLLIN, ready)

    def undo() -> None:
        for number, action in old.items():
            signal.signal(number, action)
        signal.set_wakeup_fd(before)
        loop.forget(reader.fileno())
        reader.close()
        writer.close()

    return undo


def close_quietly(fd: int) -> None:
    """close(2) for clean-up paths, where a descriptor that is gone already is no news."""
    try:
        os.close(fd)
    except OSError:
        return
