"""The one place that starts other programs. Standard library's `os` only: it runs before the lockdown."""

from __future__ import annotations

import fcntl
import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_PAUSE = 0.0002  # seconds
_STDERR = 2
_SIGTERM, _SIGKILL = 15, 9  # signal's own names cost its import
_SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Result:
    """How a program ended: its exit status (negative: the signal), and all it printed."""

    __slots__ = ("status", "stderr", "stdout")

    def __init__(self, status: int, stdout: str, stderr: str) -> None:
        self.status, self.stdout, self.stderr = status, stdout, stderr


def find(program: str) -> str | None:
    """The program's path, from PATH and then the usual places (PATH may lack the sbin folders)."""
    for folder in (os.environ.get("PATH", "") + ":" + _SEARCH).split(":"):
        path = folder + "/" + program
        if folder and os.access(path, os.X_OK):
            return path
    return None


def run(argv: tuple[str, ...], stdin: str = "", done: Callable[[], bool] | None = None) -> Result:
    """Run a program to its end, or until `done` says that it has done what it was run for (then its status is 0).

    Raises FileNotFoundError when it is not installed.

    Its three streams are anonymous memory files: no pipe can fill up, and `subprocess`, which costs more
    to import than nft takes to load the kill-switch, is not needed.
    """
    path = find(argv[0])
    if path is None:
        raise FileNotFoundError(argv[0])
    files = [os.memfd_create(name) for name in ("stdin", "stdout", "stderr")]
    try:
        os.write(files[0], stdin.encode()) if stdin else None
        os.lseek(files[0], 0, os.SEEK_SET)
        actions = [(os.POSIX_SPAWN_DUP2, file, number) for number, file in enumerate(files)]
        child = os.posix_spawn(path, argv, os.environ, file_actions=actions)
        try:
            ended, status = os.waitpid(child, os.WNOHANG if done else 0)
            while not ended and done and not done():
                time.sleep(_PAUSE)
                ended, status = os.waitpid(child, os.WNOHANG)
        except BaseException:  # a signal ends us: nothing is done any more after the way out
            os.kill(child, _SIGKILL)
            os.waitpid(child, 0)
            raise
        printed = [os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace") for file in files[1:]]
    finally:
        for file in files:
            os.close(file)
    return Result(os.waitstatus_to_exitcode(status), *printed)


def become(path: str, argv: tuple[str, ...]) -> None:
    """Be this program from now on, with the standard streams alone: another descriptor may lead to a key."""
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        try:
            os.set_inheritable(descriptor, descriptor <= _STDERR)
        except OSError:  # it was the listing's own
            continue
    os.execv(path, argv)  # noqa: S606  # no shell is wanted


def attend(path: str, argv: tuple[str, ...]) -> int:
    """Run a program with our own streams to its end, and end it when a signal ends us. Returns an exit status as shells
    have it: a signal's is 128 and its number."""
    child = os.posix_spawn(path, argv, os.environ)
    try:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except BaseException:
        os.kill(child, _SIGTERM)
        os.waitpid(child, 0)
        raise
    return status if status >= 0 else 128 - status


class Background:
    """A program that stays: its process, and the memory file that takes what it prints."""

    __slots__ = ("_output", "pid")

    def __init__(self, pid: int, output: int) -> None:
        self.pid, self._output = pid, output

    def ended(self) -> str | None:
        """Its output, if it has ended; None while it runs."""
        if os.waitpid(self.pid, os.WNOHANG)[0] == 0:
            return None
        return os.pread(self._output, 1 << 16, 0).decode(errors="replace")

    def detach(self) -> None:
        """Let it go. Its output file takes no more: writing there fails from now on, and eats no memory.

        Not a pipe: with its reader gone, a write would kill the program.
        """
        fcntl.fcntl(self._output, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
        os.close(self._output)


def start(argv: tuple[str, ...], environment: dict[str, str]) -> Background:
    """Start a program in a session of its own, with nothing of ours. Raises FileNotFoundError."""
    path = find(argv[0])
    if path is None:
        raise FileNotFoundError(argv[0])
    output = os.memfd_create(argv[0], os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, output, 1),
        (os.POSIX_SPAWN_DUP2, output, 2),
    ]
    return Background(os.posix_spawn(path, argv, environment, file_actions=actions, setsid=True), output)


def forbid_core_dumps() -> None:
    """For this process and all that it starts: keys would be in them.

    Not 0: the kernel writes nothing to a file below the size of one page, but heeds no limit where core_pattern is a
    pipe, except for this value (fs/coredump.c).
    """
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
