"""The output for people and programs: status as text and JSON, and what a file would set up. Never a key but
the public ones."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from init_wg import log
from init_wg.design import dns, reach
from init_wg.design.bypass import few
from init_wg.design.firewall.policy import Names
from init_wg.errors import InitWgError
from init_wg.kernel import nft, sealed
from init_wg.model.wireguard import show_endpoint
from init_wg.setup import connect
from init_wg.setup.observe import look

if TYPE_CHECKING:
    from collections.abc import Mapping

    from init_wg.config.settings import Settings
    from init_wg.config.tunnel import Tunnel
    from init_wg.design.bypass import Bypass
    from init_wg.model.state import Device
    from init_wg.model.wireguard import Traffic
    from init_wg.setup.observe import Observation


class Compared(NamedTuple):
    """The present state beside the design."""

    drift: list[str]
    server: str | None = None
    resolvers: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    bypass: Bypass | None = None


def status(settings: Settings) -> dict[str, Any]:
    """Everything there is to know, as plain values. Times are Unix seconds, 0 for never."""
    seen = look(settings.interface)
    state = seen.state
    own = state.interface(settings.interface)
    device = own.device if own else None
    counters = nft.counters() if state.ruleset else {}
    design = _compared(settings, seen)
    return {
        "interface": settings.interface,
        "implementation": {"wireguard": "kernel", "tun": "userspace"}.get(own.link.kind if own else ""),
        "server": design.server,
        "up": bool(own and own.link.up and device and not design.drift),
        "sealed": sealed.in_place(),
        "addresses": sorted(f"{a.address}/{a.prefix_length}" for a in (own.addresses if own else ())),
        "mtu": own.link.mtu if own else None,
        "peers": _peers(device, seen.sessions(settings.interface)),
        "rules": len(state.rules),
        "routes": len(state.routes),
        "refused_packets": counters.get("refuse", 0),
        "dns": {
            "mode": settings.dns_mode if settings.dns_config else "off",
            "resolvers": list(design.resolvers),
            "redirected_queries": counters.get("names", 0),
            "refused_queries": counters.get("refuse_name", 0),
        },
        "notices": list(design.notices),
        "bypass": {
            "networks": list(design.bypass.networks) if design.bypass else [],
            "closed": list(design.bypass.closed) if design.bypass else [],
        },
        "drift": design.drift,
    }


def _compared(settings: Settings, seen: Observation) -> Compared:
    """A design that cannot be made, because a file is wrong, is a drift of its own."""
    server = None
    try:
        server = connect.marked(settings.config, seen.state)
        tunnel, comparison = connect.compare(settings, seen)
        chosen = dns.choose(settings, tunnel, seen.resolv_conf)
    except InitWgError as error:
        return Compared([str(error)], server)
    resolvers = chosen.resolvers if isinstance(chosen, Names) else ()
    drift = [str(step) for step in comparison.steps]
    return Compared(drift, tunnel.name, resolvers, comparison.notices, comparison.bypass)


def _peers(device: Device | None, sessions: Mapping[str, Traffic]) -> list[dict[str, Any]]:
    return [
        {
            "public_key": peer.public_key,
            "endpoint": show_endpoint(peer.endpoint) or None,
            "allowed_ips": sorted(peer.allowed_ips),
            "keepalive": peer.keepalive,
            "latest_handshake": sessions[peer.public_key].latest_handshake,
            "received_bytes": sessions[peer.public_key].received_bytes,
            "sent_bytes": sessions[peer.public_key].sent_bytes,
        }
        for peer in sorted(device.peers if device else (), key=lambda peer: peer.public_key)
    ]


def as_json(facts: dict[str, Any]) -> str:
    """One object."""
    from json import dumps

    return dumps(facts, indent=2)


def as_text(facts: dict[str, Any]) -> str:
    """For a terminal."""
    dns = facts["dns"]
    lines = [
        (
            f"tunnel:      {'up' if facts['up'] else 'NOT UP'}"
            f" ({facts['interface']}, {facts['implementation'] or 'absent'})"
        ),
        f"kill-switch: {'in place' if facts['sealed'] else 'NOT IN PLACE'}, {facts['refused_packets']} packets refused",
        f"server:      {facts['server'] or 'none'}",
        f"addresses:   {', '.join(facts['addresses']) or 'none'}, MTU {facts['mtu']}",
    ]
    lines.append(
        f"DNS:         {dns['mode']}: {', '.join(dns['resolvers']) or 'as addressed'}; "
        f"{dns['redirected_queries']} queries redirected, {dns['refused_queries']} refused"
    )
    lines.append(f"bypass:      {few(facts['bypass']['networks']) or 'nothing'}")
    lines += [f"closed:      {closed}" for closed in facts["bypass"]["closed"]]
    for peer in facts["peers"]:
        age = time.time() - peer["latest_handshake"]
        handshake = f"handshake {age:.0f} s ago" if peer["latest_handshake"] else "no handshake yet"
        lines += [
            f"peer:        {peer['public_key']} at {peer['endpoint']}",
            f"             {handshake}, received {size(peer['received_bytes'])}, sent {size(peer['sent_bytes'])}",
            f"             allowed IPs {', '.join(peer['allowed_ips'])}",
        ]
    lines += [f"note:        {notice}" for notice in facts["notices"]]
    lines += [f"drift:       {line}" for line in facts["drift"]] or ["drift:       none"]
    return "\n".join(map(log.printable, lines))


def preview(tunnel: Tunnel) -> str:
    """All that a file would set up."""
    resolvers = ", ".join(map(str, reach.resolvers(tunnel)))
    lines = [
        f"{tunnel.path}: right",
        f"server:      {tunnel.name}",
        f"addresses:   {', '.join(map(str, tunnel.addresses))}",
        f"MTU:         {tunnel.mtu or 'the MTU of the uplink minus 80, at most 1420'}",
        f"resolvers:   {resolvers or 'none: queries go through the tunnel to whom they name'}",
    ]
    for peer in tunnel.peers:
        where = show_endpoint(peer.endpoint) or "nowhere"
        lines.append(f"peer:        {peer.public_key} at {where}")
        lines.append(f"             allowed IPs {', '.join(map(str, peer.allowed_ips))}")
    notes = [*tunnel.notices, *reach.notes(tunnel, None)]
    return "\n".join(map(log.printable, [*lines, *(f"note:        {notice}" for notice in notes)]))


def size(count: float) -> str:
    """Of bytes, for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
