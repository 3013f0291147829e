"""wg0 itself: reading and changing a WireGuard device, in the kernel or in wireguard-go.

The kernel speaks generic netlink (linux/wireguard.h); wireguard-go speaks the cross-platform text protocol
(wireguard.com/xplatform) on a Unix socket named after the interface. Both give and take the same values.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from binascii import a2b_base64, b2a_base64
from typing import TYPE_CHECKING, Any, NamedTuple

from init_wg import netlink, process
from init_wg.errors import KernelError
from init_wg.netlink import attribute_list, attributes, number
from init_wg.secret import Secret
from init_wg.state import INET, INET6, TUN, WIREGUARD, Device, Peer

if TYPE_CHECKING:
    from collections.abc import Iterator

SOCKETS = "/var/run/wireguard"
TUN_DEVICE = "/dev/net/tun"
_NO_KEY = b2a_base64(bytes(32), newline=False).decode()
_GET_DEVICE, _SET_DEVICE, _VERSION = 0, 1, 1
_START_TIMEOUT = 10
_REMOVE_ME, _REPLACE_ALLOWED_IPS = 0x1, 0x2
_ALLOWED_IPS_AT_ONCE = 1000  # of at most 40 bytes each: see _kernel_write


class Traffic(NamedTuple):
    """What a peer's session looks like: its last handshake in Unix seconds (0: never), bytes each way."""

    latest_handshake: float
    received_bytes: int
    sent_bytes: int


class Reading(NamedTuple):
    """A device as it is, and the traffic by public key."""

    device: Device
    traffic: dict[str, Traffic]


class Change(NamedTuple):
    """What to tell a device so that it becomes another: only differences, so that sessions survive.

    None means "leave it"; `peers` are set whole; `removed` are public keys. The order of the fields is the
    order on the wire: the mark is there before the first peer, or the first handshake would leave unmarked,
    be refused by the kill-switch and not be tried again for REKEY_TIMEOUT, 5 s.
    """

    private_key: Secret | None
    listen_port: int | None
    fwmark: int | None
    removed: tuple[str, ...]
    peers: tuple[Peer, ...]


def change(have: Device | None, want: Device) -> Change:
    """The differences from `have` (None: a new device) to `want`. Pure."""
    peers = have.peers if have else frozenset()
    wanted_keys = {peer.public_key for peer in want.peers}
    return Change(
        private_key=want.private_key if not have or have.private_key != want.private_key else None,
        listen_port=want.listen_port if not have or have.listen_port != want.listen_port else None,
        fwmark=want.fwmark if not have or have.fwmark != want.fwmark else None,
        removed=tuple(sorted({peer.public_key for peer in peers} - wanted_keys)),
        peers=tuple(sorted((peer for peer in want.peers - peers), key=lambda peer: peer.public_key)),
    )


def renewal(device: Device) -> Change:
    """The same peers set anew: their sessions are forgotten, and the next packet begins with a handshake. Pure."""
    peers = sorted(device.peers, key=lambda peer: peer.public_key)
    return Change(None, None, None, tuple(peer.public_key for peer in peers), tuple(peers))


def read(name: str, kind: str) -> Reading | None:
    """The device called `name`, or None when there is none that answers. kind is the link's.

    Raises OSError when the kernel refuses (no NET_ADMIN).
    """
    return _kernel_read(name) if kind == WIREGUARD else _userspace_read(name) if kind == TUN else None


def write(name: str, kind: str, wanted: Change) -> None:
    """Apply a change. Raises OSError, or KernelError when wireguard-go does not answer."""
    if kind == WIREGUARD:
        _kernel_write(name, wanted)
    else:
        _userspace_write(name, wanted)


# --- the kernel --------------------------------------------------------------------------------------------------


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


def _kernel_read(name: str) -> Reading | None:
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
            peer, traffic = _kernel_peer(attributes(data))
            if peer.public_key in peers:
                before = peers[peer.public_key]
                peer = before[0]._replace(allowed_ips=before[0].allowed_ips | peer.allowed_ips)
                traffic = before[1]
            peers[peer.public_key] = (peer, traffic)
    device = Device(
        private_key=Secret(_base64(fields.get(3, bytes(32)))),
        listen_port=number(fields.get(6, b"")),
        fwmark=number(fields.get(7, b"")),
        peers=frozenset(peer for peer, _ in peers.values()),
    )
    return Reading(device, {key: traffic for key, (_, traffic) in peers.items()})


