"""A WireGuard device as values: what it is told, what it counts, and what to tell it. Pure."""

from __future__ import annotations

from binascii import a2b_base64, b2a_base64
from typing import NamedTuple

from init_wg.model.secret import Secret
from init_wg.model.state import Device, Peer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

#: Seconds. An older session carries nothing any more (WireGuard whitepaper, section 6.1).
REJECT_AFTER_TIME = 180.0
NO_KEY = b2a_base64(bytes(32), newline=False).decode()


class Traffic(NamedTuple):
    """The outside of a peer's session: its last handshake in Unix seconds (0: never), bytes each way."""

    latest_handshake: float
    received_bytes: int
    sent_bytes: int

    def lives(self, now: float) -> bool:
        """Can the session still carry data? now: Unix seconds."""
        return self.latest_handshake > now - REJECT_AFTER_TIME


class Reading(NamedTuple):
    """A device as it is, and the traffic by public key."""

    device: Device
    traffic: dict[str, Traffic]


class Change(NamedTuple):
    """The message to a device so that it becomes another: only differences, so that sessions survive.

    A field of None means "leave it"; `peers` are set whole; `removed` are public keys; `keepalives` are public keys
    and seconds.
    The order of the fields is the order on the wire: the mark is there before the first peer, or the first handshake
    would leave unmarked, be refused by the kill-switch and not be tried again for REKEY_TIMEOUT, 5 s. A key in both
    `removed` and `peers` is a peer that is set anew: it forgets its session, and when it last began a handshake.
    """

    private_key: Secret | None
    listen_port: int | None
    fwmark: int | None
    removed: tuple[str, ...]
    peers: tuple[Peer, ...]
    keepalives: tuple[tuple[str, int], ...] = ()


def change(have: Device | None, want: Device) -> Change:
    """The differences from `have` (None: a new device) to `want`. Pure.

    New peers come without keepalive: PersistentKeepalive begins a handshake at once, so `keepalives` is for later,
    when that can leave the pod.
    """
    before = {peer.public_key: peer for peer in have.peers} if have else {}
    new_key = not have or have.private_key != want.private_key
    removed = before.keys() - {peer.public_key for peer in want.peers}
    peers, keepalives = [], []
    for peer in sorted(want.peers, key=lambda peer: peer.public_key):
        known = before.get(peer.public_key)
        if known and (new_key or _is_another(known, peer)):
            removed.add(peer.public_key)
            known = None
        keepalive = known.keepalive if known else 0
        if known is None or known._replace(keepalive=peer.keepalive) != peer:
            peers.append(peer._replace(keepalive=keepalive))
        if peer.keepalive != keepalive:
            keepalives.append((peer.public_key, peer.keepalive))
    return Change(
        private_key=want.private_key if new_key else None,
        listen_port=want.listen_port if not have or have.listen_port != want.listen_port else None,
        fwmark=want.fwmark if not have or have.fwmark != want.fwmark else None,
        removed=tuple(sorted(removed)),
        peers=tuple(peers),
        keepalives=tuple(keepalives),
    )


def _is_another(known: Peer, wanted: Peer) -> bool:
    """Is this another server, or another account, under the same public key? A session with the old one proves
    nothing of the new one, and WireGuard would go on sending data in it for 15 s before it shakes hands."""
    return (known.endpoint, known.preshared_key) != (wanted.endpoint, wanted.preshared_key)


def renewal(peers: Iterable[Peer]) -> Change:
    """The same peers set anew: their sessions are forgotten, and the next packet begins with a handshake. Pure."""
    again = sorted(peers, key=lambda peer: peer.public_key)
    return Change(None, None, None, tuple(peer.public_key for peer in again), tuple(again))


def show_endpoint(endpoint: tuple[str, int] | None) -> str:
    """As people write it: 203.0.113.1:51820, [2001:db8::1]:51820; "" when there is none."""
    if endpoint is None:
        return ""
    host, port = endpoint
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def base64(key: bytes) -> str:
    """A key as configuration files and people spell it."""
    return b2a_base64(key, newline=False).decode()


def from_base64(key: str) -> bytes:
    """Its 32 bytes."""
    return a2b_base64(key)
