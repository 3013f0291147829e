""":9999 for everyone who asks: the kubelet, Prometheus, people. Part of the watchdog's one loop, and its last part.

What a client can do to others is limited here: how many connections there are (the one that has been without a
finished request for the longest goes first), how long one may be idle, how long a request may take to arrive, how long
an answer may wait to be taken, and how much of all that may be kept. No client can make it wait, and none can make it
grow.

All clients are behind one epoll of their own, which the loop looks at after everything else, and for a few milliseconds
at a time: an event of the kernel or a child that ends waits no longer than that, however many clients ask for more.
"""

from __future__ import annotations

import errno
import socket
from select import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, epoll
from time import monotonic

from .request import Request, split

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..loop import Loop, Timer

#: Connections at one time. A thousand idle ones are borne, and cost a megabyte.
MAX_CONNECTIONS = 1200
#: Seconds a connection may be idle; to complete a request; to take an answer; to hear of a refusal.
IDLE, COMPLETE, TAKE, LINGER = 60.0, 10.0, 10.0, 1.0
#: Bytes that may wait for one client before its next requests are left unread; that are kept for all of them.
MAX_WAITING, MAX_HELD = 1 << 16, 1 << 22
#: Seconds of answering until the loop looks for what matters more; and while something is being repaired, which needs
#: the processor, seconds without answering after that.
BUDGET, BUDGET_REPAIRING, REST = 0.005, 0.002, 0.01
#: Requests of one client that are answered before it is another's turn.
_IN_A_ROW = 32
_READ = 1 << 12
#: The kernel's own buffer of a client's answers: what it holds is memory of this container, too.
_SEND_BUFFER = 1 << 15
_ACCEPTS_PER_TURN = 64
_EVENTS_PER_TURN = 64
_SWEEP = 1.0
_PAUSE = 0.2
#: An answer of so many bytes is not copied into one piece with its head.
_LARGE = 1 << 12

TEXT = "text/plain; charset=utf-8"
_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    414: "URI Too Long",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}


class Reply:
    """An answer, rendered once in every form in which it may be asked for: by how the connection goes on (closed; kept;
    kept although the client speaks HTTP/1.0), the head alone, and the pieces of head and body."""

    __slots__ = ("body", "get", "head", "status")

    def __init__(self, status: int, body: str, content_type: str = TEXT, extra: str = "") -> None:
        self.status, self.body = status, body
        data = body.encode()
        head = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {content_type}\r\n"
            f"Content-Length: {len(data)}\r\nCache-Control: no-store\r\n{extra}"
        )
        heads = [(head + how + "\r\n").encode() for how in ("Connection: close\r\n", "", "Connection: keep-alive\r\n")]
        self.head = tuple((form,) for form in heads)
        self.get = tuple((form, data) if len(data) >= _LARGE else (form + data,) for form in heads)


_ALLOW = Reply(405, "only GET and HEAD are served here", extra="Allow: GET, HEAD\r\n")
_ERRORS = {
    400: Reply(400, "this is not an HTTP request"),
    404: Reply(404, "not here: try /, /healthz, /readyz, /livez, /metrics or /status"),
    408: Reply(408, "the request took too long"),
    414: Reply(414, "the request line is too long"),
    431: Reply(431, "the headers are too large"),
    500: Reply(500, "the watchdog could not render this page; its log says why"),
    505: Reply(505, "only HTTP/1.0 and HTTP/1.1 are served here"),
}


class _Connection:
    """One client. deadline: when it has to have done what it is expected to do."""

    __slots__ = ("closing", "deadline", "draining", "fd", "held", "received", "socket", "waiting", "writing")

    def __init__(self, client: socket.socket, deadline: float) -> None:
        self.socket = client
        self.fd = client.fileno()
        self.received = b""
        self.waiting: list[bytes | memoryview] = []  # answers, the first maybe in part
        self.held = 0  # bytes of both
        self.writing = False  # nothing is read until its socket takes something
        self.deadline = deadline
        self.closing = False  # no request will be read any more
        self.draining = False  # all is said; what still arrives is thrown away


