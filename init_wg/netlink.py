"""rtnetlink and generic netlink: the one place that talks to the kernel about links, addresses and routes.

Reading is the standard library's `struct` on the kernel's dumps (linux/rtnetlink.h): a check must be quick
and costs the watchdog's children nothing but this. Writing takes its messages from pyroute2, imported when
there is something to write. Of pyroute2 only the message classes are used, not IPRoute: importing that costs
100 ms instead of 35, it drops keywords that it does not know in silence, and its event loop is of no use to
a program that does one thing after the other.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from init_wg.errors import KernelError
from init_wg.state import DEFAULT, INET, INET6, Address, Route, Rule

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

NETLINK_ROUTE, NETLINK_GENERIC = 0, 16
_REQUEST, _ACK, _DUMP, _EXCLUSIVE_CREATE, _CREATE_REPLACE = 0x1, 0x4, 0x300, 0x600, 0x500
_ERROR, _DONE, _DUMP_INTERRUPTED = 0x2, 0x3, 0x10
_NEWLINK, _DELLINK, _GETLINK, _NEWADDR, _DELADDR, _GETADDR = 16, 17, 18, 20, 21, 22
_NEWROUTE, _DELROUTE, _GETROUTE, _NEWRULE, _DELRULE, _GETRULE = 24, 25, 26, 32, 33, 34
_NESTED = 0x3FFF  # the two highest bits of an attribute's type are flags
_AT_ONCE = 128  # requests whose acknowledgements fit into a socket's receive buffer
_HEADER = struct.Struct("=IHHII")
_KINDS = {1: "unicast", 2: "local", 3: "broadcast", 4: "anycast", 5: "multicast", 6: "blackhole", 7: "unreachable",
          8: "prohibit", 9: "throw"}  # fmt: skip
_ONLINK, _CLONED = 4, 0x200
_RULE_INVERT = 2
_NH_ID = 30  # RTA_NH_ID


class Interface(NamedTuple):
    """A link as the kernel has it; number is its interface index. kind is "" for loopback and hardware."""

    number: int
    name: str
    kind: str
    mtu: int
    up: bool


class InterfaceAddress(NamedTuple):
    """An address, and the index of its link; scope as in rtnetlink (0 universe, 253 link)."""

    link: int
    address: Address
    scope: int


class Snapshot(NamedTuple):
    """Everything rtnetlink knows that concerns us, read at one time."""

    interfaces: tuple[Interface, ...]
    addresses: tuple[InterfaceAddress, ...]
    routes: tuple[Route, ...]
    rules: tuple[Rule, ...]


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
        """The same for many, some hundred at a time: the errno of each, 0 for done."""
        codes: list[int] = []
        for at in range(0, len(bodies), _AT_ONCE):
            first = self._sequence + 1
            data = bytearray()
            for body in bodies[at : at + _AT_ONCE]:
                self._sequence += 1
                data += _HEADER.pack(_HEADER.size + len(body), message_type, flags | _REQUEST | _ACK, self._sequence, 0)
                data += body + bytes(-len(body) % 4)
            self._socket.send(data)
            while first <= self._sequence:
                for sequence, code in _acknowledgements(self._socket.recv(1 << 18)):
                    if sequence == first:
                        codes.append(code)
                        first += 1
        return codes

    def _send(self, message_type: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        length = _HEADER.size + len(body)
        self._socket.send(_HEADER.pack(length, message_type, flags | _REQUEST, self._sequence, 0) + body)

    def _receive(self) -> Iterator[tuple[int, int, bytes]]:
        while True:
            data = self._socket.recv(1 << 18)
            offset = 0
            while offset + _HEADER.size <= len(data):
                length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
                payload = data[offset + _HEADER.size : offset + length]
                offset += (length + 3) & ~3
                if sequence != self._sequence:
                    continue
                if kind in (_ERROR, _DONE):
                    code = -int.from_bytes(payload[:4], sys.byteorder, signed=True) if len(payload) >= 4 else 0
                    if code:
                        raise OSError(code, os.strerror(code))
                    return
                yield kind, flags, payload


def _acknowledgements(data: bytes) -> Iterator[tuple[int, int]]:
    """(sequence, errno) of each."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, _, sequence, _ = _HEADER.unpack_from(data, offset)
        if kind == _ERROR:
            yield sequence, -struct.unpack_from("=i", data, offset + _HEADER.size)[0]
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
        yield kind & _NESTED, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def number(data: bytes) -> int:
    """An unsigned number in the machine's byte order, of whatever width."""
    return int.from_bytes(data, sys.byteorder)


def text(data: bytes) -> str:
    """A string with the zero byte that ends it."""
    return data.split(b"\0", 1)[0].decode(errors="replace")


# --- reading -----------------------------------------------------------------------------------------------------


def snapshot(kernel: Socket) -> Snapshot:
    """Links, addresses, routes and rules of both families."""
    interfaces = tuple(map(_interface, kernel.dump(_GETLINK, bytes(16))))
    names = {interface.number: interface.name for interface in interfaces}
    return Snapshot(
        interfaces,
        tuple(map(_address, kernel.dump(_GETADDR, bytes(8)))),
        tuple(filter(None, (_route(data, names) for data in kernel.dump(_GETROUTE, bytes(12))))),
        tuple(map(_rule, kernel.dump(_GETRULE, bytes(12)))),
    )


