"""Netlink itself: a socket that dumps and requests, and the attributes in its messages (linux/netlink.h).

The standard library's `struct` is enough to read the kernel: a check must be quick, and costs the watchdog and its
children nothing but this. Links, addresses, routes and rules are encoded elsewhere: see rtchange.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from typing import TYPE_CHECKING, Self

from init_wg.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

NETLINK_ROUTE, NETLINK_NETFILTER, NETLINK_GENERIC = 0, 12, 16
HEADER = struct.Struct("=IHHII")
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_ERROR, _DONE, _DUMP_INTERRUPTED = 0x2, 0x3, 0x10
_NESTED = 0x8000  # NLA_F_NESTED: without it the kernel refuses an attribute that is made of attributes
_TYPE = 0x3FFF  # the two highest bits of an attribute's type are flags
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
                data += HEADER.pack(HEADER.size + len(body), message_type, asked, self._sequence, 0)
                data += body + bytes(-len(body) % 4)
            self._socket.send(data)
            while last not in codes:
                codes.update(_answers(self._socket.recv(1 << 18)))
        return [codes.get(sequence, 0) for sequence in range(first, self._sequence + 1)]

    def _send(self, message_type: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        length = HEADER.size + len(body)
        self._socket.send(HEADER.pack(length, message_type, flags | _REQUEST, self._sequence, 0) + body)

    def _receive(self) -> Iterator[tuple[int, int, bytes]]:
        while True:
            data = self._socket.recv(1 << 18)
            offset = 0
            while offset + HEADER.size <= len(data):
                length, kind, flags, sequence, _ = HEADER.unpack_from(data, offset)
                payload = data[offset + HEADER.size : offset + length]
                offset += (length + 3) & ~3
                if sequence != self._sequence:
                    continue
                if kind in (_ERROR, _DONE):
                    code = -int.from_bytes(payload[:4], sys.byteorder, signed=True) if len(payload) >= 4 else 0
                    if code:
                        raise OSError(code, os.strerror(code))
                    return
                yield kind, flags, payload


def generation() -> int:
    """nftables' generation: another number after every change by anyone. Three microseconds.

    Raises OSError (no NET_ADMIN, no nf_tables).
    """
    with Socket(NETLINK_NETFILTER) as kernel:
        answers = kernel.exchange(_GET_GENERATION, bytes(4))
    return int.from_bytes(attributes(answers[0], 4).get(1, b""), "big") if answers else 0


def _answers(data: bytes) -> Iterator[tuple[int, int]]:
    """(sequence, errno) of each acknowledgement (0) and each error."""
    offset = 0
    while offset + HEADER.size <= len(data):
        length, kind, _, sequence, _ = HEADER.unpack_from(data, offset)
        if kind == _ERROR:
            yield sequence, -struct.unpack_from("=i", data, offset + HEADER.size)[0]
        offset += (length + 3) & ~3


def attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """Type-length-value attributes as a dictionary; of a repeated type the last one."""
    return dict(attribute_list(data, offset))


def attribute_list(data: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """The same in order, for the lists in which every type is equal or means an index."""
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            return
        yield kind & _TYPE, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded so that another may follow."""
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def nested(kind: int, *parts: bytes) -> bytes:
    """An attribute that is made of attributes."""
    return attribute(_NESTED | kind, b"".join(parts))


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
