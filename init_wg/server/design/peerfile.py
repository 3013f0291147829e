"""A peer's own file: what its owner imports, or scans. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from init_wg.config.server_settings import AUTO
from init_wg.errors import ConfigError
from init_wg.server.design import desired
from init_wg.server.design.register import SERVER_NUMBER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from init_wg.config.server_settings import ServerSettings
    from init_wg.design.pod import Pod
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


def host(server: ServerSettings, pod: Pod) -> str:
    """The host in the peers' files, without brackets. Raises ConfigError where SERVERURL does not lead to one."""
    if server.url not in ("", AUTO):
        return server.url
    public = sorted((address.ip for address in pod.addresses if address.ip.is_global), key=lambda ip: ip.version)
    if server.url == AUTO and public:
        return str(public[0])
    why = "is auto, and this pod has no public address" if server.url else "is not set"
    raise ConfigError(
        f"environment: SERVERURL {why}: set it to the name or the address by which peers reach this server"
    )


def secret(files: Mapping[str, str]) -> str:
    """A Kubernetes Secret, as egress pods mount it. files: the text of each peer's file by the peer's name."""
    lines = ["apiVersion: v1", "kind: Secret", "metadata:", "  name: init-wg", "type: Opaque", "stringData:"]
    for name, text in files.items():
        lines.append(f"  {name}.conf: |")
        lines += [f"    {line}".rstrip() for line in text.splitlines()]
    return "\n".join(lines) + "\n"
