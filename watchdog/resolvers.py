"""Which of the tunnel's resolvers answer? Asked where there are several, for the forwarder queries the first one only.

The forwarder puts those that answer in front when it starts (init_wg.setup.resolvers). One that falls silent later
costs each name its client's whole time-out, so the forwarder has to be started anew.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from select import EPOLLIN

from .ping import QUERY
from .targets import DNS_PORT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .loop import Loop

#: Seconds between two questions; a question without an answer by then is a miss.
EVERY = 5.0
#: So many misses in a row: it does not answer; so many answers: it does.
MISSES, ANSWERS = 2, 3
#: The order may change for the better so many seconds after it has changed. What is silent is left at once.
CALM = 60.0


class _Resolver:
    """What is known of one. answers: None as long as it has not been asked often enough."""

    def __init__(self) -> None:
        self.socket: socket.socket | None = None
        self.asked = self.heard = False
        self.row = 0  # of the same outcome
        self.outcome = False
        self.answers: bool | None = None

    def judge(self) -> None:
        """The last question's time is over."""
        if self.asked:
            self.row = self.row + 1 if self.heard == self.outcome else 1
            self.outcome = self.heard
            if self.row >= (ANSWERS if self.outcome else MISSES):
                self.answers = self.outcome
        self.asked = self.heard = False


class Resolvers:
    """Asks them through the interface; `reorder` is called in the loop when another one should be queried first."""

    def __init__(self, loop: Loop, interface: str, reorder: Callable[[], None]) -> None:
        self._loop = loop
        self._interface = interface.encode() + b"\0"
        self._reorder = reorder
        self._known: dict[str, _Resolver] = {}
        self._next = self._calm = loop.now()

    def tick(self, resolvers: tuple[str, ...], first: str) -> None:
        """Once a second. resolvers: the tunnel's, in their order; first: the one that the forwarder queries first, ""
        while it queries none."""
        each = tuple(map(_spelled, resolvers))
        if not first or len(each) < 2:
            self.close()
            return
        if each != tuple(self._known):
            self.close()
            self._known = {address: _Resolver() for address in each}
        now = self._loop.now()
        if now < self._next:
            return
        self._next = now + EVERY
        for address, known in self._known.items():
            known.judge()
            self._ask(address, known)
        self._compare(now, _spelled(first))

    def close(self) -> None:
        """Forget them."""
        for known in self._known.values():
            self._forget(known)
        self._known = {}

    def _compare(self, now: float, first: str) -> None:
        current = self._known.get(first)
        best = next((address for address, known in self._known.items() if known.answers), first)
        if current and best != first and (current.answers is False or now >= self._calm):
            self._calm = now + CALM
            self._reorder()

    def _ask(self, address: str, known: _Resolver) -> None:
        """A refusal on our side says nothing of the resolver, so it counts as not asked."""
        try:
            if known.socket is None:
                known.socket = self._connect(address)
                self._loop.watch(known.socket.fileno(), EPOLLIN, lambda _events: self._ready(known))
            known.socket.send(QUERY)
        except OSError:
            self._forget(known)
        else:
            known.asked = True

    def _connect(self, address: str) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            with suppress(PermissionError):  # before Linux 5.7 this takes NET_RAW; the rules lead there anyway
                made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self._interface)
            made.connect((address, DNS_PORT))
        except OSError:
            made.close()
            raise
        return made

    def _ready(self, known: _Resolver) -> None:
        while known.socket is not None:
            try:
                known.heard |= known.socket.recv(512)[:2] == QUERY[:2]
            except BlockingIOError:
                return
            except OSError:  # it refuses, so it does not answer
                continue

    def _forget(self, known: _Resolver) -> None:
        if known.socket is not None:
            self._loop.forget(known.socket.fileno())
            known.socket.close()
            known.socket = None


def _spelled(address: str) -> str:
    """Files and command lines may spell one address in two ways."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.inet_ntop(family, socket.inet_pton(family, address))
