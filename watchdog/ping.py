"""A question through the tunnel: is anyone there? Needs no capability, only a UDP socket.

Two kinds, both smaller than 80 bytes inside WireGuard:

- a DNS query for the root's name servers to the tunnel's own resolver, which answers whatever it thinks of it;
- a datagram whose time to live ends at the provider's first router, which answers "time exceeded" (ICMP).
  It never reaches anybody else. In a split tunnel it is aimed at a host that the peer's AllowedIPs cover.

Any answer shows as received bytes on the peer; and if nobody answers either, WireGuard itself does, within ten
seconds (KEEPALIVE_TIMEOUT). SO_BINDTODEVICE, allowed to anybody since Linux 5.7, keeps DNS queries in the tunnel
whatever the routes say; before that the kill-switch does. The datagram goes as an application's would: where that is
refused though it used to pass, or though one bound to the tunnel passes, somebody takes the pod's traffic away.
"""

from __future__ import annotations

import errno
import socket
from contextlib import suppress
from select import EPOLLIN

from . import targets
from .targets import NOWHERE, UNREACHED_PORT, Target

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .loop import Loop

#: ID 0x7764, one question: ". NS IN", recursion not wanted.
QUERY = bytes.fromhex("7764 0000 0001 0000 0000 0000 00 0002 0001")
_NAMES = {socket.AF_INET: "IPv4", socket.AF_INET6: "IPv6"}
_IP_RECVERR, _IPV6_RECVERR = 11, 25
_ICMP, _ICMP6 = 2, 3  # SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6


class Probe:
    """The sockets of one tunnel's questions, made anew when none of them works any more.

    `answered` is called in the loop when an answer came.
    """

    def __init__(self, loop: Loop, interface: str, answered: Callable[[], None]) -> None:
        self._loop = loop
        self._interface = interface.encode() + b"\0"
        self._answered = answered
        self._sockets: list[socket.socket] = []
        self._ordinary: list[socket.socket] = []
        self._questions: tuple[tuple[Target, ...], ...] = ()
        self._whole: set[int] = set()  # families of which an ordinary packet is sent
        self._entered: set[int] = set()  # families of which an ordinary packet has got into this tunnel
        #: Families of which an ordinary packet is refused that used to get into the tunnel, or does if it is bound to.
        self.refused: frozenset[str] = frozenset()

    def aim(self, resolvers: Iterable[str], networks: Iterable[str], others: Iterable[str]) -> None:
        """Ask these from now on: the tunnel's resolvers, and who is behind the peer of these AllowedIPs. The tunnel may
        be another one. See targets.choose."""
        self._entered.clear()
        questions = targets.choose(resolvers, networks, others)
        if questions != self._questions:
            self._questions = questions
            self._whole = {_family(target.address) for each in questions for target in each if target.ordinary}
            self.close()

    def ask(self) -> bool:
        """Send one question of each kind; returns whether any left.

        A local refusal (no route, no key for that address, the kill-switch) says nothing about the peer.
        """
        if self.refused:
            self.close()  # the ways may be others now; not sooner, for answers may still come
        if not self._sockets:
            self._open()
        sent = [each for each in self._sockets if _send(each)]
        entered = {each.family for each in sent if each in self._ordinary}
        self._entered |= entered
        self.refused = frozenset(
            name
            for family, name in _NAMES.items()
            if family in self._whole
            and family not in entered
            and (family in self._entered or self._enters_bound(family))
        )
        if not sent:
            self.close()
        return bool(sent)

    def close(self) -> None:
        """Give the sockets back; the next question makes new ones."""
        for each in self._sockets:
            self._loop.forget(each.fileno())
            each.close()
        self._sockets, self._ordinary = [], []

    def _ready(self, _events: int) -> None:
        # Each of them, also after a first answer: what is left in a queue keeps the socket ready.
        if any(list(map(_drain, self._sockets))):
            self._answered()

    def _open(self) -> None:
        for question in self._questions:
            for target in question:
                try:
                    made = self._connect(target)
                except OSError:  # no such family, no route, no interface just now; or the tunnel's own address
                    continue
                self._sockets.append(made)
                self._ordinary += [made] if target.ordinary else []
                self._loop.watch(made.fileno(), EPOLLIN, self._ready)
                break

    def _enters_bound(self, family: socket.AddressFamily) -> bool:
        """Does a packet get into the tunnel that is told by name to take it?"""
        try:
            with self._connect(Target(NOWHERE[family], UNREACHED_PORT, 1, ordinary=False)) as asker:
                return _send(asker)
        except OSError:
            return False

    def _connect(self, target: Target) -> socket.socket:
        """Raises OSError, also where the target is the tunnel's own address: that would answer by itself."""
        family = _family(target.address)
        made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            with suppress(PermissionError):  # before Linux 5.7 this takes NET_RAW
                if not target.ordinary:
                    made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self._interface)
            if family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, target.hops or 64)
            else:
                made.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
                made.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, target.hops or 64)
            made.connect((target.address, target.port))
        except OSError:
            made.close()
            raise
        if made.getsockname()[0] == target.address:
            made.close()
            raise OSError(errno.EADDRNOTAVAIL, "the tunnel's own address")
        return made


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _send(asked: socket.socket) -> bool:
    for _ in range(2):  # the first error may belong to the question before
        try:
            asked.send(QUERY)
        except OSError:
            continue
        return True
    return False


def _drain(asked: socket.socket) -> bool:
    answered = False
    for flags in (0, socket.MSG_ERRQUEUE):
        for _ in range(64):
            try:
                _, ancillary, _, _ = asked.recvmsg(2048, 256, flags)
            except BlockingIOError:
                break
            except OSError:  # the pending error of the socket; what it was stands in the queue
                continue
            answered |= not flags or any(_from_afar(data) for _level, _kind, data in ancillary)
    return answered


def _from_afar(error: bytes) -> bool:
    """A struct sock_extended_err (linux/errqueue.h): "time exceeded" or "port unreachable" from the network?

    The kill-switch's own refusal also arrives as an ICMP error, but as "prohibited".
    """
    origin, kind, code = error[4:7]
    return (origin, kind) in ((_ICMP, 11), (_ICMP6, 3)) or (origin, kind, code) in ((_ICMP, 3, 3), (_ICMP6, 1, 4))
