"""A WireGuard device as values: what it is told, what it counts, and what to tell it. Pure."""

from __future__ import annotations

from binascii import a2b_base64, b2a_base64
from typing import NamedTuple

from init_wg.model.secret import Secret
from init_wg.model.state import Device, Peer

NO_KEY = b2a_base64(bytes(32), newline=False).decode()


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


def base64(key: bytes) -> str:
    """A key as configuration files and people spell it."""
    return b2a_base64(key, newline=False).decode()


def from_base64(key: str) -> bytes:
    """Its 32 bytes."""
    return a2b_base64(key)
