"""The health endpoint on real sockets: what it serves, and whom nobody can harm."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from tests.lab.patience import wait_until
from watchdog import limits
from watchdog.loop import Loop
from watchdog.web import clients as registry
from watchdog.web import server as module
from watchdog.web import talk
from watchdog.web.reply import Reply
from watchdog.web.request import Request
from watchdog.web.server import Server, listen

if TYPE_CHECKING:
    from pathlib import Path

GET = b"GET / HTTP/1.1\r\nHost: pod\r\n\r\n"
ACTIVE = "VPN is active"


class Endpoint:
    """A server in a thread of its own, which is how the kubelet sees it: from outside."""

    def __init__(self, max_connections: int = registry.MAX_CONNECTIONS) -> None:
        self.loop = Loop()
        self.reply = Reply(200, ACTIVE)
        self.failures: list[str] = []
        listener = listen(0)
        self.port = listener.getsockname()[1]
        pages: dict[bytes, Callable[[Request], Reply]] = {
            b"/": lambda _: self.reply,
            b"/large": lambda _: Reply(200, "x" * 1_000_000),
            b"/broken": self.broken,
        }
        self.repairs = False
        self.server = Server(self.loop, listener, pages, self.failures.append, max_connections, lambda: self.repairs)
        self.stopping = False
        self.turns = 0
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    @staticmethod
    def broken(_request: Request) -> Reply:
        raise ZeroDivisionError("a mistake")

    def serve(self) -> None:
        while not self.stopping:
            self.loop.turn(0.05)
            self.turns += 1
        self.server.close()
        self.loop.close()

    def close(self) -> None:
        self.stopping = True
        self.thread.join()

    def connect(self, address: str = "127.0.0.1", receive_buffer: int = 0) -> socket.socket:
        client = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        if receive_buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.settimeout(10)
        client.connect((address, self.port))
        return client

    def ask(self, data: bytes, address: str = "127.0.0.1") -> bytes:
        """Send, then read until the server closes."""
        with self.connect(address) as client:
            client.sendall(data)
            return read_all(client)

    def works(self) -> bool:
        return self.ask(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")).endswith(ACTIVE.encode())


def read_all(client: socket.socket) -> bytes:
    data = bytearray()
    with contextlib.suppress(ConnectionError):
        while more := client.recv(65536):
            data += more
    return bytes(data)


def read_one(client: socket.socket) -> bytes:
    """One response with a Content-Length."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = client.recv(65536)
        assert more
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    while len(body) < length:
        body += client.recv(65536)
    return head + b"\r\n\r\n" + body


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint()
    yield made
    made.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    """The same with all its patience in fractions of a second."""
    for name, seconds in (("IDLE", 0.4), ("COMPLETE", 0.3), ("TAKE", 0.3), ("LINGER", 0.2)):
        monkeypatch.setattr(talk, name, seconds)
    monkeypatch.setattr(module, "_SWEEP", 0.05)
    made = Endpoint()
    yield made
    made.close()


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_both_families_on_one_port(endpoint: Endpoint, address: str) -> None:
    if address == "::1" and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    answer = endpoint.ask(b"GET / HTTP/1.0\r\n\r\n", address)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\n" + ACTIVE.encode())


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as trial:
            trial.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_without_ipv6_it_serves_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket

    def no_ipv6(family: int = socket.AF_INET, *rest: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "no IPv6")
        return real(family, *rest)

    monkeypatch.setattr(socket, "socket", no_ipv6)
    with listen(0) as listener:
        assert listener.family == socket.AF_INET


def test_where_ipv6_is_switched_off_it_serves_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    real = module._bind  # noqa: SLF001

    def not_available(listener: socket.socket, address: str, port: int, backlog: int) -> socket.socket:
        if address == "::":
            listener.close()
            raise OSError(errno.EADDRNOTAVAIL, "no address")
        return real(listener, address, port, backlog)

    monkeypatch.setattr(module, "_bind", not_available)
    with listen(0) as listener:
        assert listener.family == socket.AF_INET


