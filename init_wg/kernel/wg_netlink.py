"""WireGuard in the kernel: generic netlink (linux/wireguard.h)."""

from __future__ import annotations

import errno
import socket
import struct
from typing import TYPE_CHECKING

from init_wg.errors import KernelError
from init_wg.kernel import netlink
from init_wg.kernel.netlink import nested, number
from init_wg.kernel.walk import attribute, attribute_list, attributes
from init_wg.model.secret import Secret
from init_wg.model.state import INET, INET6, Device, Peer
from init_wg.model.wireguard import NO_KEY, Change, Reading, Traffic, base64, from_base64

if TYPE_CHECKING:
    from collections.abc import Iterator

_GET_DEVICE, _SET_DEVICE, _VERSION = 0, 1, 1
_REMOVE_ME, _REPLACE_ALLOWED_IPS, _UPDATE_ONLY = 0x1, 0x2, 0x4
_WGDEVICE_A_IFNAME, _WGDEVICE_A_PRIVATE_KEY, _WGDEVICE_A_LISTEN_PORT = 2, 3, 6
_WGDEVICE_A_FWMARK, _WGDEVICE_A_PEERS = 7, 8
_WGPEER_A_PUBLIC_KEY, _WGPEER_A_PRESHARED_KEY, _WGPEER_A_FLAGS, _WGPEER_A_ENDPOINT = 1, 2, 3, 4
_WGPEER_A_KEEPALIVE, _WGPEER_A_LAST_HANDSHAKE, _WGPEER_A_RX_BYTES, _WGPEER_A_TX_BYTES = 5, 6, 7, 8
_WGPEER_A_ALLOWEDIPS = 9
_WGALLOWEDIP_A_FAMILY, _WGALLOWEDIP_A_IPADDR, _WGALLOWEDIP_A_CIDR_MASK = 1, 2, 3
_ALLOWED_IPS_AT_ONCE = 1000  # of at most 48 bytes each: see write


def _family(kernel: netlink.Socket) -> int | None:
    """The number of the "wireguard" family, which the kernel gives out when the module is loaded."""
    body = struct.pack("=BBH", 3, 1, 0) + attribute(2, b"wireguard\0")
    try:
        (answer,) = kernel.exchange(16, body)  # GENL_ID_CTRL, CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_NAME
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    return number(attributes(answer, 4)[1])


def read(name: str) -> Reading | None:
    with netlink.Socket(netlink.NETLINK_GENERIC) as kernel:
        family = _family(kernel)
        if family is None:
            return None
        try:
            answers = kernel.dump(family, struct.pack("=BBH", _GET_DEVICE, _VERSION, 0) + _name(name))
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.EOPNOTSUPP):
                return None
            raise
    fields: dict[int, bytes] = {}
    peers: dict[str, tuple[Peer, Traffic]] = {}
    for answer in answers:  # a device that does not fit one message continues in the next
        found = attributes(answer, 4)
        fields = {**found, **fields}
        for _, data in attribute_list(found.get(_WGDEVICE_A_PEERS, b"")):
            peer, traffic = _peer(attributes(data))
            if peer.public_key in peers:
                before = peers[peer.public_key]
                peer = before[0]._replace(allowed_ips=before[0].allowed_ips | peer.allowed_ips)
                traffic = before[1]
            peers[peer.public_key] = (peer, traffic)
    device = Device(
        private_key=Secret(base64(fields.get(_WGDEVICE_A_PRIVATE_KEY, bytes(32)))),
        listen_port=number(fields.get(_WGDEVICE_A_LISTEN_PORT, b"")),
        fwmark=number(fields.get(_WGDEVICE_A_FWMARK, b"")),
        peers=frozenset(peer for peer, _ in peers.values()),
    )
    return Reading(device, {key: traffic for key, (_, traffic) in peers.items()})


def _peer(found: dict[int, bytes]) -> tuple[Peer, Traffic]:
    seconds, nanoseconds = struct.unpack("=qq", found.get(_WGPEER_A_LAST_HANDSHAKE, bytes(16)))
    preshared = base64(found.get(_WGPEER_A_PRESHARED_KEY, bytes(32)))
    endpoint = found.get(_WGPEER_A_ENDPOINT)
    peer = Peer(
        public_key=base64(found[_WGPEER_A_PUBLIC_KEY]),
        preshared_key=Secret(preshared) if preshared != NO_KEY else None,
        endpoint=_socket_address(endpoint) if endpoint else None,
        allowed_ips=frozenset(_allowed_ips(found.get(_WGPEER_A_ALLOWEDIPS, b""))),
        keepalive=number(found.get(_WGPEER_A_KEEPALIVE, b"")),
    )
    received, sent = (number(found.get(kind, b"")) for kind in (_WGPEER_A_RX_BYTES, _WGPEER_A_TX_BYTES))
    return peer, Traffic(seconds + nanoseconds / 1e9, received, sent)


