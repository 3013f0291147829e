""":9999 for everyone who asks: the kubelet, Prometheus, people. Part of the watchdog's one loop, and its last part.

The harm that a client can do to others is limited here. There are only so many connections; the one that has been
without a finished request for the longest goes first. A connection may be idle, a request may arrive, and an answer may
wait to be taken only for so long, and only so much of all that is kept. No client can make it wait or grow.

All clients are behind one epoll of their own, which the loop looks at after everything else, and for a few milliseconds
at a time: an event of the kernel or a child that ends waits no longer than that, however many clients ask for more.
"""

from __future__ import annotations

import errno
import socket
from select import EPOLLIN, epoll
from time import monotonic

from . import talk
from .clients import MAX_CONNECTIONS, Clients
from .reply import ERRORS, Reply
from .request import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..loop import Loop, Timer

#: Seconds of answering until the loop looks for what matters more; and while something is being repaired, which needs
#: the processor, seconds without answering after that.
BUDGET, BUDGET_REPAIRING, REST = 0.005, 0.002, 0.01
#: The kernel's own buffer of a client's answers: what it holds is memory of this container, too.
_SEND_BUFFER = 1 << 15
_ACCEPTS_PER_TURN = 64
_EVENTS_PER_TURN = 64
_SWEEP = 1.0
_PAUSE = 0.2


def listen(port: int, backlog: int = 1024, *, loopback: bool = False) -> socket.socket:
    """A listening socket on all addresses: one for both families, or IPv4 only where there is no IPv6. loopback: on
    127.0.0.1 alone."""
    if loopback:
        family = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        return _bind(family, "127.0.0.1", port, backlog)
    try:
        listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError:
        return _bind(socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK), "", port, backlog)
    try:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        return _bind(listener, "::", port, backlog)
    except OSError as error:
        if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):  # ipv6.disable=1 fails only here
            raise
    return _bind(socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK), "", port, backlog)


def _bind(listener: socket.socket, address: str, port: int, backlog: int) -> socket.socket:
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)  # accepted sockets inherit it
        listener.bind((address, port))
        listener.listen(backlog)
    except OSError:
        listener.close()
        raise
    return listener


class Server:
    """Serves `pages` (path -> a call that gives the reply to a request) on a listening socket, inside the loop.

    failed: told why a page could not be rendered; repairing: does something run that needs the processor more?
    """

    def __init__(
        self,
        loop: Loop,
        listener: socket.socket,
        pages: Mapping[bytes, Callable[[Request], Reply]],
        failed: Callable[[str], None],
        max_connections: int = MAX_CONNECTIONS,
        repairing: Callable[[], object] = bool,
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._repairing = repairing
        self._epoll = epoll()
        self.clients = Clients(self._epoll, max_connections)
        self._talk = talk.Talk(self.clients, pages, failed)
        self._sweep: Timer | None = None
        self._open()
        self._loop.watch_last(self._epoll.fileno(), self._turn)

    def __len__(self) -> int:
        return len(self.clients)

    def close(self) -> None:
        """Close everything at once."""
        self._loop.forget(self._epoll.fileno())
        for client in self.clients:
            self.clients.drop(client)
        self._listener.close()
        self._epoll.close()
        if self._sweep is not None:
            self._sweep.cancel()

    def _turn(self, _events: int) -> None:
        """Serve whoever is ready, until the budget is spent. epoll goes round: who was not served now is the next."""
        repairing = self._repairing()
        end = monotonic() + (BUDGET_REPAIRING if repairing else BUDGET)
        own = self._listener.fileno()
        events = self._epoll.poll(0, _EVENTS_PER_TURN)
        while events:
            # A handler may close a descriptor of which this batch still holds an event: then it is nobody's.
            for fd, kinds in events:
                if fd == own:
                    self._accept()
                elif client := self.clients.get(fd):
                    self._talk.ready(client, kinds)
                if monotonic() >= end:
                    if repairing:
                        self._loop.forget(self._epoll.fileno())
                        self._loop.call_later(REST, self._resume)
                    return
            events = self._epoll.poll(0, _EVENTS_PER_TURN)

    def _resume(self) -> None:
        if not self._epoll.closed:
            self._loop.watch_last(self._epoll.fileno(), self._turn)

    def _open(self) -> None:
        if self._listener.fileno() >= 0:
            self._epoll.register(self._listener.fileno(), EPOLLIN)

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                its, _address = self._listener.accept()
            except BlockingIOError:
                return
            except ConnectionError:  # gone again before it was accepted
                continue
            except OSError:
                # No descriptor or no memory left. The connection stays in the queue and the listener ready,
                # so going on at once would be an endless loop: make room, and pause when that is not enough.
                if not self.clients.drop_oldest():
                    self._epoll.unregister(self._listener.fileno())
                    self._loop.call_later(_PAUSE, self._open)
                    return
                continue
            client = self.clients.add(its, monotonic() + talk.COMPLETE)
            if self._sweep is None:
                self._sweep = self._loop.call_later(_SWEEP, self._expire)
            # Most clients have sent their request by now: one round through epoll less.
            self._talk.ready(client, EPOLLIN)

    def _expire(self) -> None:
        now = monotonic()
        for client in [each for each in self.clients if each.deadline <= now]:
            if client.received and not client.closing:
                self._talk.refuse(client, ERRORS[408])
            else:
                self.clients.drop(client)
        self._sweep = self._loop.call_later(_SWEEP, self._expire) if len(self.clients) else None