def test_a_port_in_use_is_an_error(endpoint: Endpoint) -> None:
    with pytest.raises(OSError, match="in use"):
        listen(endpoint.port)


def test_keep_alive(endpoint: Endpoint) -> None:
    with endpoint.connect() as client:
        for _ in range(3):
            client.sendall(GET)
            assert read_one(client).endswith(ACTIVE.encode())
        endpoint.reply = Reply(503, "VPN is not active: nothing heard")
        client.sendall(GET)
        assert read_one(client).startswith(b"HTTP/1.1 503 Service Unavailable\r\n")


def test_keep_alive_of_http_1_0_is_said(endpoint: Endpoint) -> None:
    with endpoint.connect() as client:
        for _ in range(2):
            client.sendall(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert b"Connection: keep-alive\r\n" in read_one(client)


def test_pipelining_in_order(endpoint: Endpoint) -> None:
    with endpoint.connect() as client:
        client.sendall((GET + GET.replace(b"/ ", b"/nothing ")) * 500 + GET.replace(b"GET", b"HEAD"))
        client.shutdown(socket.SHUT_WR)
        answers = read_all(client)
    assert answers.count(b"HTTP/1.1 200 OK") == 501
    assert answers.count(b"HTTP/1.1 404 Not Found") == 500
    assert answers.endswith(b"\r\n\r\n")


def test_pipelined_large_answers_are_all_given(endpoint: Endpoint) -> None:
    with endpoint.connect() as client:
        client.sendall(GET.replace(b"/ ", b"/large ") * 40)
        client.shutdown(socket.SHUT_WR)
        answers = read_all(client)
    assert answers.count(b"HTTP/1.1 200 OK") == 40
    assert len(answers) > 40_000_000


def test_head_has_the_length_and_no_body(endpoint: Endpoint) -> None:
    answer = endpoint.ask(b"HEAD / HTTP/1.0\r\n\r\n")
    assert answer.endswith(b"\r\n\r\n")
    assert b"Content-Length: %d\r\n" % len(ACTIVE) in answer


@pytest.mark.parametrize("method", [b"POST", b"PUT", b"DELETE", b"OPTIONS", b"BREW"])
def test_other_methods_are_not_allowed(endpoint: Endpoint, method: bytes) -> None:
    answer = endpoint.ask(method + b" / HTTP/1.0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 405 Method Not Allowed\r\n")
    assert b"\r\nAllow: GET, HEAD\r\n" in answer


def test_a_body_is_not_taken_for_a_request(endpoint: Endpoint) -> None:
    body = GET * 3
    answer = endpoint.ask(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"Connection: close" in answer


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01" + os.urandom(300), 400),
        (b"GET /" + b"a" * 5000, 414),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 9000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 5_000_000, 431),
        (b"GET / HTTP/3.0\r\n\r\n", 505),
        (b"GET /favicon.ico HTTP/1.0\r\n\r\n", 404),
        (b"GET /broken HTTP/1.0\r\n\r\n", 500),
    ],
)
def test_refusals_reach_the_client(endpoint: Endpoint, data: bytes, status: int) -> None:
    with endpoint.connect() as client:
        with contextlib.suppress(ConnectionError):  # it may be refused, and closed, before all of it is sent
            client.sendall(data)
        assert read_all(client).startswith(b"HTTP/1.1 %d " % status)
    assert endpoint.works()
    assert bool(endpoint.failures) == (status == 500)


def test_an_error_in_a_page_is_told_and_nothing_else_suffers(endpoint: Endpoint) -> None:
    endpoint.ask(b"GET /broken HTTP/1.0\r\n\r\n")
    assert endpoint.failures == ["/broken: ZeroDivisionError: a mistake"]


