"""Links, addresses, routes and rules as the kernel has them (linux/rtnetlink.h). Standard library only."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

from init_wg.kernel.netlink import Socket, number, text
from init_wg.kernel.walk import attributes
from init_wg.model.snapshot import Interface, InterfaceAddress, Snapshot
from init_wg.model.state import DEFAULT, INET, INET6, Address, Route, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

KINDS = {1: "unicast", 2: "local", 3: "broadcast", 4: "anycast", 5: "multicast", 6: "blackhole", 7: "unreachable",
         8: "prohibit", 9: "throw"}  # fmt: skip
ONLINK, RULE_INVERT = 4, 2
_GETLINK, _GETADDR, _GETROUTE, _GETRULE = 18, 22, 26, 34
_CLONED, _PERMANENT = 0x200, 0x80  # RTM_F_CLONED, IFA_F_PERMANENT
NH_ID = 30  # RTA_NH_ID
PORT_RANGE, _PORT_MASK = 24, 29  # FRA_DPORT_RANGE, FRA_DPORT_MASK (Linux 6.15 shows a full one with any port)
# How the kernel begins a route's attributes, RTA_TABLE and RTA_DST, but for their values; and where these end.
_DESTINATION = {struct.pack("=HHHH", 8, 15, 4 + size, 1): 24 + size for size in (4, 16)}


def snapshot(kernel: Socket) -> Snapshot:
    """Links, addresses, routes and rules of both families."""
    interfaces = tuple(map(_interface, kernel.dump(_GETLINK, bytes(16))))
    names = {interface.number: interface.name for interface in interfaces}
    return Snapshot(
        interfaces,
        tuple(map(_address, kernel.dump(_GETADDR, bytes(8)))),
        tuple(_routes(kernel.dump(_GETROUTE, bytes(12)), names)),
        tuple(map(_rule, kernel.dump(_GETRULE, bytes(12)))),
    )


def _interface(data: bytes) -> Interface:
    _, _, index, flags, _ = struct.unpack_from("=BxHiII", data)
    found = attributes(data, 16)
    info = attributes(found.get(18, b""))
    return Interface(index, text(found[3]), text(info.get(1, b"")), number(found.get(4, b"")), bool(flags & 1))


def _address(data: bytes) -> InterfaceAddress:
    family, length, flags, scope, index = struct.unpack_from("=BBBBI", data)
    found = attributes(data, 8)
    own = found.get(2) or found.get(1, b"")  # IFA_LOCAL is ours; IFA_ADDRESS may be the other end's
    return InterfaceAddress(
        index, Address(family, _show(own), length), scope, announced=family == INET6 and not flags & _PERMANENT
    )


def _routes(messages: Iterable[bytes], names: dict[int, str]) -> Iterator[Route]:
    """Of thousands, most differ in nothing but the destination: what else they say is read once."""
    shapes: dict[bytes, Route | None] = {}
    for data in messages:
        end = _DESTINATION.get(data[12:16] + data[20:24], 0)
        shape = data[:1] + data[2:24] + data[end:] if end else data  # the second byte is the destination's length
        if shape not in shapes:
            shapes[shape] = _route(data, names)
        if route := shapes[shape]:
            destination = f"{_show(data[24:end])}/{data[1]}" if end else route.destination
            yield Route._make((*route[:2], destination, *route[3:]))


def _route(data: bytes, names: dict[int, str]) -> Route | None:
    family, length, from_length, tos, table, protocol, scope, kind, flags = struct.unpack_from("=BBBBBBBBI", data)
    if family not in (INET, INET6) or flags & _CLONED:
        return None
    found = attributes(data, 12)
    table = number(found[15]) if 15 in found else table
    hop = found
    if 9 in found:  # RTA_MULTIPATH: the first hop stands for all
        size, flags, _, index = struct.unpack_from("=HBBi", found[9])
        hop = {4: struct.pack("=i", index), **attributes(found[9][:size], 8)}
    kind_name = KINDS.get(kind, str(kind))
    # RTA_SRC, RTANH_ID; 0 is no attribute's type: what the header has goes by it.
    other = [(kind, found[kind]) for kind in (2, NH_ID) if kind in found]
    if from_length or tos:
        other.append((0, bytes([from_length, tos])))
    gateway = _show(hop[5]) if 5 in hop else _show(hop[18][2:]) if 18 in hop else None
    return Route(
        family=family,
        table=table,
        destination=f"{_show(found[1])}/{length}" if 1 in found else DEFAULT[family],
        # The kernel shows IPv6's unreachable routes on "lo", and IPv4's on nothing.
        device=names.get(number(hop[4])) if 4 in hop and kind_name == "unicast" else None,
        gateway=gateway,
        kind=kind_name,
        source=_show(found[7]) if 7 in found else None,
        metric=number(found.get(6, b"")),
        scope=scope,
        onlink=bool(flags & ONLINK),
        protocol=protocol,
        other=tuple(other),
    )


def _rule(data: bytes) -> Rule:
    family, to_length, from_length, tos, table, _, _, action, flags = struct.unpack_from("=BBBBBBBBI", data)
    found = attributes(data, 12)
    destination, source = found.get(1), found.get(2)
    suppress = number(found.get(14, b"\xff\xff\xff\xff"))
    # What follows is modelled; the protocol (who made it) and "suppress nothing" are no selectors.
    known = {1, 2, 6, 10, 13, 14, 15, 16, 21}
    other = [(kind, value) for kind, value in sorted(found.items()) if kind not in known]
    port = _port(found)
    if port is not None:
        other = [(kind, value) for kind, value in other if kind not in (PORT_RANGE, _PORT_MASK)]
    # A mark of zero is not shown, but its mask is. 0 is no attribute's type: what the header has goes by it.
    mask = found[16] if 16 in found and (10 not in found or number(found[16]) != 0xFFFFFFFF) else b""
    if tos or mask or any(length not in (0, bits(family)) for length in (to_length, from_length)):
        other.append((0, bytes([to_length, from_length, tos]) + mask))
    if number(found.get(13, b"\xff\xff\xff\xff")) != 0xFFFFFFFF:
        other.append((13, found[13]))
    return Rule(
        family=family,
        preference=number(found.get(6, b"")),
        table=number(found[15]) if 15 in found else table,
        source=_show(source) if source else None,
        destination=_show(destination) if destination else None,
        mark=number(found[10]) if 10 in found else None,
        invert=bool(flags & RULE_INVERT),
        suppress_prefix_length=None if suppress == 0xFFFFFFFF else suppress,
        port=port,
        action=action,
        other=tuple(other),
    )


def _port(found: dict[int, bytes]) -> int | None:
    """The one destination port that a rule names; None when it names none, or several."""
    first, last = struct.unpack("=HH", found.get(PORT_RANGE, bytes(4)))
    return first if first == last and first and found.get(_PORT_MASK, b"\xff\xff") == b"\xff\xff" else None


def _show(packed: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def bits(family: int) -> int:
    """The length of an address."""
    return 32 if family == INET else 128