def _interface(data: bytes) -> Interface:
    _, _, index, flags, _ = struct.unpack_from("=BxHiII", data)
    found = attributes(data, 16)
    info = attributes(found.get(18, b""))
    return Interface(index, text(found[3]), text(info.get(1, b"")), number(found.get(4, b"")), bool(flags & 1))


def _address(data: bytes) -> InterfaceAddress:
    family, length, _, scope, index = struct.unpack_from("=BBBBI", data)
    found = attributes(data, 8)
    own = found.get(2) or found.get(1, b"")  # IFA_LOCAL is ours; IFA_ADDRESS may be the other end's
    return InterfaceAddress(index, Address(family, _show(own), length), scope)


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
    kind_name = _KINDS.get(kind, str(kind))
    # RTA_SRC, RTA_NH_ID; 0 is no attribute's type: what the header has goes by it.
    other = [(kind, found[kind]) for kind in (2, _NH_ID) if kind in found]
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
        onlink=bool(flags & _ONLINK),
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
    # A mark of zero is not shown, but its mask is. 0 is no attribute's type: what the header has goes by it.
    mask = found[16] if 16 in found and (10 not in found or number(found[16]) != 0xFFFFFFFF) else b""
    if tos or mask or any(length not in (0, _bits(family)) for length in (to_length, from_length)):
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
        invert=bool(flags & _RULE_INVERT),
        suppress_prefix_length=None if suppress == 0xFFFFFFFF else suppress,
        action=action,
        other=tuple(other),
    )


