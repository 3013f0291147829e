"""Netlink itself: a socket that dumps and requests (linux/netlink.h).

The standard library's `struct` is enough to read the kernel: a check must be quick, and costs the watchdog and its
children nothing but this. Links, addresses, routes and rules are encoded elsewhere: see rtnetlink_write.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from typing import TYPE_CHECKING, Self

from init_wg.errors import KernelError
from init_wg.kernel import walk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

NETLINK_ROUTE, NETLINK_NETFILTER, NETLINK_GENERIC = 0, 12, 16
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_DUMP_INTERRUPTED = 0x10
_NESTED = 0x8000  # NLA_F_NESTED: without it the kernel refuses an attribute that is made of attributes
_GET_GENERATION = 10 << 8 | 16  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETGEN
_AT_ONCE = 128  # requests: were all of them refused, the answers would still fit into a socket's receive buffer


class Socket:
    """A netlink socket: dumps, and requests that are acknowledged."""

    def __init__(self, protocol: int = NETLINK_ROUTE) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.bind((0, 0))
        self._socket.settimeout(10)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def dump(self, message_type: int, body: bytes) -> list[bytes]:
        """All answers to a dump, without their headers. One that the kernel interrupted is asked for again."""
        for _ in range(20):
            self._send(message_type, _DUMP, body)
            answers, interrupted = [], False
            for _type, flags, payload in self._receive():
                interrupted |= bool(flags & _DUMP_INTERRUPTED)
                answers.append(payload)
            if not interrupted:
                return answers
        raise KernelError("the network changes faster than it can be read; something in this pod is rewriting it")

    def exchange(self, message_type: int, body: bytes) -> list[bytes]:
        """The answers to one question. Raises OSError with the kernel's errno."""
        self._send(message_type, _ACK, body)
        return [payload for _, _, payload in self._receive()]

    def request(self, message_type: int, flags: int, body: bytes) -> None:
        """Ask for a change. Raises OSError with the kernel's errno."""
        self._send(message_type, flags | _ACK, body)
        list(self._receive())

    def requests(self, message_type: int, flags: int, bodies: list[bytes]) -> list[int]:
        """The same for many, some hundred at a time: the errno of each, 0 for done.

        Only the last of a batch is acknowledged: the kernel does one after the other, and tells errors unasked.
        """
        codes: dict[int, int] = {}
        first = self._sequence + 1
        for at in range(0, len(bodies), _AT_ONCE):
            batch = bodies[at : at + _AT_ONCE]
            last = self._sequence + len(batch)
            data = bytearray()
            for body in batch:
                self._sequence += 1
                asked = flags | _REQUEST | (_ACK if self._sequence == last else 0)
                data += walk.HEADER.pack(walk.HEADER.size + len(body), message_type, asked, self._sequence, 0)
                data += body + bytes(-len(body) % 4)
            self._socket.send(data)
            while last not in codes:
                codes.update(_answers(self._socket.recv(1 << 18)))
        return [codes.get(sequence, 0) for sequence in range(first, self._sequence + 1)]

    def _send(self, message_type: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        length = walk.HEADER.size + len(body)
        self._socket.send(walk.HEADER.pack(length, message_type, flags | _REQUEST, self._sequence, 0) + body)

    def _receive(self) -> Iterator[tuple[int, int, bytes]]:
        while True:
            for kind, flags, sequence, _, payload in walk.messages(self._socket.recv(1 << 18)):
                if sequence != self._sequence:
                    continue
                if kind in (walk.ERROR, walk.DONE):
                    if code := walk.error_number(payload):
                        raise OSError(code, os.strerror(code))
                    return
                yield kind, flags, payload


def generation() -> int:
    """nftables' generation: another number after every change by anyone. Three microseconds.

    Raises OSError (no NET_ADMIN, no nf_tables).
    """
    with Socket(NETLINK_NETFILTER) as kernel:
        answers = kernel.exchange(_GET_GENERATION, bytes(4))
    return int.from_bytes(walk.attributes(answers[0], 4).get(1, b""), "big") if answers else 0


def _answers(data: bytes) -> Iterator[tuple[int, int]]:
    """(sequence, errno) of each acknowledgement (0) and each error."""
    for kind, _, sequence, _, payload in walk.messages(data):
        if kind == walk.ERROR:
            yield sequence, walk.error_number(payload)


def nested(kind: int, *parts: bytes) -> bytes:
    """An attribute that is made of attributes."""
    return walk.attribute(_NESTED | kind, b"".join(parts))


def number(data: bytes) -> int:
    """An unsigned number in the machine's byte order, of whatever width."""
    return int.from_bytes(data, sys.byteorder)


def text(data: bytes) -> str:
    """A string with the zero byte that ends it."""
    return data.split(b"\0", 1)[0].decode(errors="replace")


def index(name: str) -> int:
    """The number of an interface. Raises OSError: ENODEV when there is none."""
    try:
        return socket.if_nametoindex(name)
    except OSError:  # libc's own leaves errno unset
        raise OSError(errno.ENODEV, f"no interface {name}") from None


def describe(error: OSError) -> str:
    """The kernel's errno for people, with what to do where that is known."""
    if error.errno in (errno.EPERM, errno.EACCES):
        return "permission denied: the container needs the capability NET_ADMIN (securityContext.capabilities.add)"
    return os.strerror(error.errno or 0)