def _kernel_peer(found: dict[int, bytes]) -> tuple[Peer, Traffic]:
    seconds, nanoseconds = struct.unpack("=qq", found.get(6, bytes(16)))
    preshared = _base64(found.get(2, bytes(32)))
    peer = Peer(
        public_key=_base64(found[1]),
        preshared_key=Secret(preshared) if preshared != _NO_KEY else None,
        endpoint=_socket_address(found[4]) if 4 in found else None,
        allowed_ips=frozenset(_kernel_allowed_ips(found.get(9, b""))),
        keepalive=number(found.get(5, b"")),
    )
    return peer, Traffic(seconds + nanoseconds / 1e9, number(found.get(7, b"")), number(found.get(8, b"")))


def _kernel_allowed_ips(data: bytes) -> Iterator[str]:
    for _, entry in attribute_list(data):
        found = attributes(entry)
        yield f"{socket.inet_ntop(number(found[1]), found[2])}/{number(found[3])}"


def _socket_address(data: bytes) -> tuple[str, int]:
    """A struct sockaddr_in or sockaddr_in6: the port is in network order, the family in the machine's."""
    family, port = number(data[:2]), int.from_bytes(data[2:4], "big")
    packed = data[4:8] if family == INET else data[8:24]
    return socket.inet_ntop(family, packed), port


def _kernel_write(name: str, wanted: Change) -> None:
    """Settings first, then peer by peer, each with messages of its own: all peers of one message are a single
    attribute, and the length of an attribute has 16 bits."""
    messages = netlink.messages("generic.wireguard")
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
            peers.append(_kernel_peer_attributes(some, 0 if at else _REPLACE_ALLOWED_IPS))
    parts = [attrs, *([("WGDEVICE_A_PEERS", [{"attrs": peer}])] for peer in peers)]
    with netlink.Socket(netlink.NETLINK_GENERIC) as kernel:
        family = _family(kernel)
        if family is None:
            raise KernelError("the kernel's WireGuard module went away")
        for part in filter(None, parts):
            message = messages.wgmsg()
            message["cmd"], message["version"] = _SET_DEVICE, _VERSION
            netlink.write(kernel, family, 0, message, [("WGDEVICE_A_IFNAME", name), *part])


