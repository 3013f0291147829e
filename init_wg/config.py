"""wg0.conf (and wg0.address beside it) -> Tunnel."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import NamedTuple


class Secret(str):
    """A key that never shows itself: its repr, and so every traceback and log of a structure, is masked."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "Secret(hidden)"


class Endpoint(NamedTuple):
    """Where a peer listens: a host (an IP address or a name, without brackets) and a UDP port."""

    host: str
    port: int


class Peer(NamedTuple):
    """One [Peer]. Keys are base64, 44 characters; keepalive is in seconds, 0 is off."""

    public_key: str
    preshared_key: Secret | None
    endpoint: Endpoint | None
    allowed_ips: tuple[IPv4Network | IPv6Network, ...]
    keepalive: int


class Tunnel(NamedTuple):
    """One server's file, validated. `notices` are sentences to be logged once (what is ignored, and why)."""

    name: str
    path: str
    private_key: Secret
    addresses: tuple[IPv4Interface | IPv6Interface, ...]
    dns: tuple[IPv4Address | IPv6Address, ...]
    search: tuple[str, ...]
    mtu: int | None
    listen_port: int | None
    peers: tuple[Peer, ...]
    notices: tuple[str, ...]


def servers(path: str) -> tuple[str, ...]:
    """The config files at `path` in name order: itself, or every *.conf of a folder. Raises ConfigError."""
    raise NotImplementedError


def load(path: str) -> Tunnel:
    """Read and validate one file. Raises ConfigError whose text has file:line and what to do."""
    raise NotImplementedError
