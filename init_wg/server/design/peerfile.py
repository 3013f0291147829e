"""A peer's own file: what its owner imports, or scans. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from init_wg.server.design import desired
from init_wg.server.design.register import SERVER_NUMBER

if TYPE_CHECKING:
    from init_wg.config.server_settings import ServerSettings
    from init_wg.server.design.desired import Networks
    from init_wg.server.design.register import Peer


def text(peer: Peer, server: ServerSettings, within: Networks, public_key: str, host: str, mtu: int) -> str:
    """In wg-quick's format. host: where the server is, without brackets; mtu: in bytes.

    A peer that keeps its private key has a comment in its place.
    """
    own = ", ".join(f"{each}/{128 if ':' in each else 32}" for each in desired.addresses(within, peer.number))
    resolvers = desired.addresses(within, SERVER_NUMBER) if server.peer_dns is None else server.peer_dns
    lines = [
        "[Interface]",
        f"PrivateKey = {peer.key}" if peer.key else f"# PrivateKey = the one of the public key {peer.public_key}",
        f"Address = {own}",
        *([f"DNS = {', '.join(resolvers)}"] if resolvers else []),
        f"MTU = {mtu}",
        "",
        "[Peer]",
        f"PublicKey = {public_key}",
        *([f"PresharedKey = {peer.preshared_key}"] if peer.preshared_key else []),
        f"Endpoint = {f'[{host}]' if ':' in host else host}:{server.port}",
        f"AllowedIPs = {', '.join(map(str, server.allowed_ips))}",
        *([f"PersistentKeepalive = {server.keepalive}"] if server.keepalive else []),
    ]
    return "\n".join(lines) + "\n"
