"""The kernel's own wake-ups: links, addresses, routes and rules of both families, and nftables' generations.

An event says that something may have changed, and sometimes who did it. The present state is read from the
kernel (facts.py), never deduced: events get lost (ENOBUFS), and some changes have none (the IPv4 default route
of a link that goes down disappears in silence).
"""

from __future__ import annotations

import errno
import socket
from typing import NamedTuple

from init_wg.kernel.walk import attributes, messages

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_NETLINK_ROUTE, _NETLINK_NETFILTER = 0, 12
#: RTNLGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV4_RULE, _IPV6_IFADDR, _IPV6_ROUTE, _IPV6_RULE, _IPV4_NETCONF and
#: _IPV6_NETCONF (linux/rtnetlink.h). The last two tell that a sysctl has changed what is forwarded.
_ROUTE_GROUPS = (1, 5, 7, 8, 9, 11, 19, 24, 25)
_NFTABLES_GROUPS = (7,)  # NFNLGRP_NFTABLES
_NEW_GENERATION = 10 << 8 | 15  # NFNL_SUBSYS_NFTABLES, NFT_MSG_NEWGEN
_GENERATION_PID, _GENERATION_NAME = 2, 3  # NFTA_GEN_PROC_PID, NFTA_GEN_PROC_NAME
_RTM_FIRST = 16
_PIDS = 1 << 22  # no process number is larger (linux/threads.h: PID_MAX_LIMIT)
_RECEIVE_BUFFER = 1 << 20
_SO_RCVBUFFORCE = 33
_DATAGRAMS_PER_TURN = 256


class Author(NamedTuple):
    """The process that made a change; pid 0 is the kernel itself, or nobody knows."""

    pid: int
    name: str


class Batch(NamedTuple):
    """All that arrived at once. lost: there was more, and nobody knows what."""

    messages: int
    lost: bool
    authors: tuple[Author, ...]


class Events:
    """The two sockets on which the kernel tells of changes in this network namespace."""

    def __init__(self) -> None:
        self.sockets = [_subscribe(_NETLINK_ROUTE, _ROUTE_GROUPS)]
        #: How many links, addresses, routes and rules were taken away, as far as was read.
        self.deletions = 0
        #: Why nftables' events are not available, "" when they are.
        self.without_nftables = ""
        try:
            self.sockets.append(_subscribe(_NETLINK_NETFILTER, _NFTABLES_GROUPS))
        except OSError as error:
            self.without_nftables = error.strerror or str(error)

    def read(self, fd: int) -> Batch:
        """Everything that waits on one of the sockets, without blocking."""
        source = next((each for each in self.sockets if each.fileno() == fd), None)
        messages, lost = 0, False
        authors: dict[Author, None] = {}
        for _ in range(_DATAGRAMS_PER_TURN if source else 0):
            try:
                data = source.recv(1 << 16)  # type: ignore[union-attr]
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                lost = True
                continue
            count, found = parse(data)
            self.deletions += deletions(data)
            messages += count
            authors.update(dict.fromkeys(found))
        return Batch(messages, lost, tuple(authors))

    def close(self) -> None:
        """Unsubscribe."""
        for each in self.sockets:
            each.close()


def _subscribe(protocol: int, groups: Iterable[int]) -> socket.socket:
    kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
    try:
        try:
            kernel.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        except OSError:  # a capability in the first user namespace is needed; the usual limit must do
            kernel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        kernel.bind((0, sum(1 << (group - 1) for group in groups)))
    except OSError:
        kernel.close()
        raise
    return kernel


def parse(data: bytes) -> tuple[int, list[Author]]:
    """One datagram: how many messages it has, and who made them. Never raises. Pure."""
    count = 0
    authors: list[Author] = []
    for kind, _, _, port, payload in messages(data):
        count += 1
        if kind == _NEW_GENERATION:
            authors.append(_generation_author(payload))
        elif _RTM_FIRST <= kind < 256 and port:
            # The port of whoever asked for the change. Programs let the kernel choose it: the process number for
            # a first socket, a negative number for further ones.
            authors.append(Author(port if port < _PIDS else 0, ""))
    return count, authors


def deletions(data: bytes) -> int:
    """How many messages of a datagram tell that something was taken away: RTM_DELLINK, ADDR, ROUTE, RULE. Pure."""
    return sum(kind in (17, 21, 25, 33) for kind, *_ in messages(data))


def _generation_author(payload: bytes) -> Author:
    found = attributes(payload, 4)
    name = found.get(_GENERATION_NAME, b"").split(b"\0", 1)[0].decode(errors="replace")
    return Author(int.from_bytes(found.get(_GENERATION_PID, b""), "big"), name)


def named(author: Author) -> Author:
    """With the process's name, while it still runs and can be seen from here."""
    if author.name or not author.pid:
        return author
    try:
        with open(f"/proc/{author.pid}/comm", encoding="utf-8", errors="replace") as file:
            return author._replace(name=file.read().strip())
    except OSError:
        return author
