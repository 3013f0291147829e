"""What answers on the lab's internet, one small process per member: only the standard library, no threads.

    python services.py <what>:<address>:<port> ...     (an IPv6 address in brackets)

http    answers any request with the client's address as seen here; /json as am.i.mullvad.net does
echo    UDP: sends the client's address back
stream  TCP: keeps the connection, swallows what comes, and sends a line every PUSH seconds of its own accord
push    UDP: the same for datagrams; whoever wrote once is written to until this ends
dns     answers A and AAAA from the file $LAB_ZONE (name -> addresses, "*" for others outside of cluster.local), logs to
        $LAB_QUERIES
loose   sends TCP segments of a connection that neither end knows to the address and port given (raw sockets)

Prints "ready" when all sockets are open, so nobody needs to guess.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

PUSH = 0.02
PUSHED = b"init-wg-probe:pushed-by-the-server;"
LOOSE_PORT = 9002  # where loose segments claim to come from
REMEMBERED = 64  # flows a pusher keeps going: the latest ones

selector = selectors.DefaultSelector()
pushers: list[Callable[[], None]] = []


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def bound(kind: socket.SocketKind, address: str, port: int) -> socket.socket:
    opened = socket.socket(family_of(address), kind)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if opened.family == socket.AF_INET6:
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if kind == socket.SOCK_STREAM:
        # What a plain pod's probes leave half-open must not fill the backlog with lingering connections.
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    opened.bind((address, port))
    opened.setblocking(False)
    if kind == socket.SOCK_STREAM:
        opened.listen(512)
    return opened


def close(connection: socket.socket) -> None:
    selector.unregister(connection)
    connection.close()


def http(address: str, port: int) -> None:
    listener = bound(socket.SOCK_STREAM, address, port)

    def answer(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            request = connection.recv(4096)
            if request:
                client = connection.getpeername()[0]
                tunnelled = client in os.environ.get("LAB_EXITS", "").split()
                body = json.dumps({"ip": client, "mullvad_exit_ip": tunnelled}) if b"/json" in request else client
                kind = "application/json" if b"/json" in request else "text/plain"
                head = f"HTTP/1.0 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body) + 1}\r\n\r\n"
                connection.send(f"{head}{body}\n".encode())
                connection.shutdown(socket.SHUT_WR)
                return  # the client closes; its end of file comes back here
        close(connection)

    def accept() -> None:
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            connection.setblocking(False)
            selector.register(connection, selectors.EVENT_READ, lambda: answer(connection))

    selector.register(listener, selectors.EVENT_READ, accept)


def echo(address: str, port: int) -> None:
    server = bound(socket.SOCK_DGRAM, address, port)

    def answer() -> None:
        with contextlib.suppress(OSError):
            _, client = server.recvfrom(65535)
            server.sendto(client[0].encode(), client)

    selector.register(server, selectors.EVENT_READ, answer)


def stream(address: str, port: int) -> None:
    listener = bound(socket.SOCK_STREAM, address, port)
    connections: deque[socket.socket] = deque()

    def swallow(connection: socket.socket) -> None:
        try:
            more = connection.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            more = b""
        if not more:
            connections.remove(connection)
            close(connection)

    def accept() -> None:
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connections.append(connection)
            selector.register(connection, selectors.EVENT_READ, lambda: swallow(connection))
            if len(connections) > REMEMBERED:
                close(connections.popleft())

    def push() -> None:
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.send(PUSHED)

    selector.register(listener, selectors.EVENT_READ, accept)
    pushers.append(push)


def push(address: str, port: int) -> None:
    server = bound(socket.SOCK_DGRAM, address, port)
    clients: dict[tuple[str, int], None] = {}

    def remember() -> None:
        with contextlib.suppress(OSError):
            _, client = server.recvfrom(65535)
            clients.pop(client, None)  # to the end of the line
            clients[client] = None
            if len(clients) > REMEMBERED:
                del clients[next(iter(clients))]

    def send() -> None:
        for client in clients:
            with contextlib.suppress(OSError):
                server.sendto(PUSHED, client)

    selector.register(server, selectors.EVENT_READ, remember)
    pushers.append(send)


def dns(address: str, port: int) -> None:
    zone_file = Path(os.environ["LAB_ZONE"])
    log = Path(os.environ["LAB_QUERIES"]).open("a", buffering=1)  # noqa: SIM115  # for the life of this process
    zone: dict[str, list[str]] = {}
    read_at = 0

    def fitting(query: bytes, response: bytes) -> bytes:
        """By UDP: cut off after the question, and marked so, if longer than the client takes (RFC 1035, RFC 6891)."""
        question = query.index(0, 12) + 5
        has_option = query[10:12] == b"\0\1" and query[question : question + 3] == b"\0\0\x29"
        limit = max(512, struct.unpack_from("!H", query, question + 3)[0]) if has_option else 512
        if len(response) <= limit:
            return response
        return response[:2] + struct.pack("!HHHHH", 0x8380, 1, 0, 0, 0) + response[12:question]

    def reply(query: bytes, client: str) -> bytes:
        nonlocal zone, read_at
        if (changed := zone_file.stat().st_mtime_ns) != read_at:
            zone, read_at = json.loads(zone_file.read_text()), changed
        labels, position = [], 12
        while length := query[position]:
            labels.append(query[position + 1 : position + 1 + length].decode("ascii", "replace"))
            position += 1 + length
        (kind,) = struct.unpack_from("!H", query, position + 1)
        name = ".".join(labels).lower()
        log.write(f"{address} {client} {name} {kind}\n")
        answers = b""
        count = 0
        # The cluster's domain is no wildcard, or every search list would end in it.
        known = name in zone or not name.endswith(".cluster.local")
        for text in zone.get(name, zone.get("*", []) if known else []):
            data = ip_address(text).packed
            if kind == {4: 1, 16: 28}[len(data)]:
                answers += struct.pack("!HHHIH", 0xC00C, kind, 1, 1, len(data)) + data
                count += 1
        return (
            query[:2]
            + struct.pack("!HHHHH", 0x8180 if known else 0x8183, 1, count, 0, 0)
            + query[12 : position + 5]
            + answers
        )

    server = bound(socket.SOCK_DGRAM, address, port)
    listener = bound(socket.SOCK_STREAM, address, port)

    def answer() -> None:
        with contextlib.suppress(OSError, IndexError, struct.error):  # whatever is no query gets no answer
            query, client = server.recvfrom(4096)
            server.sendto(fitting(query, reply(query, client[0])), client)

    def answer_tcp(connection: socket.socket) -> None:
        with contextlib.suppress(OSError, IndexError, struct.error):
            if query := connection.recv(4096)[2:]:
                response = reply(query, connection.getpeername()[0])
                connection.send(struct.pack("!H", len(response)) + response)
                return
        close(connection)

    def accept() -> None:
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            connection.setblocking(False)
            selector.register(connection, selectors.EVENT_READ, lambda: answer_tcp(connection))

    selector.register(server, selectors.EVENT_READ, answer)
    selector.register(listener, selectors.EVENT_READ, accept)


def loose(address: str, port: int) -> None:
    raw = socket.socket(family_of(address), socket.SOCK_RAW, socket.IPPROTO_TCP)
    probe = socket.socket(family_of(address), socket.SOCK_DGRAM)
    probe.connect((address, port))
    source, target = ip_address(probe.getsockname()[0]).packed, ip_address(address).packed
    probe.close()
    flags_ack_push = 0x18

    def checksum(segment: bytes) -> int:
        pseudo = (
            source + target + struct.pack("!II", len(segment), socket.IPPROTO_TCP)
        )  # sums up alike for both families
        data = pseudo + segment + b"\0" * (len(segment) % 2)
        total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        return 0xFFFF - total

    sequence = 1_000_000

    def send() -> None:
        nonlocal sequence
        sequence += len(PUSHED)
        head = struct.pack("!HHIIBBHHH", LOOSE_PORT, port, sequence, 4711, 0x50, flags_ack_push, 1024, 0, 0)
        head = head[:16] + struct.pack("!H", checksum(head + PUSHED)) + head[18:]
        with contextlib.suppress(OSError):
            raw.sendto(head + PUSHED, (address, 0))

    pushers.append(send)


def main() -> None:
    kinds = {"http": http, "echo": echo, "stream": stream, "push": push, "dns": dns, "loose": loose}
    for argument in sys.argv[1:]:
        kind, _, where = argument.partition(":")
        address, _, port = where.rpartition(":")
        kinds[kind](address.strip("[]"), int(port))
    print("ready", flush=True)
    next_push = time.monotonic()
    while True:
        timeout = None
        if pushers:
            timeout = next_push - time.monotonic()
            if timeout <= 0:
                for pusher in pushers:
                    pusher()
                next_push = time.monotonic() + PUSH
                timeout = PUSH
        for key, _ in selector.select(timeout):
            if isinstance(key.fileobj, socket.socket) and key.fileobj.fileno() >= 0:  # not closed earlier in this round
                key.data()


if __name__ == "__main__":
    main()
