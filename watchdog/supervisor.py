"""Our own programs as children: started, reaped, and ended together with the watchdog.

The only one who waits for processes: as PID 1 or subreaper the watchdog also reaps what others left behind.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from init_wg import log

from .child import Child
from .remembered import inherited

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .child import Ended
    from .loop import Loop

    Spawn = Callable[[tuple[str, ...], float, Callable[[Ended], None]], Child | None]

#: Seconds for a child to end when the watchdog ends; then it is killed.
LAST_GRACE = 0.4


class Supervisor:
    """All children of this process. environment: what they are given."""

    def __init__(self, loop: Loop, environment: Mapping[str, str], orphan_ended: Callable[[], object] = bool) -> None:
        self._loop = loop
        self._environment = environment
        self._children: dict[int, Child] = {}
        self._stopping = False
        #: Called when a process ended that was not started here.
        self.orphan_ended: Callable[[], object] = orphan_ended
        #: Why the last program could not be started, "" when it could.
        self.error = ""

    def spawn(
        self,
        command: tuple[str, ...],
        timeout: float,
        ended: Callable[[Ended], None],
        *,
        quiet: bool = False,
        config: str = "",
    ) -> Child | None:
        """Start a Python module of ours; None when the system refuses. -P: never from the folder we happen to be in.

        timeout: seconds until it is ended; config: the file or folder that it is to read instead of the usual one.
        quiet: a repair is told in one line, by us; unless somebody wants to see everything.
        """
        argv = (sys.executable, "-P", "-m", *command)
        environment = dict(self._environment)
        if quiet and environment.get("LOG_LEVEL", "").lower() != "debug":
            environment["LOG_LEVEL"] = "warning"
        if config:
            environment["WG_CONFIG"] = config
        try:
            child = Child(self._loop, argv, environment, timeout, ended, inherited(config))
        except OSError as error:
            self.error = f"cannot start a program: {error.strerror}"
            log.error(self.error)
            return None
        self.error = ""
        self._children[child.pid] = child
        return child

    def reap(self) -> None:
        """SIGCHLD: collect whatever ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            child = self._children.pop(pid, None)
            if self._stopping:
                continue
            if child is None:
                self.orphan_ended()
            else:
                child.reaped(status)

    def stop(self) -> None:
        """End all children, in well under a second; nobody is told of it any more."""
        self._stopping = True
        for child in self._children.values():
            child.signal(signal.SIGTERM)
        deadline = self._loop.now() + LAST_GRACE
        while self._children and self._loop.now() < deadline:
            self.reap()
            time.sleep(0.005)
        for child in self._children.values():
            child.signal(signal.SIGKILL)
