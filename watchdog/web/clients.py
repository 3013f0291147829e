"""The clients that are connected, and how much is kept for them: how many there may be, and who has to go first."""

from __future__ import annotations

from select import EPOLLIN

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from select import epoll

#: Connections at one time. A thousand idle ones are borne, and cost a megabyte.
MAX_CONNECTIONS = 1200
#: Bytes that may be kept for all of them.
MAX_HELD = 1 << 22


class Client:
    """One client. deadline: when it has to have done what it is expected to do."""

    __slots__ = ("closing", "deadline", "draining", "fd", "held", "received", "socket", "waiting", "writing")

    def __init__(self, its: socket.socket, deadline: float) -> None:
        self.socket = its
        self.fd = its.fileno()
        self.received = b""
        self.waiting: list[bytes | memoryview] = []  # answers, the first maybe in part
        self.held = 0  # bytes of both
        self.writing = False  # nothing is read until its socket takes something
        self.deadline = deadline
        self.closing = False  # no request will be read any more
        self.draining = False  # all is said; what still arrives is thrown away


class Clients:
    """All connections. poll: what they are watched with. most: so many at one time."""

    def __init__(self, poll: epoll, most: int) -> None:
        self._epoll = poll
        self._most = most
        # By the time of the last finished request, longest ago first: a dictionary keeps the order of insertion.
        self._known: dict[int, Client] = {}
        # Those of which something is kept, longest first.
        self._holders: dict[int, Client] = {}
        #: Bytes that are kept for all of them.
        self.held = 0

    def __len__(self) -> int:
        return len(self._known)

    def __iter__(self) -> Iterator[Client]:
        return iter(list(self._known.values()))

    def get(self, fd: int) -> Client | None:
        """The one with this descriptor; None when it has gone."""
        return self._known.get(fd)

    def add(self, its: socket.socket, deadline: float) -> Client:
        """A new one; the oldest makes room for it."""
        its.setblocking(False)
        if len(self._known) >= self._most:
            self.drop_oldest()
        client = Client(its, deadline)
        self._known[client.fd] = client
        self._epoll.register(client.fd, EPOLLIN)
        return client

    def watch(self, client: Client, events: int) -> None:
        """Wait for other events of it from now on."""
        self._epoll.modify(client.fd, events)

    def finished_request(self, client: Client) -> None:
        """To the end of the queue of those that have to go."""
        del self._known[client.fd]
        self._known[client.fd] = client

    def drop_oldest(self) -> bool:
        """The one that has been without a finished request for the longest; returns whether there was one."""
        for client in self._known.values():
            self.drop(client)
            return True
        return False

    def drop(self, client: Client) -> None:
        """Close it at once, whatever was to be said."""
        if self._known.pop(client.fd, None) is not None:
            self._epoll.unregister(client.fd)
            client.socket.close()
            client.waiting, client.received = [], b""
            self.account(client)

    def account(self, client: Client) -> None:
        """The memory kept for this client has changed. When it is too much for all, who made us keep it longest goes.

        Answers of one page share its bytes, and are counted for each.
        """
        held = len(client.received) + sum(map(len, client.waiting))
        self.held += held - client.held
        client.held = held
        if held:
            self._holders.setdefault(client.fd, client)
        else:
            self._holders.pop(client.fd, None)
        while self.held > MAX_HELD:
            self.drop(next(iter(self._holders.values())))