def _show(packed: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def _bits(family: int) -> int:
    return 32 if family == INET else 128


# --- writing -----------------------------------------------------------------------------------------------------


def index(name: str) -> int:
    """The number of an interface. Raises OSError: ENODEV when there is none."""
    try:
        return socket.if_nametoindex(name)
    except OSError:  # libc's own leaves errno unset
        raise OSError(errno.ENODEV, f"no interface {name}") from None


def add_link(kernel: Socket, name: str, kind: str) -> None:
    """Create a link. Raises OSError: EOPNOTSUPP when the kernel has no such kind."""
    message = messages("rtnl.ifinfmsg").ifinfmsg()
    attrs = [("IFLA_IFNAME", name), ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", kind)]})]
    write(kernel, _NEWLINK, _EXCLUSIVE_CREATE, message, attrs)


def change_link(kernel: Socket, number: int, *, mtu: int | None = None, up: bool | None = None) -> None:
    """Set a link's MTU, or bring it up or down."""
    message = messages("rtnl.ifinfmsg").ifinfmsg()
    message["index"] = number
    if up is not None:
        message["change"], message["flags"] = 1, int(up)
    write(kernel, _NEWLINK, 0, message, [("IFLA_MTU", mtu)] if mtu is not None else [])


def delete_link(kernel: Socket, number: int) -> None:
    """Delete a link, and with it its addresses and routes."""
    message = messages("rtnl.ifinfmsg").ifinfmsg()
    message["index"] = number
    write(kernel, _DELLINK, 0, message, [])


def write_address(kernel: Socket, number: int, address: Address, *, add: bool) -> None:
    """Add or delete an address. Without duplicate detection: nobody else is on a point-to-point tunnel."""
    message = messages("rtnl.ifaddrmsg").ifaddrmsg()
    message["family"], message["prefixlen"], message["index"] = address.family, address.prefix_length, number
    message["flags"] = 0x02  # IFA_F_NODAD
    attrs = [("IFA_LOCAL", address.address), ("IFA_ADDRESS", address.address)]
    write(kernel, _NEWADDR if add else _DELADDR, _CREATE_REPLACE if add else 0, message, attrs)


def write_route(kernel: Socket, route: Route, *, add: bool) -> None:
    """Add or delete exactly this route. Raises OSError: EEXIST when an equal one is there."""
    kernel.request(_NEWROUTE if add else _DELROUTE, _EXCLUSIVE_CREATE if add else 0, _route_message(route))


def add_routes(kernel: Socket, routes: list[Route]) -> list[int]:
    """Add thousands of routes: the errno of each, 0 for done.

    pyroute2 encodes one of each shape, a hundred microseconds each; in the others only the destination differs.
    """
    templates: dict[Route, tuple[bytes, int]] = {}
    bodies = []
    for route in routes:
        address, length = route.destination.split("/")
        packed = socket.inet_pton(route.family, address)
        shape = route._replace(destination="")
        if not int(length):  # has no destination attribute
            bodies.append(_route_message(route))
            continue
        if shape not in templates:
            body = _route_message(route)
            templates[shape] = body, body.index(struct.pack("=HH", 4 + len(packed), 1) + packed, 12) + 4  # RTA_DST
        body, at = templates[shape]
        bodies.append(body[:1] + bytes([int(length)]) + body[2:at] + packed + body[at + len(packed) :])
    return kernel.requests(_NEWROUTE, _EXCLUSIVE_CREATE, bodies)


def _route_message(route: Route) -> bytes:
    message = messages("rtnl.rtmsg").rtmsg()
    destination, length = route.destination.split("/")
    message["family"], message["dst_len"] = route.family, int(length)
    message["table"] = route.table if route.table < 256 else 252  # RT_TABLE_COMPAT
    message["proto"], message["scope"] = route.protocol, route.scope
    message["type"] = next((value for value, name in _KINDS.items() if name == route.kind), 0) or int(route.kind)
    message["flags"] = _ONLINK if route.onlink else 0
    attrs: list[tuple[str, Any]] = [("RTA_TABLE", route.table)]
    shared = any(kind == _NH_ID for kind, _ in route.other)  # its device and gateway are a nexthop object's
    if int(length):
        attrs.append(("RTA_DST", destination))
    if route.metric:
        attrs.append(("RTA_PRIORITY", route.metric))
    if route.source:
        attrs.append(("RTA_PREFSRC", route.source))
    if route.device and not shared:
        attrs.append(("RTA_OIF", index(route.device)))
    if route.gateway and not shared:
        foreign = (":" in route.gateway) != (route.family == INET6)
        via = {"family": INET6 if route.family == INET else INET, "addr": route.gateway}
        attrs.append(("RTA_VIA", via) if foreign else ("RTA_GATEWAY", route.gateway))
    for kind, value in route.other:
        if not kind:
            message["src_len"], message["tos"] = value
    return _encoded(message, attrs) + _raw(route.other)


def write_rule(kernel: Socket, rule: Rule, *, add: bool) -> None:
    """Add or delete a rule. To be deleted, a foreign one must be named with all that it has (`other`): the kernel
    takes the first rule that has what is named, and none if a mask or the target of a goto is missing."""
    message = messages("rtnl.fibmsg").fibmsg()
    message["family"], message["action"] = rule.family, rule.action
    message["table"] = rule.table if rule.table < 256 else 252
    message["flags"] = _RULE_INVERT if rule.invert else 0
    attrs: list[tuple[str, Any]] = [("FRA_PRIORITY", rule.preference)]
    if rule.table:
        attrs.append(("FRA_TABLE", rule.table))
    if rule.mark is not None:
        attrs.append(("FRA_FWMARK", rule.mark))
    if rule.source:
        message["src_len"] = _bits(rule.family)
        attrs.append(("FRA_SRC", rule.source))
    if rule.destination:
        message["dst_len"] = _bits(rule.family)
        attrs.append(("FRA_DST", rule.destination))
    if rule.suppress_prefix_length is not None:
        attrs.append(("FRA_SUPPRESS_PREFIXLEN", rule.suppress_prefix_length))
    for kind, value in rule.other:
        if not kind:
            message["dst_len"], message["src_len"], message["tos"] = value[:3]
            attrs += [("FRA_FWMASK", number(value[3:]))] if value[3:] else []
    raw = _raw(rule.other)
    write(kernel, _NEWRULE if add else _DELRULE, _EXCLUSIVE_CREATE if add else 0, message, attrs, raw)


def _raw(other: tuple[tuple[int, bytes], ...]) -> bytes:
    """Attributes as they came from the kernel."""
    return b"".join(
        struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4) for kind, value in other if kind
    )


def write(
    kernel: Socket, message_type: int, flags: int, message: Any, attrs: list[tuple[str, Any]], raw: bytes = b""
) -> None:
    """Encode with pyroute2, send without. `raw`: attributes that go as they came."""
    kernel.request(message_type, flags, _encoded(message, attrs) + raw)


def _encoded(message: Any, attrs: list[tuple[str, Any]]) -> bytes:
    """A message without its netlink header. A name pyroute2 does not know raises here instead of being dropped."""
    known = {entry[-2] for entry in type(message).nla_map}  # of ([number,] name, type)
    unknown = {name for name, _ in attrs} - known
    if unknown:
        raise LookupError(f"pyroute2 has no attribute {', '.join(sorted(unknown))}")
    message["attrs"] = attrs
    message.encode()
    return bytes(message.data[_HEADER.size :])


def messages(name: str) -> Any:
    """pyroute2's module for one kind of message, without the rest of the package."""
    from importlib import import_module

    _without_package_init()
    return import_module(f"pyroute2.netlink.{name}")


def _without_package_init() -> None:
    """`pyroute2/__init__.py` imports all of pyroute2; its subpackages do not need it to have run."""
    from importlib.util import find_spec, module_from_spec

    if "pyroute2" in sys.modules:
        return
    spec = find_spec("pyroute2")
    if spec is None:
        raise KernelError("the Python package pyroute2 is not installed: use the image, or pip install init-wg")
    sys.modules["pyroute2"] = module_from_spec(spec)


def describe(error: OSError) -> str:
    """The kernel's errno for people, with what to do where that is known."""
    if error.errno in (errno.EPERM, errno.EACCES):
        return "permission denied: the container needs the capability NET_ADMIN (securityContext.capabilities.add)"
    return os.strerror(error.errno or 0)