def _allowed_ips(data: bytes) -> Iterator[str]:
    for _, entry in attribute_list(data):
        found = attributes(entry)
        address = socket.inet_ntop(number(found[_WGALLOWEDIP_A_FAMILY]), found[_WGALLOWEDIP_A_IPADDR])
        yield f"{address}/{number(found[_WGALLOWEDIP_A_CIDR_MASK])}"


def _socket_address(data: bytes) -> tuple[str, int]:
    """A struct sockaddr_in or sockaddr_in6: the port is in network order, the family in the machine's."""
    family, port = number(data[:2]), int.from_bytes(data[2:4], "big")
    packed = data[4:8] if family == INET else data[8:24]
    return socket.inet_ntop(family, packed), port


def write(name: str, wanted: Change) -> None:
    """Settings first, then peer by peer, each with messages of its own: all peers of one message are a single
    attribute, and the length of an attribute has 16 bits."""
    with netlink.Socket(netlink.NETLINK_GENERIC) as kernel:
        family = _family(kernel)
        if family is None:
            raise KernelError("the kernel's WireGuard module went away")
        for body in messages(name, wanted):
            kernel.request(family, 0, body)


def messages(name: str, wanted: Change) -> Iterator[bytes]:
    """The messages that `write` sends: struct genlmsghdr, the interface's name, and a part of the change in each. Pure.

    Encoded here and not as rtnetlink_write encodes: that library's WireGuard module imports its whole package, asyncio
    included, which takes longer than the rest of `up`. A test compares the two, byte for byte.
    """
    head = struct.pack("=BBH", _SET_DEVICE, _VERSION, 0) + _name(name)
    if settings := b"".join(_settings(wanted)):
        yield head + settings
    for key in wanted.removed:
        yield head + _in_list(_WGDEVICE_A_PEERS, _peer_head(key, _REMOVE_ME))
    for peer in wanted.peers:
        networks = sorted(peer.allowed_ips)
        for at in range(0, len(networks) or 1, _ALLOWED_IPS_AT_ONCE):
            some = networks[at : at + _ALLOWED_IPS_AT_ONCE]
            yield head + _in_list(_WGDEVICE_A_PEERS, _peer_whole(peer, some, 0 if at else _REPLACE_ALLOWED_IPS))
    for key, seconds in wanted.keepalives:
        interval = attribute(_WGPEER_A_KEEPALIVE, struct.pack("=H", seconds))
        yield head + _in_list(_WGDEVICE_A_PEERS, _peer_head(key, _UPDATE_ONLY) + interval)


def _name(name: str) -> bytes:
    return attribute(_WGDEVICE_A_IFNAME, name.encode() + b"\0")


def _settings(wanted: Change) -> Iterator[bytes]:
    if wanted.private_key is not None:
        yield attribute(_WGDEVICE_A_PRIVATE_KEY, from_base64(wanted.private_key))
    if wanted.listen_port is not None:
        yield attribute(_WGDEVICE_A_LISTEN_PORT, struct.pack("=H", wanted.listen_port))
    if wanted.fwmark is not None:
        yield attribute(_WGDEVICE_A_FWMARK, struct.pack("=I", wanted.fwmark))


def _peer_head(key: str, flags: int) -> bytes:
    return attribute(_WGPEER_A_PUBLIC_KEY, from_base64(key)) + attribute(_WGPEER_A_FLAGS, struct.pack("=I", flags))


def _peer_whole(peer: Peer, networks: list[str], flags: int) -> bytes:
    return (
        _peer_head(peer.public_key, flags)
        + attribute(_WGPEER_A_PRESHARED_KEY, from_base64(peer.preshared_key or NO_KEY))
        + attribute(_WGPEER_A_KEEPALIVE, struct.pack("=H", peer.keepalive))
        + (attribute(_WGPEER_A_ENDPOINT, _packed_socket_address(*peer.endpoint)) if peer.endpoint else b"")
        + _in_list(_WGPEER_A_ALLOWEDIPS, *map(_network, networks))
    )


def _network(network: str) -> bytes:
    address, length = network.split("/")
    family = INET6 if ":" in address else INET
    return (
        attribute(_WGALLOWEDIP_A_FAMILY, struct.pack("=H", family))
        + attribute(_WGALLOWEDIP_A_IPADDR, socket.inet_pton(family, address))
        + attribute(_WGALLOWEDIP_A_CIDR_MASK, bytes((int(length),)))
    )


def _in_list(kind: int, *items: bytes) -> bytes:
    """A list: an attribute of attributes, each of them made of attributes, too."""
    return nested(kind, *(nested(at, item) for at, item in enumerate(items, 1)))


def _packed_socket_address(address: str, port: int) -> bytes:
    """The reverse of _socket_address."""
    if ":" in address:
        return struct.pack("=H", INET6) + struct.pack(">HI16sI", port, 0, socket.inet_pton(INET6, address), 0)
    return struct.pack("=H", INET) + struct.pack(">H4s8x", port, socket.inet_pton(INET, address))
