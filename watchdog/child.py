"""Short-lived programs of the watchdog: started without blocking, listened to, ended in time.

os.posix_spawn and not subprocess: its import costs half a megabyte for good, and fork() of a process is not
needed. Each child is a process group of its own, so that ending it ends what it started.
"""

from __future__ import annotations

import os
import signal
from select import EPOLLIN

from .loop import close_quietly

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .loop import Loop, Timer

#: What is kept of a child's output, in bytes: the last line of stderr is a reason, stdout is one JSON object.
KEPT = 1 << 14
#: Seconds between asking a child to end and ending it.
GRACE = 2.0


class Ended:
    """How a child ended. code: its exit status, negative for a signal; seconds: how long it ran."""

    __slots__ = ("code", "errors", "late", "output", "seconds")

    def __init__(self, code: int, output: str, errors: str, seconds: float, *, late: bool) -> None:
        self.code, self.output, self.errors, self.seconds, self.late = code, output, errors, seconds, late

    def last_line(self) -> str:
        """The last thing it said on stderr, which by convention is what is wrong and what to do."""
        lines = [line for line in self.errors.splitlines() if line.strip()]
        return lines[-1].strip() if lines else ""


class Child:
    """A running program. `finished` is called in the loop, once, after the process was reaped."""

    def __init__(
        self,
        loop: Loop,
        argv: tuple[str, ...],
        environment: Mapping[str, str],
        timeout: float,
        finished: Callable[[Ended], None],
        inherited: tuple[int, ...] = (),
    ) -> None:
        self._loop = loop
        self._finished = finished
        self._buffers: dict[int, bytes] = {}
        self._late = False
        readers, writers = zip(*(os.pipe() for _ in range(2)), strict=True)  # all ends are closed on exec
        try:
            self.pid = _spawn(argv, environment, writers, inherited)
        except OSError:
            for fd in readers:
                close_quietly(fd)
            raise
        finally:
            for fd in writers:
                close_quietly(fd)
        self._started = loop.now()
        self._readers = readers
        for fd in readers:
            os.set_blocking(fd, False)
            self._buffers[fd] = b""
            loop.watch(fd, EPOLLIN, self._reader(fd))
        self._timer: Timer | None = loop.call_later(timeout, self._expire)

    def signal(self, number: int) -> None:
        """To the whole group. The process has not been reaped, so its number is still its own."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return

    def end(self) -> None:
        """Ask it to end; make it, when it does not."""
        self.signal(signal.SIGTERM)
        self._again(GRACE, lambda: self.signal(signal.SIGKILL))

    def reaped(self, status: int) -> None:
        """waitpid(2) returned it."""
        if self._timer:
            self._timer.cancel()
        # Whatever it left running may hold the pipes open: no waiting for their end.
        for fd in self._readers:
            while self._read(fd):
                pass
            self._loop.forget(fd)
            close_quietly(fd)
        output, errors = (self._buffers[fd].decode(errors="replace") for fd in self._readers)
        seconds = self._loop.now() - self._started
        self._finished(Ended(os.waitstatus_to_exitcode(status), output, errors, seconds, late=self._late))

    def _reader(self, fd: int) -> Callable[[int], None]:
        def ready(_events: int) -> None:
            self._read(fd)

        return ready

    def _read(self, fd: int) -> bool:
        try:
            data = os.read(fd, 1 << 16)
        except BlockingIOError:
            return False
        if not data:
            self._loop.forget(fd)
            return False
        self._buffers[fd] = (self._buffers[fd] + data)[-KEPT:]
        return True

    def _expire(self) -> None:
        self._late = True
        self.end()

    def _again(self, delay: float, call: Callable[[], None]) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = self._loop.call_later(delay, call)


def _spawn(
    argv: tuple[str, ...], environment: Mapping[str, str], outputs: tuple[int, ...], inherited: tuple[int, ...]
) -> int:
    """Start it as a group of its own, its output and errors to these descriptors. Raises OSError."""
    return os.posix_spawn(
        argv[0],
        argv,
        environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            *((os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(outputs, 1)),
            # Onto itself: it stays open, though it is closed on exec otherwise.
            *((os.POSIX_SPAWN_DUP2, fd, fd) for fd in inherited),
        ],
        setpgroup=0,
        setsigmask=(),
        setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),  # Python ignores these, and that would be inherited
    )