def test_a_client_that_sends_byte_by_byte_gets_its_answer(endpoint: Endpoint) -> None:
    with endpoint.connect() as client:
        for byte in GET:
            client.sendall(bytes([byte]))
        assert read_one(client).endswith(ACTIVE.encode())


def test_an_idle_client_is_dropped(impatient: Endpoint) -> None:
    with impatient.connect() as client:
        client.sendall(GET)
        read_one(client)
        assert client.recv(1) == b""


def test_a_client_that_never_says_anything_is_dropped(impatient: Endpoint) -> None:
    with impatient.connect() as client:
        assert client.recv(1) == b""


def test_a_request_that_never_ends_is_refused(impatient: Endpoint) -> None:
    with impatient.connect() as client:
        started = time.monotonic()
        with contextlib.suppress(OSError):
            for _ in range(100):  # a byte now and then does not buy time
                client.sendall(b"G")
                time.sleep(0.01)
        assert read_all(client).startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - started < 5


def test_a_client_that_does_not_read_is_dropped(impatient: Endpoint) -> None:
    with impatient.connect(receive_buffer=4096) as client:
        client.sendall(GET.replace(b"/ ", b"/large ") * 20)
        wait_until(lambda: len(impatient.server) == 1, "the server's clients")
        wait_until(lambda: len(impatient.server) == 0, "the server's clients")
    assert impatient.works()


def test_a_slow_reader_gets_everything(endpoint: Endpoint) -> None:
    with endpoint.connect(receive_buffer=4096) as client:
        client.sendall(b"GET /large HTTP/1.0\r\n\r\n")
        size = 0
        while more := client.recv(100_000):
            size += len(more)
            time.sleep(0.001)
            if size < 100_000:
                assert endpoint.works()  # others do not wait for it
    assert size > 1_000_000


def test_a_client_that_goes_away_in_the_middle(endpoint: Endpoint) -> None:
    for request in (b"GET /", GET.replace(b"/ ", b"/large ")):
        client = endpoint.connect()
        client.sendall(request)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close with a reset
        client.close()
    wait_until(lambda: len(endpoint.server) == 0, "the server's clients")
    assert endpoint.works()


def test_a_half_closed_client_gets_its_answer(endpoint: Endpoint) -> None:
    with endpoint.connect() as client:
        client.sendall(GET)
        client.shutdown(socket.SHUT_WR)
        assert read_all(client).endswith(ACTIVE.encode())


def test_a_thousand_idle_clients_and_one_more(endpoint: Endpoint) -> None:
    with many(endpoint, 1000), endpoint.connect() as client:
        wait_until(lambda: len(endpoint.server) == 1001, "the server's clients")
        for _ in range(100):
            client.sendall(GET)
            assert read_one(client).endswith(ACTIVE.encode())


@contextlib.contextmanager
def many(endpoint: Endpoint, count: int) -> Iterator[list[socket.socket]]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 2 * count + 200)), hard))
    clients: list[socket.socket] = []
    try:
        clients += [endpoint.connect() for _ in range(count)]
        yield clients
    finally:
        for client in clients:
            client.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_over_the_limit_the_one_goes_that_was_useless_for_longest() -> None:
    endpoint = Endpoint(max_connections=10)
    try:
        with many(endpoint, 10) as clients:
            wait_until(lambda: len(endpoint.server) == 10, "the server's clients")
            clients[0].sendall(GET)  # the first one works: now the second is the oldest idle one
            read_one(clients[0])
            with endpoint.connect() as client:
                client.sendall(GET)
                read_one(client)
                assert clients[1].recv(1) == b""
                clients[0].sendall(GET)
                assert read_one(clients[0])
            assert len(endpoint.server) <= 10
    finally:
        endpoint.close()


