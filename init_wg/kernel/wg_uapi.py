"""wireguard-go: a process, and the cross-platform text protocol (wireguard.com/xplatform) on its Unix socket."""

from __future__ import annotations

import os
import signal
import socket
import struct
import time
from contextlib import suppress

from init_wg.errors import KernelError
from init_wg.kernel import process
from init_wg.model.secret import Secret
from init_wg.model.state import Device, Peer
from init_wg.model.wireguard import NO_KEY, Change, Reading, Traffic, base64, from_base64

SOCKETS = "/var/run/wireguard"
TUN_DEVICE = "/dev/net/tun"
_START_TIMEOUT = 10
#: Seconds for an answer, which takes a millisecond. Who does not give it hangs.
PATIENCE = 1.0
#: Seconds for a change, which may be of thousands of peers.
WRITE_PATIENCE = 10.0


def start(name: str) -> None:
    """Start wireguard-go: it makes the interface and its socket, and stays in the background.

    Raises KernelError saying what is missing. The process outlives this one; in a container the watchdog
    adopts it.
    """
    if not os.path.exists(TUN_DEVICE):
        raise KernelError(
            f"neither kernel WireGuard nor {TUN_DEVICE} is here: load the node's wireguard module, or "
            f"give the container {TUN_DEVICE} (component-userspace, pod-userspace.yaml, compose.userspace.yaml)"
        )
    os.makedirs(SOCKETS, mode=0o700, exist_ok=True)
    _end_old(name)
    try:
        # In the foreground, so that the process that listens on the socket is the one that stays (see _is_ours);
        # with an environment of its own: our LOG_LEVEL means something else to it.
        program = process.start(("wireguard-go", "-f", name), {"PATH": os.environ.get("PATH", "")})
    except FileNotFoundError:
        raise KernelError("the kernel has no WireGuard, and wireguard-go is not installed") from None
    try:
        _await(name, program)
    except BaseException:  # also when a signal ends us: nobody will look after it
        with suppress(OSError):
            os.kill(program.pid, signal.SIGKILL)
        raise
    program.detach()


def _await(name: str, program: process.Background) -> None:
    """Until it answers. Raises KernelError when it ends before that, or takes too long."""
    deadline = time.monotonic() + _START_TIMEOUT
    while _ask(name, "get=1\n\n") is None:
        printed = program.ended()
        if printed is not None:
            said = [line for line in printed.splitlines() if line.startswith("ERROR")] or ["it says nothing"]
            raise KernelError(f"wireguard-go does not start: {said[0].split(') ')[-1]}")
        if time.monotonic() > deadline:
            raise KernelError(f"wireguard-go does not open {SOCKETS}/{name}.sock in {_START_TIMEOUT} s")
        time.sleep(0.001)


def _end_old(name: str) -> None:
    """One that is still there has lost its interface, or hangs (stopped, or out of its wits): its time is over.

    Killed, where it can be seen from here; without its socket it is in nobody's way.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
        control.settimeout(PATIENCE)
        try:
            control.connect(f"{SOCKETS}/{name}.sock")
        except (FileNotFoundError, ConnectionError):
            return  # nobody is behind it: wireguard-go itself clears that away
        except OSError:  # it takes no connection any more; whose it is cannot be known then
            pid = 0
        else:
            if not _is_ours(control):
                return
            pid = _owner(control)
    with suppress(OSError):
        if pid and _is_wireguard_go(pid):
            os.kill(pid, signal.SIGKILL)
    with suppress(FileNotFoundError):
        os.unlink(f"{SOCKETS}/{name}.sock")


def _is_wireguard_go(pid: int) -> bool:
    with open(f"/proc/{pid}/comm", "rb") as file:
        return file.read().startswith(b"wireguard-go")


def read(name: str, patience: float = PATIENCE) -> Reading | None:
    """patience: seconds until one that does not answer counts as none."""
    answer = _ask(name, "get=1\n\n", patience)
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
    peers = [_peer(block) for block in blocks]
    device = Device(
        private_key=Secret(_unhex(settings.get("private_key", "0" * 64))),
        listen_port=int(settings.get("listen_port", "0")),
        fwmark=int(settings.get("fwmark", "0")),
        peers=frozenset(peer for peer, _ in peers),
    )
    return Reading(device, {peer.public_key: traffic for peer, traffic in peers})


def _peer(block: list[tuple[str, str]]) -> tuple[Peer, Traffic]:
    fields = dict(block)
    preshared = _unhex(fields.get("preshared_key", "0" * 64))
    host, _, port = fields.get("endpoint", "").rpartition(":")
    peer = Peer(
        public_key=_unhex(fields["public_key"]),
        preshared_key=Secret(preshared) if preshared != NO_KEY else None,
        endpoint=(host.strip("[]"), int(port)) if host else None,
        allowed_ips=frozenset(value for key, value in block if key == "allowed_ip"),
        keepalive=int(fields.get("persistent_keepalive_interval", "0")),
    )
    handshake = int(fields.get("last_handshake_time_sec", "0")) + int(fields.get("last_handshake_time_nsec", "0")) / 1e9
    return peer, Traffic(handshake, int(fields.get("rx_bytes", "0")), int(fields.get("tx_bytes", "0")))


def write(name: str, wanted: Change, patience: float = WRITE_PATIENCE) -> None:
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
        lines += [f"public_key={_hex(peer.public_key)}", f"preshared_key={_hex(peer.preshared_key or NO_KEY)}"]
        if peer.endpoint:
            host, port = peer.endpoint
            lines.append(f"endpoint=[{host}]:{port}" if ":" in host else f"endpoint={host}:{port}")
        lines += [f"persistent_keepalive_interval={peer.keepalive}", "replace_allowed_ips=true"]
        lines += [f"allowed_ip={network}" for network in sorted(peer.allowed_ips)]
    for key, seconds in wanted.keepalives:
        lines += [f"public_key={_hex(key)}", "update_only=true", f"persistent_keepalive_interval={seconds}"]
    answer = _ask(name, "\n".join(lines) + "\n\n", patience)
    if answer is None:
        raise KernelError(f"wireguard-go does not answer on {SOCKETS}/{name}.sock")
    code = -int(dict(line.partition("=")[::2] for line in answer.splitlines())["errno"])
    if code:
        raise OSError(code, os.strerror(code))


def _ask(name: str, request: str, patience: float = PATIENCE) -> str | None:
    """One exchange with wireguard-go; None when nobody of this network namespace answers."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
        control.settimeout(patience)
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
        except (FileNotFoundError, ConnectionError, TimeoutError, BlockingIOError):  # the last: too many wait already
            return None
    return answer.decode()


def _is_ours(control: socket.socket) -> bool:
    """Namespaces of one file system share the socket's folder: does its owner live in our network?

    A process that cannot be seen (another container's) shares our files only if it is of our pod.
    """
    try:
        return os.readlink(f"/proc/{_owner(control)}/ns/net") == os.readlink("/proc/self/ns/net")
    except OSError:
        return True


def _owner(control: socket.socket) -> int:
    """The process that listens on the other end; 0 when it cannot be seen from here."""
    return int(struct.unpack("=iII", control.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])


def _hex(key: str) -> str:
    return from_base64(key).hex()


def _unhex(key: str) -> str:
    return base64(bytes.fromhex(key))