def listen(port: int, backlog: int = 1024) -> socket.socket:
    """A listening socket on all addresses: one for both families, or IPv4 only where there is no IPv6."""
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
        self._pages = pages
        self._failed = failed
        self._max = max_connections
        self._repairing = repairing
        self._epoll = epoll()
        # By the time of the last finished request, longest ago first: a dictionary keeps the order of insertion.
        self._connections: dict[int, _Connection] = {}
        # Those of which something is kept, longest first.
        self._holders: dict[int, _Connection] = {}
        self._held = 0
        self._sweep: Timer | None = None
        self._open()
        self._loop.watch_last(self._epoll.fileno(), self._turn)

    def __len__(self) -> int:
        return len(self._connections)

    def close(self) -> None:
        """Close everything at once."""
        self._loop.forget(self._epoll.fileno())
        for connection in list(self._connections.values()):
            self._drop(connection)
        self._listener.close()
        self._epoll.close()
        if self._sweep is not None:
            self._sweep.cancel()

    # --- whose turn it is ------------------------------------------------------------------------------------------

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
                elif fd in self._connections:
                    self._ready(self._connections[fd], kinds)
                if monotonic() >= end:
                    if repairing:
                        self._loop.forget(self._epoll.fileno())
                        self._loop.call_later(REST, self._resume)
                    return
            events = self._epoll.poll(0, _EVENTS_PER_TURN)

    def _resume(self) -> None:
        if not self._epoll.closed:
            self._loop.watch_last(self._epoll.fileno(), self._turn)

    # --- connections come and go -----------------------------------------------------------------------------------

    def _open(self) -> None:
        if self._listener.fileno() >= 0:
            self._epoll.register(self._listener.fileno(), EPOLLIN)

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                client, _address = self._listener.accept()
            except BlockingIOError:
                return
            except ConnectionError:  # gone again before it was accepted
                continue
            except OSError:
                # No descriptor or no memory left. The connection stays in the queue and the listener ready,
                # so going on at once would be an endless loop: make room, and pause when that is not enough.
                if not self._drop_oldest():
                    self._epoll.unregister(self._listener.fileno())
                    self._loop.call_later(_PAUSE, self._open)
                    return
                continue
            client.setblocking(False)
            if len(self._connections) >= self._max:
                self._drop_oldest()
            connection = _Connection(client, monotonic() + COMPLETE)
            self._connections[connection.fd] = connection
            self._epoll.register(connection.fd, EPOLLIN)
            if self._sweep is None:
                self._sweep = self._loop.call_later(_SWEEP, self._expire)
            # Most clients have sent their request by now: one round through epoll less.
            self._ready(connection, EPOLLIN)

    def _drop_oldest(self) -> bool:
        for connection in self._connections.values():
            self._drop(connection)
            return True
        return False

    def _drop(self, connection: _Connection) -> None:
        if self._connections.pop(connection.fd, None) is not None:
            self._epoll.unregister(connection.fd)
            connection.socket.close()
            connection.waiting, connection.received = [], b""
            self._account(connection)

    def _expire(self) -> None:
        now = monotonic()
        for connection in [each for each in self._connections.values() if each.deadline <= now]:
            if connection.received and not connection.closing:
                self._refuse(connection, _ERRORS[408])
            else:
                self._drop(connection)
        self._sweep = self._loop.call_later(_SWEEP, self._expire) if self._connections else None

    def _account(self, connection: _Connection) -> None:
        """What is kept for this client has changed. When it is too much for all, who has made us keep it longest goes.

        Answers of one page share its bytes, and are counted for each.
        """
        held = len(connection.received) + sum(map(len, connection.waiting))
        self._held += held - connection.held
        connection.held = held
        if held:
            self._holders.setdefault(connection.fd, connection)
        else:
            self._holders.pop(connection.fd, None)
        while self._held > MAX_HELD:
            self._drop(next(iter(self._holders.values())))

    # --- requests and answers --------------------------------------------------------------------------------------

    def _ready(self, connection: _Connection, events: int) -> None:
        try:
            if events & EPOLLOUT:
                self._send(connection, [])
            elif events & EPOLLIN:
                self._receive(connection)
            elif events & (EPOLLERR | EPOLLHUP):
                self._drop(connection)
        except BlockingIOError:
            return
        except OSError:  # the client has gone; which way does not matter
            self._drop(connection)

    def _receive(self, connection: _Connection) -> None:
        data = connection.socket.recv(_READ)
        if connection.draining:
            if not data:
                self._drop(connection)
            return
        if not data:
            # A client may close its sending half right after the request; that one was answered already.
            self._drop(connection)
            return
        if connection.received:
            data = connection.received + data
        self._answer(connection, data)

    def _answer(self, connection: _Connection, data: bytes) -> None:
        """Answer complete requests in `data`, in order and not too many; keep what is left."""
        answers: list[bytes | memoryview] = []
        size = count = 0
        while data and size < MAX_WAITING and count < _IN_A_ROW:
            found = split(data)
            if found is None:
                break
            request, taken = found
            data = data[taken:]
            answer = self._reply(request)
            answers += answer
            size += sum(map(len, answer))
            count += 1
            if not request.keep_alive:
                connection.closing = True
                data = b""
        begun = not connection.received
        connection.received = data
        if not answers:
            if begun:
                connection.deadline = monotonic() + COMPLETE  # its first byte: the request has to be complete by then
            self._account(connection)
            return
        connection.deadline = monotonic() + (COMPLETE if data else IDLE)
        # It finished a request: to the end of the queue of those that have to go.
        del self._connections[connection.fd]
        self._connections[connection.fd] = connection
        more = count == _IN_A_ROW or size >= MAX_WAITING
        self._send(connection, answers, more=bool(data) and more)

    def _reply(self, request: Request) -> tuple[bytes, ...]:
        if request.status != 200:
            return _ERRORS[request.status].get[0]
        form = 0 if not request.keep_alive else 2 if request.old else 1
        page = self._pages.get(request.path)
        if request.method not in (b"GET", b"HEAD"):
            reply = _ALLOW
        elif page is None:
            reply = _ERRORS[404]
        else:
            try:
                reply = page(request)
            except Exception as error:  # noqa: BLE001 - a page that cannot be rendered must not end the watchdog
                self._failed(f"{request.path.decode(errors='replace')}: {type(error).__name__}: {error}")
                reply = _ERRORS[500]
        return reply.head[form] if request.method == b"HEAD" else reply.get[form]

    def _refuse(self, connection: _Connection, reply: Reply) -> None:
        connection.closing = True
        connection.received = b""
        try:
            self._send(connection, [*reply.get[0]])
        except OSError:
            self._drop(connection)

    def _send(self, connection: _Connection, answers: list[bytes | memoryview], *, more: bool = False) -> None:
        """Send, or what does not fit into the socket's buffer: keep, and read nothing more until it is gone.

        more: there are complete requests left; when the socket takes something again, it is their turn.
        """
        before = connection.writing
        pieces = connection.waiting + answers
        sent = 0
        if pieces:
            try:
                sent = connection.socket.sendmsg(pieces[:_IN_A_ROW])
            except BlockingIOError:
                sent = 0
        connection.waiting = _rest(pieces, sent)
        if connection.waiting or more:
            if sent or not before:
                connection.deadline = monotonic() + TAKE
            if not before:
                connection.writing = True
                self._epoll.modify(connection.fd, EPOLLOUT)
            self._account(connection)
            return
        if before:
            connection.writing = False
            connection.deadline = monotonic() + IDLE
            self._epoll.modify(connection.fd, EPOLLIN)
        self._account(connection)
        if connection.closing:
            self._end(connection)
        elif before and connection.received:
            self._answer(connection, connection.received)

    def _end(self, connection: _Connection) -> None:
        """Close such that the client gets the answer.

        Closing a socket that holds unread data resets the connection, and a reset may overtake the answer:
        so the sending half is closed first, and what comes in is read for a moment.
        """
        connection.socket.shutdown(socket.SHUT_WR)
        connection.draining = True
        connection.deadline = monotonic() + LINGER
        self._receive(connection)


def _rest(pieces: list[bytes | memoryview], sent: int) -> list[bytes | memoryview]:
    """What is left of them, without a copy."""
    for number, piece in enumerate(pieces):
        if sent < len(piece):
            return [memoryview(piece)[sent:] if sent else piece, *pieces[number + 1 :]]
        sent -= len(piece)
    return []
