"""The output for people and programs in server mode: the server and its peers by name. Never a key but the public
ones."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from init_wg import log
from init_wg.errors import InitWgError
from init_wg.kernel import netlink, nft, sealed
from init_wg.model.wireguard import show_endpoint
from init_wg.server import run
from init_wg.server.design import desired
from init_wg.setup.report import as_json, size

__all__ = ["as_json", "as_text", "peers", "size", "status"]

if TYPE_CHECKING:
    from init_wg.config.settings import Settings
    from init_wg.model.state import Device
    from init_wg.model.wireguard import Traffic
    from init_wg.server.design.desired import Networks
    from init_wg.server.design.register import Register
    from init_wg.server.enrol import Enrolled


def status(settings: Settings) -> dict[str, Any]:
    """Everything there is to know, as plain values. Times are Unix seconds, 0 for never."""
    found: Enrolled | None = None
    notices: list[str] = []
    try:
        found, comparison, seen = run.now(settings)
        drift = [str(step) for step in comparison.steps]
        notices = [str(found.failure)] if found.failure else []
    except InitWgError as error:
        drift = [str(error)]
        with netlink.Socket() as kernel:
            seen = run.look(kernel, settings)
    own = seen.state.interface(settings.interface)
    counters = nft.counters() if seen.state.ruleset else {}
    return {
        "mode": "server",
        "interface": settings.interface,
        "implementation": {"wireguard": "kernel", "tun": "userspace"}.get(own.link.kind if own else ""),
        "up": bool(own and own.link.up and own.device and not drift),
        "sealed": sealed.in_place(),
        "networks": [str(network) for network in found.within] if found else [],
        "mtu": own.link.mtu if own else None,
        "forwarding": sorted(seen.state.forwarding),
        "peers": peers(found.register, found.within, own.device if own else None, seen.sessions(settings.interface))
        if found
        else [],
        "refused_packets": counters.get("refuse", 0),
        "redirected_queries": counters.get("names", 0),
        "notices": notices,
        "drift": drift,
    }


def peers(
    register: Register, within: Networks, device: Device | None, sessions: dict[str, Traffic]
) -> list[dict[str, Any]]:
    """The peers in the order of their numbers, as plain values. device: absent where none answers."""
    endpoints = {peer.public_key: peer.endpoint for peer in (device.peers if device else ())}
    rows = []
    for name, peer in sorted(register.peers.items(), key=lambda item: item[1].number):
        session = sessions.get(peer.public_key)
        handshake = session.latest_handshake if session else 0
        rows.append(
            {
                "name": name,
                "active": peer.active,
                "needs_new_file": register.needs_new_file(peer, handshake),
                "public_key": peer.public_key,
                "addresses": list(desired.addresses(within, peer.number)),
                "endpoint": show_endpoint(endpoints.get(peer.public_key)) or None,
                "latest_handshake": handshake,
                "received_bytes": session.received_bytes if session else 0,
                "sent_bytes": session.sent_bytes if session else 0,
            }
        )
    return rows


def as_text(facts: dict[str, Any]) -> str:
    """For a terminal."""
    lines = [
        (
            f"server:      {'up' if facts['up'] else 'NOT UP'}"
            f" ({facts['interface']}, {facts['implementation'] or 'absent'})"
        ),
        f"rules:       {'in place' if facts['sealed'] else 'NOT IN PLACE'}, {facts['refused_packets']} packets refused",
        f"networks:    {', '.join(facts['networks']) or 'none'}, MTU {facts['mtu']}",
        f"forwarding:  {', '.join(facts['forwarding']) or 'nothing'}",
        f"DNS:         {facts['redirected_queries']} queries of peers answered here",
    ]
    for peer in facts["peers"]:
        notes = "" if peer["active"] else ", NOT IN THE LIST"
        notes += ", NEEDS ITS NEW FILE" if peer["needs_new_file"] else ""
        lines += [f"peer:        {peer['name']}, {', '.join(peer['addresses'])}{notes}", f"             {_seen(peer)}"]
    lines += [f"note:        {notice}" for notice in facts["notices"]]
    lines += [f"drift:       {line}" for line in facts["drift"]] or ["drift:       none"]
    return "\n".join(map(log.printable, lines))


def _seen(peer: dict[str, Any]) -> str:
    if not peer["latest_handshake"]:
        return "not seen yet"
    age = time.time() - peer["latest_handshake"]
    traffic = f"received {size(peer['received_bytes'])}, sent {size(peer['sent_bytes'])}"
    return f"at {peer['endpoint']}, handshake {age:.0f} s ago, {traffic}"
