"""Links, addresses, routes and rules, changed: the one importer of pyroute2, which encodes the messages.

Only its message classes are used, not IPRoute: importing that costs 100 ms instead of 10. It drops keywords that it
does not know in silence, and its event loop is of no use to a program that does one thing after the other. It is
imported when there is something to write.
"""

from __future__ import annotations

import socket
import struct
import sys
from typing import TYPE_CHECKING, Any

from init_wg.errors import KernelError
from init_wg.kernel.netlink import index, number
from init_wg.kernel.rtnetlink_read import KINDS, NH_ID, ONLINK, PORT_RANGE, RULE_INVERT, bits
from init_wg.kernel.walk import HEADER, attribute
from init_wg.model.state import INET, INET6, Address, Route, Rule

if TYPE_CHECKING:
    from init_wg.kernel.netlink import Socket

_EXCLUSIVE_CREATE, _CREATE_REPLACE = 0x600, 0x500
_NEWLINK, _DELLINK, _NEWADDR, _DELADDR = 16, 17, 20, 21
_NEWROUTE, _DELROUTE, _NEWRULE, _DELRULE = 24, 25, 32, 33


def add_link(kernel: Socket, name: str, kind: str) -> None:
    """Create a link. Raises OSError: EOPNOTSUPP when the kernel has no such kind."""
    attrs = [("IFLA_IFNAME", name), ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", kind)]})]
    write(kernel, _NEWLINK, _EXCLUSIVE_CREATE, _link_message(0), attrs)


def change_link(kernel: Socket, number: int, *, mtu: int | None = None, up: bool | None = None) -> None:
    """Set a link's MTU, or bring it up or down."""
    message = _link_message(number)
    if up is not None:
        message["change"], message["flags"] = 1, int(up)
    write(kernel, _NEWLINK, 0, message, [("IFLA_MTU", mtu)] if mtu is not None else [])


def delete_link(kernel: Socket, number: int) -> None:
    """Delete a link, and with it its addresses and routes."""
    write(kernel, _DELLINK, 0, _link_message(number), [])


def _link_message(number: int) -> Any:
    """struct ifinfomsg (rtnetlink(7)) with the attributes that are used here. pyroute2 has the whole of it, with a
    plugin for every kind of link, and importing those takes as long as all else that is needed of pyroute2."""
    netlink = messages("")

    class info(netlink.nla):  # type: ignore[name-defined, misc]  # noqa: N801  # pyroute2 looks for it by this name
        nla_map = ((1, "IFLA_INFO_KIND", "asciiz"),)

    class link(netlink.nlmsg):  # type: ignore[name-defined, misc]  # noqa: N801
        fields = (("family", "H"), ("ifi_type", "H"), ("index", "i"), ("flags", "I"), ("change", "I"))
        nla_map = ((3, "IFLA_IFNAME", "asciiz"), (4, "IFLA_MTU", "uint32"), (18, "IFLA_LINKINFO", "info"))

    link.info = info
    message = link()
    message["index"] = number
    return message


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
    shapes: dict[tuple[Any, ...], tuple[bytes, bytes]] = {}
    bodies = []
    for route in routes:
        address, length = route.destination.split("/")
        if length == "0":  # has no destination attribute
            bodies.append(_route_message(route))
            continue
        packed = socket.inet_pton(route.family, address)
        shape = route[:2] + route[3:]  # all but the destination
        if shape not in shapes:
            body = _route_message(route)
            at = body.index(attribute(1, packed), 12) + 4  # RTA_DST
            shapes[shape] = body[2:at], body[at + len(packed) :]
        before, after = shapes[shape]
        bodies.append(bytes((route.family, int(length))) + before + packed + after)  # struct rtmsg begins with these
    return kernel.requests(_NEWROUTE, _EXCLUSIVE_CREATE, bodies)


def _route_message(route: Route) -> bytes:
    message = messages("rtnl.rtmsg").rtmsg()
    destination, length = route.destination.split("/")
    message["family"], message["dst_len"] = route.family, int(length)
    message["table"] = route.table if route.table < 256 else 252  # RT_TABLE_COMPAT
    message["proto"], message["scope"] = route.protocol, route.scope
    message["type"] = next((value for value, name in KINDS.items() if name == route.kind), 0) or int(route.kind)
    message["flags"] = ONLINK if route.onlink else 0
    attrs: list[tuple[str, Any]] = [("RTA_TABLE", route.table)]
    shared = any(kind == NH_ID for kind, _ in route.other)  # its device and gateway are a nexthop object's
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
    message["flags"] = RULE_INVERT if rule.invert else 0
    attrs: list[tuple[str, Any]] = [("FRA_PRIORITY", rule.preference)]
    if rule.table:
        attrs.append(("FRA_TABLE", rule.table))
    if rule.mark is not None:
        attrs.append(("FRA_FWMARK", rule.mark))
    if rule.source:
        message["src_len"] = bits(rule.family)
        attrs.append(("FRA_SRC", rule.source))
    if rule.destination:
        message["dst_len"] = bits(rule.family)
        attrs.append(("FRA_DST", rule.destination))
    if rule.suppress_prefix_length is not None:
        attrs.append(("FRA_SUPPRESS_PREFIXLEN", rule.suppress_prefix_length))
    for kind, value in rule.other:
        if not kind:
            message["dst_len"], message["src_len"], message["tos"] = value[:3]
            attrs += [("FRA_FWMASK", number(value[3:]))] if value[3:] else []
    raw = _raw(rule.other)
    if rule.port is not None:
        raw += attribute(PORT_RANGE, struct.pack("=HH", rule.port, rule.port))
    write(kernel, _NEWRULE if add else _DELRULE, _EXCLUSIVE_CREATE if add else 0, message, attrs, raw)


def _raw(other: tuple[tuple[int, bytes], ...]) -> bytes:
    """Attributes as they came from the kernel."""
    return b"".join(attribute(kind, value) for kind, value in other if kind)


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
    return bytes(message.data[HEADER.size :])


def messages(name: str) -> Any:
    """pyroute2's module for one kind of message ("": what all are made of), without the rest of the package."""
    from importlib import import_module

    _without_package_init()
    return import_module(f"pyroute2.netlink.{name}".rstrip("."))


def _without_package_init() -> None:
    """`pyroute2/__init__.py` imports all of pyroute2; its subpackages do not need it to have run."""
    from importlib.util import find_spec, module_from_spec

    if "pyroute2" in sys.modules:
        return
    spec = find_spec("pyroute2")
    if spec is None:
        raise KernelError("the Python package pyroute2 is not installed: use the image, or pip install init-wg")
    sys.modules["pyroute2"] = module_from_spec(spec)
