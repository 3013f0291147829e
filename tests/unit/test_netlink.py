"""init_wg.kernel.netlink: what is written is what is read, and what the kernel's dumps mean. No kernel is asked.

pyroute2 encodes what we write, and drops in silence what it does not know: so every message it makes goes to a
kernel that only remembers, and must come back from there as the same value.
"""

from __future__ import annotations

import errno
import os
import struct
from random import Random
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from init_wg.kernel import netlink, rtnetlink_read, rtnetlink_write, walk
from init_wg.model.snapshot import Interface, InterfaceAddress, Snapshot
from init_wg.model.state import INET, INET6, Address, Route, Rule
from tests.unit import build

NEWLINK, DELLINK, GETLINK, NEWADDR, DELADDR, GETADDR = 16, 17, 18, 20, 21, 22
NEWROUTE, DELROUTE, GETROUTE, NEWRULE, DELRULE, GETRULE = 24, 25, 26, 32, 33, 34
EXCL, CREATE, REPLACE = 0x200, 0x400, 0x100


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


LOOPBACK = struct.pack("=BxHiII", 0, 772, 1, 0x49, 0) + attribute(3, b"lo\0") + attribute(4, struct.pack("=I", 65536))


class Memory:
    """A kernel that shows what it was told, and does nothing else."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int, bytes]] = []
        self.shown: dict[int, list[bytes]] = {GETLINK: [LOOPBACK], GETADDR: [], GETROUTE: [], GETRULE: []}

    def request(self, message_type: int, flags: int, body: bytes) -> None:
        self.told.append((message_type, flags, body))
        if message_type + 2 in self.shown and message_type != NEWLINK:  # GET follows NEW and DEL
            self.shown[message_type + 2].append(body)

    def requests(self, message_type: int, flags: int, bodies: list[bytes]) -> list[int]:
        for body in bodies:
            self.request(message_type, flags, body)
        return [0] * len(bodies)

    def dump(self, message_type: int, body: bytes) -> list[bytes]:
        return self.shown[message_type]


@pytest.fixture
def memory() -> Memory:
    return Memory()


def socket_of(memory: Memory) -> netlink.Socket:
    return cast(netlink.Socket, memory)


def read(memory: Memory) -> Snapshot:
    return rtnetlink_read.snapshot(socket_of(memory))


# --- rules -------------------------------------------------------------------------------------------------------

rules = st.builds(
    Rule,
    family=st.sampled_from((INET, INET6)),
    preference=st.integers(1, 40000),
    table=st.sampled_from((253, 254, 255, 256, 51820, 2**32 - 1)),
    mark=st.none() | st.integers(1, 2**32 - 1),
    invert=st.booleans(),
    suppress_prefix_length=st.none() | st.integers(0, 128),
    source=st.none(),
    destination=st.none(),
    port=st.none() | st.integers(1, 65535),
    action=st.just(1),
    other=st.just(()),
)
hosts = st.none() | st.tuples(build.ipv4, build.ipv6)


@settings(max_examples=100, deadline=None)
@given(rule=rules, add=st.booleans(), source=hosts, destination=hosts)
def test_any_rule_comes_back(
    rule: Rule, add: bool, source: tuple[object, object] | None, destination: tuple[object, object] | None
) -> None:
    memory = Memory()
    if source:
        rule = rule._replace(source=str(source[rule.family == INET6]))
    if destination:
        rule = rule._replace(destination=str(destination[rule.family == INET6]))
    rtnetlink_write.write_rule(socket_of(memory), rule, add=add)
    (message,) = memory.told
    assert message[:2] == ((NEWRULE, EXCL | CREATE) if add else (DELRULE, 0))
    if not add:
        memory.shown[GETRULE] = [message[2]]
    assert read(memory).rules == (rule,)


def test_a_port_is_the_same_with_the_full_mask_that_newer_kernels_show(memory: Memory) -> None:
    rtnetlink_write.write_rule(
        socket_of(memory), rule := Rule(INET, 50, 51820, destination="10.2.0.1", port=53), add=True
    )
    memory.shown[GETRULE] = [memory.told[0][2], memory.told[0][2] + attribute(29, b"\xff\xff")]
    assert read(memory).rules == (rule, rule)


def test_the_link_messages_are_pyroute2s_own(memory: Memory) -> None:
    """Ours is made of the same classes, without the plugins for every kind of link."""
    kernel = socket_of(memory)
    rtnetlink_write.add_link(kernel, "wg0", "wireguard")
    rtnetlink_write.change_link(kernel, 7, mtu=1420)
    rtnetlink_write.change_link(kernel, 7, up=True)
    rtnetlink_write.change_link(kernel, 7, up=False)
    rtnetlink_write.delete_link(kernel, 7)
    made = [body for _, _, body in memory.told]
    memory.told.clear()
    rtnetlink_write.write(kernel, NEWLINK, 0, theirs(0), [("IFLA_IFNAME", "wg0"), ("IFLA_LINKINFO", info("wireguard"))])
    rtnetlink_write.write(kernel, NEWLINK, 0, theirs(7), [("IFLA_MTU", 1420)])
    rtnetlink_write.write(kernel, NEWLINK, 0, theirs(7, change=1, flags=1), [])
    rtnetlink_write.write(kernel, NEWLINK, 0, theirs(7, change=1, flags=0), [])
    rtnetlink_write.write(kernel, DELLINK, 0, theirs(7), [])
    assert made == [body for _, _, body in memory.told]


def theirs(number: int, **fields: int) -> object:
    message = rtnetlink_write.messages("rtnl.ifinfmsg").ifinfmsg()
    message["index"] = number
    for name, value in fields.items():
        message[name] = value
    return message


def info(kind: str) -> dict[str, list[tuple[str, str]]]:
    return {"attrs": [("IFLA_INFO_KIND", kind)]}


def test_suppress_prefixlength_is_really_on_the_wire(memory: Memory) -> None:
    """By another name pyroute2 drops it in silence, and the rule sends everything past the tunnel."""
    rtnetlink_write.write_rule(socket_of(memory), Rule(INET, 200, 254, suppress_prefix_length=0), add=True)
    assert attribute(14, struct.pack("=I", 0)) in memory.told[0][2]


def test_not_is_really_on_the_wire(memory: Memory) -> None:
    rtnetlink_write.write_rule(socket_of(memory), Rule(INET, 300, 51820, mark=51820, invert=True), add=True)
    body = memory.told[0][2]
    assert struct.unpack_from("=I", body, 8) == (2,)  # FIB_RULE_INVERT
    assert attribute(10, struct.pack("=I", 51820)) in body


FULL_MASK = attribute(16, b"\xff" * 4)


@pytest.mark.parametrize(
    ("header", "attributes"),
    [
        ({}, attribute(3, b"eth1\0")),  # iif
        ({}, attribute(17, b"eth1\0")),  # oif
        ({}, attribute(20, bytes(8))),  # uid range
        ({}, attribute(22, b"\x11")),  # IP protocol
        ({}, attribute(24, struct.pack("=HH", 53, 54))),  # destination ports
        ({}, attribute(24, struct.pack("=HH", 53, 53)) + attribute(29, b"\xff\0")),  # by a mask
        ({}, attribute(23, struct.pack("=HH", 53, 53))),  # source port
        ({}, attribute(13, struct.pack("=I", 3))),  # suppress_ifgroup
        ({"to_length": 8}, attribute(1, b"\x0a\0\0\0")),
        ({"from_length": 8}, attribute(2, b"\x0a\0\0\0")),
        ({"tos": 0x10}, b""),
        ({}, attribute(10, struct.pack("=I", 51820)) + attribute(16, b"\xff\0\0\0")),
        ({}, attribute(16, b"\x01\0\0\0")),  # a mask alone: mark zero
        ({}, attribute(99, b"what a later kernel has")),
    ],
)
def test_a_selector_that_we_never_use_makes_another_rule(
    memory: Memory, header: dict[str, int], attributes: bytes
) -> None:
    def encoded(to_length: int = 0, from_length: int = 0, tos: int = 0) -> bytes:
        return struct.pack("=BBBBBBBBI", INET, to_length, from_length, tos, 254, 0, 0, 1, 0)

    ours = encoded() + attribute(15, struct.pack("=I", 254)) + attribute(6, struct.pack("=I", 200))
    memory.shown[GETRULE] = [ours, encoded(**header) + ours[12:] + attributes]
    own, other = read(memory).rules
    assert own == Rule(INET, 200, 254)
    assert other.other
    # Deleting names all of it: without, the kernel would take our own rule, or find none.
    rtnetlink_write.write_rule(socket_of(memory), other, add=False)
    memory.shown[GETRULE] = [memory.told[-1][2]]
    assert read(memory).rules == (other,)


def test_what_every_rule_has_is_no_selector(memory: Memory) -> None:
    """FRA_PROTOCOL (who made it), FRA_SUPPRESS_* of -1, and the full mask of a mark."""
    nothing = attribute(21, b"\x02") + attribute(14, b"\xff" * 4) + attribute(13, b"\xff" * 4)
    marked = attribute(10, struct.pack("=I", 7)) + FULL_MASK
    header = struct.pack("=BBBBBBBBI", INET, 0, 0, 0, 254, 0, 0, 1, 0)
    memory.shown[GETRULE] = [header + nothing + marked]
    assert read(memory).rules == (Rule(INET, 0, 254, mark=7),)


# --- routes ------------------------------------------------------------------------------------------------------


@st.composite
def routes(draw: st.DrawFn) -> Route:
    family = draw(st.sampled_from((INET, INET6)))
    hosts = build.ipv4 if family == INET else build.ipv6
    network = draw(build.network().filter(lambda n: (n.version == 4) == (family == INET)))
    default = "0.0.0.0/0" if family == INET else "::/0"
    kind = draw(st.sampled_from(("unicast", "unicast", "unreachable", "blackhole", "prohibit", "throw", "23")))
    unicast = kind == "unicast"
    return Route(
        family=family,
        table=draw(st.sampled_from((254, 255, 256, 51820, 2**32 - 1))),
        destination=draw(st.sampled_from((default, str(network)))),
        device="lo" if unicast else None,
        # RTA_VIA: an IPv4 route by an IPv6 gateway
        gateway=str(draw(hosts | build.ipv6)) if unicast and draw(st.booleans()) else None,
        kind=kind,
        source=str(draw(hosts)) if draw(st.booleans()) else None,
        metric=draw(st.sampled_from((0, 1, 1024, 4278198272))),
        scope=draw(st.sampled_from((0, 253))),
        onlink=draw(st.booleans()),
        protocol=draw(st.sampled_from((2, 3, 4, 9, 151))),
        other=draw(st.sampled_from(((), ((0, b"\0\x10"),)))),
    )


@settings(max_examples=200, deadline=None)
@given(route=routes(), add=st.booleans())
def test_any_route_comes_back(route: Route, add: bool) -> None:
    memory = Memory()
    rtnetlink_write.write_route(socket_of(memory), route, add=add)
    (message,) = memory.told
    assert message[:2] == ((NEWROUTE, EXCL | CREATE) if add else (DELROUTE, 0))
    if not add:
        memory.shown[GETROUTE] = [message[2]]
    assert read(memory).routes == (route,)


@settings(max_examples=100, deadline=None)
@given(several=st.lists(routes(), max_size=12), shapes=st.integers(1, 3))
def test_many_routes_are_what_each_of_them_is_alone(several: list[Route], shapes: int) -> None:
    """Of few shapes, so that most are made, and read, after the pattern of another one."""
    alike = [like._replace(destination=r.destination) for r in several for like in several[:shapes] if like[0] == r[0]]
    alone, together = Memory(), Memory()
    for route in alike:
        rtnetlink_write.write_route(socket_of(alone), route, add=True)
    assert rtnetlink_write.add_routes(socket_of(together), alike) == [0] * len(alike)
    assert together.told == alone.told
    assert read(together).routes == tuple(alike)


def route_message(family: int, *attributes: bytes, flags: int = 0, **header: int) -> bytes:
    fields = {"length": 0, "from_length": 0, "tos": 0, "table": 254, "protocol": 3, "scope": 0, "kind": 1, **header}
    return struct.pack("=BBBBBBBBI", family, *fields.values(), flags) + b"".join(attributes)


ON_LO = attribute(4, struct.pack("=i", 1))


def test_of_several_hops_the_first_stands_for_all(memory: Memory) -> None:
    hops = b"".join(
        struct.pack("=HBBi", 16, 0, 0, 1) + attribute(5, bytes([10, 0, 0, last])) for last in (1, 2)
    )  # fmt: skip
    memory.shown[GETROUTE] = [route_message(INET, attribute(9, hops))]
    assert read(memory).routes == (Route(INET, 254, "0.0.0.0/0", "lo", gateway="10.0.0.1", protocol=3),)


@settings(max_examples=100, deadline=None)
@given(several=st.lists(routes(), min_size=1, max_size=8), order=st.randoms(use_true_random=False))
def test_a_route_is_read_as_alone_whatever_is_beside_it(several: list[Route], order: Random) -> None:
    """And wherever its destination stands: the kernel's own order is nobody's promise."""
    memory = Memory()
    for route in several:
        rtnetlink_write.write_route(socket_of(memory), route, add=True)
    bodies = memory.shown[GETROUTE] * 2
    for body in memory.shown[GETROUTE]:
        parts = [attribute(*found) for found in walk.attribute_list(body, 12)]
        order.shuffle(parts)
        bodies.append(body[:12] + b"".join(parts))
    memory.shown[GETROUTE] = bodies
    assert read(memory).routes == tuple(several) * 3


def test_cached_routes_and_other_families_are_no_routes(memory: Memory) -> None:
    memory.shown[GETROUTE] = [route_message(INET6, ON_LO, flags=0x200), route_message(28, ON_LO)]
    assert read(memory).routes == ()


def test_ipv6_shows_unreachable_routes_on_the_loopback(memory: Memory) -> None:
    memory.shown[GETROUTE] = [route_message(INET6, ON_LO, kind=7)]
    assert read(memory).routes == (Route(INET6, 254, "::/0", None, kind="unreachable", protocol=3),)


def test_a_route_by_a_nexthop_object_is_deleted_by_it(memory: Memory) -> None:
    """The kernel refuses a device beside a nexthop object."""
    object_1 = attribute(30, struct.pack("=I", 1))
    memory.shown[GETROUTE] = [route_message(INET, ON_LO, attribute(5, bytes([10, 0, 0, 1])), object_1)]
    (route,) = read(memory).routes
    rtnetlink_write.write_route(socket_of(memory), route, add=False)
    assert object_1 in memory.told[0][2]
    assert ON_LO not in memory.told[0][2]


# --- links and addresses -----------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(host=build.ipv4 | build.ipv6, length=st.integers(0, 32), add=st.booleans())
def test_any_address_comes_back(host: object, length: int, add: bool) -> None:
    memory = Memory()
    address = Address(INET6 if ":" in str(host) else INET, str(host), length)
    rtnetlink_write.write_address(socket_of(memory), 7, address, add=add)
    (message,) = memory.told
    assert message[:2] == ((NEWADDR, CREATE | REPLACE) if add else (DELADDR, 0))
    memory.shown[GETADDR] = [message[2]]
    assert read(memory).addresses == (InterfaceAddress(7, address, 0, announced=address.family == INET6),)


def test_of_a_point_to_point_address_the_local_end_is_ours(memory: Memory) -> None:
    header = struct.pack("=BBBBI", INET, 32, 0, 0, 1)
    memory.shown[GETADDR] = [header + attribute(1, bytes([10, 0, 0, 9])) + attribute(2, bytes([10, 0, 0, 1]))]
    assert read(memory).addresses[0].address.address == "10.0.0.1"


def test_a_new_link_has_name_and_kind(memory: Memory) -> None:
    rtnetlink_write.add_link(socket_of(memory), "wg0", "wireguard")
    kind, flags, body = memory.told[0]
    assert (kind, flags) == (NEWLINK, EXCL | CREATE)
    memory.shown[GETLINK] = [body]
    assert read(memory).interfaces == (Interface(0, "wg0", "wireguard", 0, up=False),)


@pytest.mark.parametrize(
    ("mtu", "up", "expected"),
    [(1370, None, (0, 0, 1370)), (None, True, (1, 1, 0)), (None, False, (0, 1, 0)), (1280, True, (1, 1, 1280))],
)
def test_a_changed_link(memory: Memory, mtu: int | None, up: bool | None, expected: tuple[int, int, int]) -> None:
    rtnetlink_write.change_link(socket_of(memory), 7, mtu=mtu, up=up)
    kind, flags, body = memory.told[0]
    assert (kind, flags) == (NEWLINK, 0)  # without NLM_F_CREATE: what is gone is not made anew
    index, up_flag, change = struct.unpack_from("=iII", body, 4)
    assert (index, up_flag, change, netlink.number(walk.attributes(body, 16).get(4, b""))) == (7, *expected)


def test_a_deleted_link_is_named_by_its_number(memory: Memory) -> None:
    rtnetlink_write.delete_link(socket_of(memory), 7)
    kind, _, body = memory.told[0]
    assert (kind, struct.unpack_from("=i", body, 4)) == (DELLINK, (7,))


def test_an_attribute_that_pyroute2_does_not_know_raises(memory: Memory) -> None:
    message = rtnetlink_write.messages("rtnl.fibmsg").fibmsg()
    with pytest.raises(LookupError, match="FRA_SUPPRESS_PREFIXLENGTH"):
        rtnetlink_write.write(socket_of(memory), NEWRULE, 0, message, [("FRA_SUPPRESS_PREFIXLENGTH", 0)])
    assert not memory.told


# --- the parts ---------------------------------------------------------------------------------------------------


def test_attributes_end_where_they_make_no_sense() -> None:
    data = attribute(1, b"a") + attribute(0x8002, b"bcde")  # 0x8000: nested
    assert walk.attributes(data) == {1: b"a", 2: b"bcde"}
    assert walk.attributes(data + b"\x02\0\0\0" + data) == {1: b"a", 2: b"bcde"}
    assert list(walk.attribute_list(attribute(1, b"") * 2)) == [(1, b""), (1, b"")]


@given(data=st.binary(max_size=64))
def test_any_bytes_are_read_to_an_end(data: bytes) -> None:
    assert len(list(walk.attribute_list(data))) <= 16


class Kernel:
    """The other end of a netlink socket: acknowledges what asks for it, and refuses what is told to be refused."""

    def __init__(self, refused: dict[bytes, int]) -> None:
        self.refused, self.got, self.answers = refused, list[bytes](), list[bytes]()

    def bind(self, address: tuple[int, int]) -> None: ...

    def settimeout(self, seconds: float) -> None: ...

    def close(self) -> None: ...

    def send(self, data: bytes) -> None:
        data = bytes(data)
        assert not self.answers, "nothing is sent before all is answered"
        while data:
            length, _, flags, sequence, _ = walk.HEADER.unpack_from(data)
            body, data = data[walk.HEADER.size : length], data[(length + 3) & ~3 :]
            self.got.append(body)
            code = self.refused.get(body, 0)
            if code or flags & 4:  # NLM_F_ACK
                error = struct.pack("=i", -code) + bytes(16)
                self.answers.append(walk.HEADER.pack(walk.HEADER.size + len(error), 2, 0, sequence, 0) + error)

    def recv(self, size: int) -> bytes:
        return self.answers.pop(0)  # IndexError: the real one would wait for ever


def test_of_many_requests_each_is_told_how_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    bodies = [str(number).encode() for number in range(300)]
    refused = {bodies[number]: errno.EEXIST for number in (0, 5, 6, 127, 128, 299)}
    kernel = Kernel(refused)
    monkeypatch.setattr("socket.socket", lambda *_: kernel)
    with netlink.Socket() as ours:
        assert ours.requests(NEWROUTE, CREATE, bodies) == [refused.get(body, 0) for body in bodies]
        assert ours.requests(NEWROUTE, CREATE, bodies[1:3]) == [0, 0]
        assert ours.requests(NEWROUTE, CREATE, []) == []
    assert kernel.got == bodies + bodies[1:3]


def test_an_interface_that_is_not_there() -> None:
    with pytest.raises(OSError, match="no interface nowhere") as caught:
        netlink.index("nowhere")
    assert caught.value.errno == errno.ENODEV


@pytest.mark.parametrize("code", [errno.EPERM, errno.EACCES])
def test_a_missing_capability_is_named(code: int) -> None:
    assert "NET_ADMIN" in netlink.describe(OSError(code, os.strerror(code)))


def test_on_linux_this_machine_can_be_read() -> None:
    """Dumps need no privilege."""
    with netlink.Socket() as kernel:
        seen = rtnetlink_read.snapshot(kernel)
    loopback = next(interface for interface in seen.interfaces if interface.name == "lo")
    assert loopback.number == netlink.index("lo")
    assert any(rule.table == 255 and rule.preference == 0 for rule in seen.rules)
