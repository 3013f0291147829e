"""WireGuard in the kernel: generic netlink (linux/wireguard.h)."""

from __future__ import annotations

import errno
import socket
import struct
from typing import TYPE_CHECKING, Any

from init_wg import netlink, rtchange
from init_wg.errors import KernelError
from init_wg.netlink import attribute_list, attributes, number
from init_wg.secret import Secret
from init_wg.state import INET, INET6, Device, Peer
from init_wg.wireguard import NO_KEY, Change, Reading, Traffic, base64

if TYPE_CHECKING:
    from collections.abc import Iterator

_GET_DEVICE, _SET_DEVICE, _VERSION = 0, 1, 1
_REMOVE_ME, _REPLACE_ALLOWED_IPS = 0x1, 0x2
_ALLOWED_IPS_AT_ONCE = 1000  # of at most 40 bytes each: see write


def _family(kernel: netlink.Socket) -> int | None:
    """The number of the "wireguard" family, which the kernel gives out when the module is loaded."""
    body = struct.pack("=BBH", 3, 1, 0) + struct.pack("=HH", 4 + 10, 2) + b"wireguard\0\0\0"
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
        padded = name.encode() + b"\0"
        body = struct.pack("=BBH", _GET_DEVICE, _VERSION, 0) + struct.pack("=HH", 4 + len(padded), 2) + padded
        try:
            answers = kernel.dump(family, body + bytes(-len(padded) % 4))
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.EOPNOTSUPP):
                return None
            raise
    fields: dict[int, bytes] = {}
    peers: dict[str, tuple[Peer, Traffic]] = {}
    for answer in answers:  # a device that does not fit one message continues in the next
        found = attributes(answer, 4)
        fields = {**found, **fields}
        for _, data in attribute_list(found.get(8, b"")):
            peer, traffic = _peer(attributes(data))
            if peer.public_key in peers:
                before = peers[peer.public_key]
                peer = before[0]._replace(allowed_ips=before[0].allowed_ips | peer.allowed_ips)
                traffic = before[1]
            peers[peer.public_key] = (peer, traffic)
    device = Device(
        private_key=Secret(base64(fields.get(3, bytes(32)))),
        listen_port=number(fields.get(6, b"")),
        fwmark=number(fields.get(7, b"")),
        peers=frozenset(peer for peer, _ in peers.values()),
    )
    return Reading(device, {key: traffic for key, (_, traffic) in peers.items()})


def _peer(found: dict[int, bytes]) -> tuple[Peer, Traffic]:
    seconds, nanoseconds = struct.unpack("=qq", found.get(6, bytes(16)))
    preshared = base64(found.get(2, bytes(32)))
    peer = Peer(
        public_key=base64(found[1]),
        preshared_key=Secret(preshared) if preshared != NO_KEY else None,
        endpoint=_socket_address(found[4]) if 4 in found else None,
        allowed_ips=frozenset(_allowed_ips(found.get(9, b""))),
        keepalive=number(found.get(5, b"")),
    )
    return peer, Traffic(seconds + nanoseconds / 1e9, number(found.get(7, b"")), number(found.get(8, b"")))


def _allowed_ips(data: bytes) -> Iterator[str]:
    for _, entry in attribute_list(data):
        found = attributes(entry)
        yield f"{socket.inet_ntop(number(found[1]), found[2])}/{number(found[3])}"


def _socket_address(data: bytes) -> tuple[str, int]:
    """A struct sockaddr_in or sockaddr_in6: the port is in network order, the family in the machine's."""
    family, port = number(data[:2]), int.from_bytes(data[2:4], "big")
    packed = data[4:8] if family == INET else data[8:24]
    return socket.inet_ntop(family, packed), port


def write(name: str, wanted: Change) -> None:
    """Settings first, then peer by peer, each with messages of its own: all peers of one message are a single
    attribute, and the length of an attribute has 16 bits."""
    messages = rtchange.messages("generic.wireguard")
    attrs: list[tuple[str, Any]] = []
    if wanted.private_key is not None:
        attrs.append(("WGDEVICE_A_PRIVATE_KEY", wanted.private_key))
    if wanted.listen_port is not None:
        attrs.append(("WGDEVICE_A_LISTEN_PORT", wanted.listen_port))
    if wanted.fwmark is not None:
        attrs.append(("WGDEVICE_A_FWMARK", wanted.fwmark))
    peers = [[("WGPEER_A_PUBLIC_KEY", key), ("WGPEER_A_FLAGS", _REMOVE_ME)] for key in wanted.removed]
    for peer in wanted.peers:
        networks = sorted(peer.allowed_ips)
        for at in range(0, len(networks) or 1, _ALLOWED_IPS_AT_ONCE):
            some = peer._replace(allowed_ips=frozenset(networks[at : at + _ALLOWED_IPS_AT_ONCE]))
            peers.append(_peer_attributes(some, 0 if at else _REPLACE_ALLOWED_IPS))
    parts = [attrs, *([("WGDEVICE_A_PEERS", [{"attrs": peer}])] for peer in peers)]
    with netlink.Socket(netlink.NETLINK_GENERIC) as kernel:
        family = _family(kernel)
        if family is None:
            raise KernelError("the kernel's WireGuard module went away")
        for part in filter(None, parts):
            message = messages.wgmsg()
            message["cmd"], message["version"] = _SET_DEVICE, _VERSION
            rtchange.write(kernel, family, 0, message, [("WGDEVICE_A_IFNAME", name), *part])


def _peer_attributes(peer: Peer, flags: int = _REPLACE_ALLOWED_IPS) -> list[tuple[str, Any]]:
    attrs: list[tuple[str, Any]] = [
        ("WGPEER_A_PUBLIC_KEY", peer.public_key),
        ("WGPEER_A_FLAGS", flags),
        ("WGPEER_A_PRESHARED_KEY", peer.preshared_key or NO_KEY),
        ("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL", peer.keepalive),
    ]
    if peer.endpoint:
        attrs.append(("WGPEER_A_ENDPOINT", {"addr": peer.endpoint[0], "port": peer.endpoint[1]}))
    allowed = []
    for network in sorted(peer.allowed_ips):
        address, length = network.split("/")
        family = INET6 if ":" in address else INET
        packed = ("WGALLOWEDIP_A_IPADDR", socket.inet_pton(family, address))
        allowed.append({"attrs": [("WGALLOWEDIP_A_FAMILY", family), packed, ("WGALLOWEDIP_A_CIDR_MASK", int(length))]})
    return [*attrs, ("WGPEER_A_ALLOWEDIPS", allowed)]
