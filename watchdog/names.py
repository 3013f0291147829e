"""The answers to the pod's DNS queries: the forwarder, whom it queries first, and whether queries are led to it."""

from __future__ import annotations

from init_wg import log

from .forwarder import Forwarder
from .resolvers import Resolvers
from .scheduler import CONFIRM, Run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .facts import Server
    from .loop import Loop
    from .scheduler import Policy
    from .supervisor import Spawn


class Names:
    """server: tells the one that is set up; `turned` is called in the loop when the forwarder began to answer, or
    ended."""

    def __init__(
        self,
        loop: Loop,
        spawn: Spawn,
        policy: Policy,
        server: Callable[[], Server | None],
        turned: Callable[[], None],
        interface: str,
    ) -> None:
        self._loop = loop
        self._policy = policy
        self._server = server
        self._changed = turned
        self._leading = False  # a run has to lead queries to the forwarder, or away from it
        self._forwarder = Forwarder(loop, spawn, self._turned)
        self._resolvers = Resolvers(loop, interface, self._reorder)

    @property
    def running(self) -> bool:
        """Is there a forwarder?"""
        return self._forwarder.running

    @property
    def trouble(self) -> str:
        """Why nobody answers redirected queries, "" when somebody does or none is redirected."""
        return self._forwarder.trouble or ("queries do not go to the DNS forwarder yet" if self._leading else "")

    def tick(self) -> None:
        """Once a second: does the forwarder still answer, and do the resolvers?"""
        self._forwarder.tick()
        server = self._server()
        resolvers = server.resolvers if server else ()
        self._resolvers.tick(resolvers, self._forwarder.asked_first() if len(resolvers) > 1 else "")

    def run_worked(self, run: Run, *, renew: bool) -> None:
        """The setup is right. renew: perhaps with another server, which has another resolver."""
        self._leading = self._leading and run.why != CONFIRM
        if renew:
            self._forwarder.renew()
        else:
            self._forwarder.ensure()

    def _reorder(self) -> None:
        log.info("other resolvers answer than before: the DNS forwarder starts anew")
        self._forwarder.renew()

    def _turned(self) -> None:
        """With several resolvers, queries are led to the forwarder only while it runs."""
        server = self._server()
        if server and len(server.resolvers) > 1 and self._forwarder.needed:
            self._leading = True
            self._policy.demanded(self._loop.now(), Run(CONFIRM))
        self._changed()
