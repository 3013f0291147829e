""":9999 for everyone who asks: the kubelet, Prometheus, people. Part of the watchdog's one loop.

What a client can do to others is limited here: how many connections there are (the one that has been without a
finished request for the longest goes first), how long one may be idle, how long a request may take to arrive,
and how long an answer may wait to be taken. No client can make it wait, and none can make it grow.
"""

from __future__ import annotations

import errno
import socket
from select import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT
from time import monotonic

from watchdog.web.request import Request, split

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from watchdog.loop import Loop, Timer

#: Connections at one time. A thousand idle ones are borne, and cost a megabyte.
MAX_CONNECTIONS = 1200
#: Seconds a connection may be idle; to complete a request; to take an answer; to hear of a refusal.
IDLE, COMPLETE, TAKE, LINGER = 60.0, 10.0, 10.0, 1.0
#: Answers that may wait for one client, in bytes, before its next requests are left unread.
MAX_WAITING = 1 << 16
_READ = 1 << 14
_ACCEPTS_PER_TURN = 64
_SWEEP = 1.0
_PAUSE = 0.2

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
    """An answer, rendered once in every form in which it may be asked for."""

    __slots__ = ("body", "get", "head", "status")

    def __init__(self, status: int, body: str, content_type: str = TEXT, extra: str = "") -> None:
        self.status, self.body = status, body
        data = body.encode()
        head = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {content_type}\r\n"
            f"Content-Length: {len(data)}\r\nCache-Control: no-store\r\n{extra}"
        )
        # By how the connection goes on: closed; kept; kept although the client speaks HTTP/1.0.
        heads = [(head + how + "\r\n").encode() for how in ("Connection: close\r\n", "", "Connection: keep-alive\r\n")]
        self.head = tuple(heads)
        self.get = tuple(form + data for form in heads)


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

    __slots__ = ("closing", "deadline", "draining", "fd", "received", "socket", "waiting")

    def __init__(self, client: socket.socket, deadline: float) -> None:
        self.socket = client
        self.fd = client.fileno()
        self.received = b""
        self.waiting = b""
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
        listener.bind((address, port))
        listener.listen(backlog)
    except OSError:
        listener.close()
        raise
    return listener


class Server:
    """Serves `pages` (path -> a call that gives the reply) on a listening socket, inside the loop."""

    def __init__(
        self,
        loop: Loop,
        listener: socket.socket,
        pages: Mapping[bytes, Callable[[], Reply]],
        failed: Callable[[str], None],
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._pages = pages
        self._failed = failed
        self._max = max_connections
        # By the time of the last finished request, longest ago first: a dictionary keeps the order of insertion.
        self._connections: dict[int, _Connection] = {}
        self._sweep: Timer | None = None
        self._open()

    def __len__(self) -> int:
        return len(self._connections)

    def close(self) -> None:
        """Close everything at once."""
        self._loop.forget(self._listener.fileno())
        self._listener.close()
        for connection in list(self._connections.values()):
            self._drop(connection)
        if self._sweep is not None:
            self._sweep.cancel()

    # --- connections come and go -----------------------------------------------------------------------------------

    def _open(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.watch(self._listener.fileno(), EPOLLIN, self._accept)

    def _accept(self, _events: int) -> None:
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
                    self._loop.forget(self._listener.fileno())
                    self._loop.call_later(_PAUSE, self._open)
                    return
                continue
            client.setblocking(False)
            if len(self._connections) >= self._max:
                self._drop_oldest()
            connection = _Connection(client, monotonic() + COMPLETE)
            self._connections[connection.fd] = connection
            self._loop.watch(connection.fd, EPOLLIN, self._handler(connection))
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
            self._loop.forget(connection.fd)
            connection.socket.close()

    def _expire(self) -> None:
        now = monotonic()
        for connection in [each for each in self._connections.values() if each.deadline <= now]:
            if connection.received and not connection.closing:
                self._refuse(connection, _ERRORS[408])
            else:
                self._drop(connection)
        self._sweep = self._loop.call_later(_SWEEP, self._expire) if self._connections else None

    # --- requests and answers --------------------------------------------------------------------------------------

    def _handler(self, connection: _Connection) -> Callable[[int], None]:
        def ready(events: int) -> None:
            self._ready(connection, events)

        return ready

    def _ready(self, connection: _Connection, events: int) -> None:
        try:
            if events & EPOLLOUT:
                self._send(connection, b"")
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
        """Answer all complete requests in `data`, in order; keep what is left."""
        while True:
            answers: list[bytes] = []
            size = 0
            while data and size < MAX_WAITING:
                found = split(data)
                if found is None:
                    break
                request, taken = found
                data = data[taken:]
                answer = self._reply(request)
                answers.append(answer)
                size += len(answer)
                if not request.keep_alive:
                    connection.closing = True
                    data = b""
            if not answers:
                break
            connection.received = data
            connection.deadline = monotonic() + (COMPLETE if data else IDLE)
            # It finished a request: to the end of the queue of those that have to go.
            del self._connections[connection.fd]
            self._connections[connection.fd] = connection
            self._send(connection, answers[0] if len(answers) == 1 else b"".join(answers))
            if not data or connection.waiting:
                return  # what is left is answered when the client has taken this
        if not connection.received:
            connection.deadline = monotonic() + COMPLETE  # its first byte: the request has to be complete by then
        connection.received = data

    def _reply(self, request: Request) -> bytes:
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
                reply = page()
            except Exception as error:  # noqa: BLE001 - a page that cannot be rendered must not end the watchdog
                self._failed(f"{request.path.decode(errors='replace')}: {type(error).__name__}: {error}")
                reply = _ERRORS[500]
        return reply.head[form] if request.method == b"HEAD" else reply.get[form]

    def _refuse(self, connection: _Connection, reply: Reply) -> None:
        connection.closing = True
        connection.received = b""
        try:
            self._send(connection, reply.get[0])
        except OSError:
            self._drop(connection)

    def _send(self, connection: _Connection, answer: bytes) -> None:
        """Send, or what does not fit into the socket's buffer: keep, and read nothing more until it is gone."""
        had = bool(connection.waiting)
        answer = connection.waiting + answer if had else answer
        try:
            sent = connection.socket.send(answer)
        except BlockingIOError:
            sent = 0
        if sent < len(answer):
            connection.waiting = answer[sent:]
            if sent or not had:
                connection.deadline = monotonic() + TAKE
            if not had:
                self._loop.change(connection.fd, EPOLLOUT)
            return
        if had:
            connection.waiting = b""
            connection.deadline = monotonic() + IDLE
            self._loop.change(connection.fd, EPOLLIN)
        if connection.closing:
            self._end(connection)
        elif had and connection.received:
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