def test_without_file_descriptors_it_neither_spins_nor_dies(endpoint: Endpoint, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = [endpoint.connect() for _ in range(5)]
    wait_until(lambda: len(endpoint.server) == 5, "the server's clients")
    clients = [socket.socket() for _ in range(3)]
    open_now = len(os.listdir("/proc/self/fd"))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_now - 1, hard))
        for client in clients:
            client.settimeout(5)
            client.connect(("127.0.0.1", endpoint.port))
            client.sendall(GET)
        for client in clients:  # idle ones made room
            assert read_one(client).endswith(ACTIVE.encode())
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        time.sleep(0.1)
        before = endpoint.turns
        time.sleep(0.5)
        assert endpoint.turns - before < 100
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for client in (*held, *clients):
            client.close()
    wait_until(endpoint.works, "the server's clients")


def test_memory_is_flat_after_100_000_requests(endpoint: Endpoint) -> None:
    batch = GET * 500
    size = sum(map(len, endpoint.reply.get[1])) * 500

    def requests(count: int) -> None:
        with endpoint.connect() as client:
            for _ in range(count // 500):
                client.sendall(batch)
                left = size
                while left:
                    left -= len(client.recv(left))

    requests(5_000)
    gc.collect()
    before = resident()
    requests(100_000)
    gc.collect()
    assert resident() - before < 512  # KiB


def test_memory_is_flat_after_many_connections(endpoint: Endpoint) -> None:
    for _ in range(200):
        endpoint.works()
    before = resident()
    for _ in range(3000):
        assert endpoint.works()
    assert resident() - before < 512
    wait_until(lambda: len(endpoint.server) == 0, "the server's clients")


def resident() -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS:"))


def test_what_is_kept_for_all_clients_has_a_bound(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has made it keep something for the longest goes; those who read are served."""
    monkeypatch.setattr(registry, "MAX_HELD", 2_500_000)
    clients = [endpoint.connect(receive_buffer=4096) for _ in range(6)]
    try:
        for number, client in enumerate(clients):
            client.sendall(b"GET /large HTTP/1.0\r\n\r\n")
            wait_until(lambda number=number: len(endpoint.server) == 6 - max(0, number - 1), "the server's clients")  # type: ignore[misc]
            # In another thread, which counts first and drops then.
            wait_until(lambda: endpoint.server.clients.held <= 2_500_000, "no more is kept", 5)
        assert endpoint.works()
    finally:
        for client in clients:
            client.close()
    wait_until(lambda: endpoint.server.clients.held == 0, "the server's clients")


def test_half_requests_are_kept_within_the_same_bound(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "MAX_HELD", 50_000)
    clients = [endpoint.connect() for _ in range(20)]
    try:
        for client in clients:
            client.sendall(b"GET / HTTP/1.1\r\nX: " + b"x" * 8000)
        wait_until(lambda: len(endpoint.server) < 8, "the server's clients")
        assert endpoint.works()
    finally:
        for client in clients:
            client.close()


def test_many_requests_of_one_client_are_not_answered_in_one_go(endpoint: Endpoint) -> None:
    """Another one's turn comes in between; all are answered, in the end."""
    endpoint.repairs = True
    with endpoint.connect() as greedy:
        greedy.sendall(GET * 3000)
        started = time.monotonic()
        assert endpoint.works()
        assert time.monotonic() - started < 1
        greedy.shutdown(socket.SHUT_WR)
        assert read_all(greedy).count(b"HTTP/1.1 200 OK") == 3000


@pytest.mark.parametrize(("soft", "allowed"), [(1024, 896), (4096, 1200), (200, 72), (20, 8)])
def test_connections_leave_descriptors_for_repairs(monkeypatch: pytest.MonkeyPatch, soft: int, allowed: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, 4096))
    assert limits.connections(registry.MAX_CONNECTIONS) == allowed


def test_the_soft_limit_is_raised_as_far_as_needed_and_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: raised.append(limit))
    for now in ((1024, 524288), (1024, 2048), (1024, 1024), (65536, 65536), (1024, resource.RLIM_INFINITY)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, now=now: now)
        limits.raise_descriptors()
    assert raised == [(4096, 524288), (2048, 2048), (4096, resource.RLIM_INFINITY)]