def _kernel_peer_attributes(peer: Peer, flags: int = _REPLACE_ALLOWED_IPS) -> list[tuple[str, Any]]:
    attrs: list[tuple[str, Any]] = [
        ("WGPEER_A_PUBLIC_KEY", peer.public_key),
        ("WGPEER_A_FLAGS", flags),
        ("WGPEER_A_PRESHARED_KEY", peer.preshared_key or _NO_KEY),
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


# --- wireguard-go ------------------------------------------------------------------------------------------------


def start_userspace(name: str) -> None:
    """Start wireguard-go: it makes the interface and its socket, and stays in the background.

    Raises KernelError saying what is missing. The process outlives this one; in a container the watchdog
    adopts it.
    """
    if not os.path.exists(TUN_DEVICE):
        raise KernelError(
            f"neither kernel WireGuard nor {TUN_DEVICE} is here: load the node's wireguard module, "
            f"or give the container {TUN_DEVICE}"
        )
    os.makedirs(SOCKETS, mode=0o700, exist_ok=True)
    if _ask(name, "get=1\n\n") is not None:
        # Its interface was deleted or renamed, and it is about to end, or does now: without its socket, it does.
        os.unlink(f"{SOCKETS}/{name}.sock")
    try:
        # In the foreground, so that the process that listens on the socket is the one that stays (see _is_ours);
        # with an environment of its own: our LOG_LEVEL means something else to it.
        program = process.start(("wireguard-go", "-f", name), {"PATH": os.environ.get("PATH", "")})
    except FileNotFoundError:
        raise KernelError("the kernel has no WireGuard, and wireguard-go is not installed") from None
    deadline = time.monotonic() + _START_TIMEOUT
    while _ask(name, "get=1\n\n") is None:
        printed = program.ended()
        if printed is not None:
            said = [line for line in printed.splitlines() if line.startswith("ERROR")] or ["it says nothing"]
            raise KernelError(f"wireguard-go does not start: {said[0].split(') ')[-1]}")
        if time.monotonic() > deadline:
            raise KernelError(f"wireguard-go does not open {SOCKETS}/{name}.sock in {_START_TIMEOUT} s")
        time.sleep(0.001)
    program.detach()


def _userspace_read(name: str) -> Reading | None:
    answer = _ask(name, "get=1\n\n")
    if answer is None:
        return None
    settings: dict[str, str] = {}
    blocks: list[list[tuple[str, str]]] = []
    for key, _, value in (line.partition("=") for line in answer.splitlines()):
        if key == "public_key":
            blocks.append([])
        if blocks:
            blocks[-1].append((key, value))
        else:
            settings[key] = value
    peers = [_userspace_peer(block) for block in blocks]
    device = Device(
        private_key=Secret(_unhex(settings.get("private_key", "0" * 64))),
        listen_port=int(settings.get("listen_port", "0")),
        fwmark=int(settings.get("fwmark", "0")),
        peers=frozenset(peer for peer, _ in peers),
    )
    return Reading(device, {peer.public_key: traffic for peer, traffic in peers})


def _userspace_peer(block: list[tuple[str, str]]) -> tuple[Peer, Traffic]:
    fields = dict(block)
    preshared = _unhex(fields.get("preshared_key", "0" * 64))
    host, _, port = fields.get("endpoint", "").rpartition(":")
    peer = Peer(
        public_key=_unhex(fields["public_key"]),
        preshared_key=Secret(preshared) if preshared != _NO_KEY else None,
        endpoint=(host.strip("[]"), int(port)) if host else None,
        allowed_ips=frozenset(value for key, value in block if key == "allowed_ip"),
        keepalive=int(fields.get("persistent_keepalive_interval", "0")),
    )
    handshake = int(fields.get("last_handshake_time_sec", "0")) + int(fields.get("last_handshake_time_nsec", "0")) / 1e9
    return peer, Traffic(handshake, int(fields.get("rx_bytes", "0")), int(fields.get("tx_bytes", "0")))


def _userspace_write(name: str, wanted: Change) -> None:
    lines = ["set=1"]
    if wanted.private_key is not None:
        lines.append(f"private_key={_hex(wanted.private_key)}")
    if wanted.listen_port is not None:
        lines.append(f"listen_port={wanted.listen_port}")
    if wanted.fwmark is not None:
        lines.append(f"fwmark={wanted.fwmark}")
    for key in wanted.removed:
        lines += [f"public_key={_hex(key)}", "remove=true"]
    for peer in wanted.peers:
        lines += [f"public_key={_hex(peer.public_key)}", f"preshared_key={_hex(peer.preshared_key or _NO_KEY)}"]
        if peer.endpoint:
            host, port = peer.endpoint
            lines.append(f"endpoint=[{host}]:{port}" if ":" in host else f"endpoint={host}:{port}")
        lines += [f"persistent_keepalive_interval={peer.keepalive}", "replace_allowed_ips=true"]
        lines += [f"allowed_ip={network}" for network in sorted(peer.allowed_ips)]
    answer = _ask(name, "\n".join(lines) + "\n\n")
    if answer is None:
        raise KernelError(f"wireguard-go does not answer on {SOCKETS}/{name}.sock")
    code = -int(dict(line.partition("=")[::2] for line in answer.splitlines())["errno"])
    if code:
        raise OSError(code, os.strerror(code))


def _ask(name: str, request: str) -> str | None:
    """One exchange with wireguard-go; None when nobody of this network namespace answers."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
        control.settimeout(5)
        try:
            control.connect(f"{SOCKETS}/{name}.sock")
            if not _is_ours(control):
                return None
            control.sendall(request.encode())
            answer = b""
            while not answer.endswith(b"\n\n"):
                data = control.recv(1 << 16)
                if not data:
                    return None
                answer += data
        except (FileNotFoundError, ConnectionError, TimeoutError):
            return None
    return answer.decode()


def _is_ours(control: socket.socket) -> bool:
    """Namespaces of one file system share the socket's folder: does its owner live in our network?

    A process that cannot be seen (another container's) shares our files only if it is of our pod.
    """
    pid = struct.unpack("=iII", control.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    try:
        return os.readlink(f"/proc/{pid}/ns/net") == os.readlink("/proc/self/ns/net")
    except OSError:
        return True


def _base64(key: bytes) -> str:
    return b2a_base64(key, newline=False).decode()


def _hex(key: str) -> str:
    return a2b_base64(key).hex()


def _unhex(key: str) -> str:
    return _base64(bytes.fromhex(key))
