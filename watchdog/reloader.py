"""The configuration on disk: watched, validated, then applied or refused; and the last known good one, for repairs.

It is looked at from outside, again and again, instead of by inotify: the kubelet updates a Secret by swapping a
symlink, and the folder that a watch was set on is then another one.
"""

from __future__ import annotations

import os

from init_wg import log
from init_wg.config import serverfiles

from . import facts, scheduler, status
from .remembered import Remembered

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .child import Child, Ended
    from .facts import Server
    from .loop import Loop, Timer
    from .supervisor import Spawn

#: Seconds between two looks.
EVERY = 2.0
#: What changed has to stay as it is for so long before it is read, in seconds: it may still be being written.
QUIET = 0.3
#: Seconds that a validation may take; until one that could not be started is tried again.
TIMEOUT, AGAIN = 60.0, 5.0


class Watched:
    """A file or a folder, seen from outside. look: what it looks like; `changed` is called in the loop once it has
    changed and then kept still."""

    def __init__(self, loop: Loop, path: str, look: Callable[[str], object], changed: Callable[[], None]) -> None:
        self._loop = loop
        self._path = path
        self._look = look
        self._changed = changed
        self._seen = look(path)
        self._due: Timer | None = None

    def look(self) -> None:
        """Has it changed?"""
        if self._differs():
            self._wait()

    def _differs(self) -> bool:
        before, self._seen = self._seen, self._look(self._path)
        return self._seen != before

    def _wait(self) -> None:
        if self._due is not None:
            self._due.cancel()
        self._due = self._loop.call_later(QUIET, self._still)

    def _still(self) -> None:
        if self._differs():
            self._wait()
            return
        log.info(f"{self._path} changed")
        self._changed()


class Reloader:
    """One file, or a folder of servers. `in_use` tells the one that is set up; `apply` is to set up what is on disk.
    ports: the file of VPN_INPUT_PORTS_FILE, "" for none."""

    def __init__(
        self,
        loop: Loop,
        spawn: Spawn,
        path: str,
        in_use: Callable[[], Server | None],
        apply: Callable[[], None],
        ports: str = "",
    ) -> None:
        self._loop = loop
        self._spawn = spawn
        self._path = path
        self._in_use = in_use
        self._apply = apply
        self._next = loop.now()
        self._watched = (
            Watched(loop, path, facts.files, self.reload),
            # It needs no validation: the setup itself keeps the open ports where the file is wrong. And none is worth
            # a look at the configuration, which may be wrong at the time.
            Watched(loop, ports, facts.file, apply),
        )
        self._check: Child | None = None
        self._due: Timer | None = None
        self._last_good = Remembered()
        self._run_read = 0
        self._run_config = ""
        #: The servers of the configuration that is applied, in the order in which they are tried.
        self.servers = facts.servers(path)
        #: Why what is on disk is not applied, "" when it is.
        self.refused = ""
        self._all_refused = False

    @property
    def names(self) -> tuple[str, ...]:
        """The servers' names."""
        return tuple(server.name for server in self.servers)

    # --- what is on disk -------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Look, if it is time. now: seconds of the monotonic clock."""
        if now < self._next:
            return
        self._next = now + EVERY
        for each in self._watched:
            each.look()

    def _later(self, delay: float) -> None:
        """One at a time: each of them reads all that is there by then."""
        self._due = self._loop.call_later(delay, self.reload)

    def reload(self) -> None:
        """Validate before applying: with a bad file the running tunnel stays as it is."""
        if self._due is not None:
            self._due.cancel()
        if self._check is not None:
            self._later(QUIET)
            return
        # In a folder, init_wg itself leaves bad files out; the one in use must not be lost by that.
        path = self._path
        if serverfiles.file_of(path, "") != path:
            server = self._in_use()
            path = serverfiles.file_of(path, server.name) if server else ""
            if not server or not os.path.exists(path):
                self._accept()
                return
        self._check = self._spawn(("init_wg", "check", path), TIMEOUT, self._checked)
        if self._check is None:
            self._later(AGAIN)

    def _checked(self, ended: Ended) -> None:
        self._check = None
        if ended.code == scheduler.DONE:
            self._accept()
        else:
            self._refuse(ended)

    def _accept(self) -> None:
        self.refused, self._all_refused = "", False
        self.servers = facts.servers(self._path)
        self._apply()

    def _refuse(self, ended: Ended) -> None:
        known, self.refused = self.refused, status.failure(ended)
        if self.refused != known:
            log.relay(ended.errors)
            log.error("the new configuration is not applied; what is set up stays")

    # --- what the setup reads --------------------------------------------------------------------------------------

    def run_begins(self, server: str | None) -> tuple[str | None, str]:
        """With which server a run is to begin, and from which file it is to read: "" is what is on disk.

        While what is on disk is wrong, repairs use what worked; but another server can only be found on disk, if there
        is a good one.
        """
        self._run_read = facts.files(self._path)
        alone = server is None or len(self.servers) < 2 or self._all_refused
        self._run_config = self._last_good.path if self.refused and alone else ""
        return self._last_good.name if self._run_config and server else server, self._run_config

    def run_refused(self, ended: Ended) -> bool:
        """The run was the first to see that the file was replaced by a bad one. False: there is none that worked."""
        if self._run_config or not self._last_good.path:
            return False
        self._refuse(ended)
        self._all_refused = True  # a bad file among good ones does not fail a run
        return True

    def remember(self, server: str) -> None:
        """Remember the file of the server that is set up now ("" for none), if it still is the one that was read."""
        if server and not self._run_config and facts.files(self._path) == self._run_read:
            self._last_good.take(serverfiles.file_of(self._path, server), self._run_read)

    def set_up_from(self, server: str) -> str:
        """The file from which this server was set up, for programs that need what is set up and not what is on disk; ""
        is what is on disk."""
        return self._last_good.path if server == self._last_good.name else ""
