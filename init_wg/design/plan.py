"""(want, have) -> ordered steps, each saying why. Pure. No steps: nothing has drifted.

The order is the fail-closed order. After every single step, whatever comes next or never comes, nothing may
leave the pod that could not leave before:

  1  a kill-switch that was there but is not right is put right first; one that is still sealed stays sealed
  2  what leads past the tunnel is taken away: stray routes, foreign rules, an interface that is not WireGuard's
  3  the interface is made and configured while it is down, with the mark before the first peer
  4  addresses, the unreachable defaults under the tunnel's, the rules
  5  the sealed kill-switch is opened, for the tunnel and what bypasses it by name
  6  the interface goes up; then its routes, which need that
  7  what makes a peer speak by itself comes last: a handshake that is refused is tried again only after 5 s
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from init_wg.model import wireguard
from init_wg.model.state import (
    DEFAULT,
    INET,
    PREFERENCE_REPLY,
    RECORD_TABLE,
    TUN,
    WIREGUARD,
    Address,
    Device,
    Link,
    Route,
    Rule,
    State,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


class Step(NamedTuple):
    """One change. `item` is what the action takes; `wanted` and `found` are for people."""

    action: str
    item: Any
    what: str
    wanted: str
    found: str

    def __str__(self) -> str:
        return f"{self.what}: wanted {self.wanted}, found {self.found}"


def plan(want: State, have: State, sealed: str) -> tuple[Step, ...]:
    """The steps from `have` to `want`. `sealed` is the lockdown's text: it opens last, all else is mended first."""
    is_sealed = have.ruleset == sealed and want.ruleset != ""
    opening = _ruleset(want.ruleset, have.ruleset, "open" if is_sealed else "load")
    link = want.link
    replaced = bool(have.link and link and not _usable(have, link))
    if link and (replaced or have.link is None):  # its addresses and routes go, or went, with it
        left = frozenset(route for route in have.routes if route.device != link.name)
        have = have._replace(device=None, addresses=frozenset(), routes=left)
    steps: list[Step] = []
    if not is_sealed and want.ruleset:
        steps += opening
    steps += _removals(want, have)
    steps += _interface(want, have, replaced=replaced)
    steps += [_add_address(address) for address in sorted(want.addresses - have.addresses)]
    missing = sorted(want.routes - have.routes, key=_route_order)
    steps += [_add_route(route) for route in missing if route.device is None]
    steps += [_add_rule(rule) for rule in sorted(want.rules - have.rules, key=_rule_order)]
    if is_sealed:
        steps += opening
    if want.link and (replaced or not have.link or have.link.up != want.link.up):
        steps.append(Step("link-up", want.link, f"interface {want.link.name}", "up", "down"))
    steps += [_add_route(route) for route in missing if route.device is not None]
    if not want.ruleset:  # ENABLE_KILL_SWITCH=false: what protected until now goes when all else stands
        steps += opening
    steps += _aim(want, have)
    steps += _keepalive(want, have)
    return tuple(steps)


def _usable(have: State, wanted: Link) -> bool:
    """Is what is called wg0 a WireGuard device of the kind we want, and does it answer?"""
    return have.link is not None and have.link.kind == wanted.kind and have.device is not None


def _ruleset(want: str, have: str, action: str) -> list[Step]:
    if want == have:
        return []
    if not want:
        return [Step("unload", None, "kill-switch", "none", "loaded")]
    return [Step(action, want, "kill-switch", "as designed", _difference(want, have))]


def _difference(want: str, have: str) -> str:
    """The first line that is not as it should be; a ruleset has no secrets."""
    if not have:
        return "none"
    wanted, found = _lines(want), _lines(have)
    for line in found:
        if line not in wanted:
            return f"a line of its own: {line}"
    for line in wanted:
        if line not in found:
            return f"it without: {line}"
    return "its lines in another order"


def _lines(ruleset: str) -> dict[str, None]:
    """Every line with the chain or the set that it is in; in order, and quick to look up: there may be thousands."""
    lines: dict[str, None] = {}
    where = ""
    for line in map(str.strip, ruleset.splitlines()):
        if line.endswith(" {"):
            where = line.removesuffix(" {")
        lines[f"{line} ({where})" if line not in ("", "}") and not line.endswith(" {") else line] = None
    return lines


def _removals(want: State, have: State) -> Iterator[Step]:
    for other in sorted(have.others - want.others, key=lambda other: other.name):
        yield Step("delete-link", other, f"interface {other.name}", "none", "the tunnel's address on it")
    for route in sorted(have.routes - want.routes, key=_route_order, reverse=True):
        yield Step("delete-route", route, f"route {_show_route(route)}", "none", "there")
    for rule in sorted(have.rules - want.rules, key=_rule_order):
        yield Step("delete-rule", rule, f"rule {_show_rule(rule)}", "none", "there")
    for address in sorted(have.addresses - want.addresses):
        yield Step("delete-address", address, f"address {address.address}/{address.prefix_length}", "none", "there")


def _interface(want: State, have: State, *, replaced: bool) -> Iterator[Step]:
    link, found = want.link, have.link
    if link is None or want.device is None:
        if found:
            yield Step("delete-link", found, f"interface {found.name}", "none", _kind(found.kind))
        return
    what = f"interface {link.name}"
    if replaced and found:
        kind = "a dead wireguard-go" if found.kind == TUN else f"a foreign {found.kind or 'device'}"
        kind = "one of the kernel" if found.kind == WIREGUARD else kind
        yield Step("delete-link", found, what, _kind(link.kind), kind)
    if found is None or replaced:
        yield Step("create-link", link, what, _kind(link.kind), "none")
    difference = wireguard.change(have.device, want.device)._replace(keepalives=())
    if any(value for value in difference) or difference.fwmark is not None:
        words = _settings(difference, want.device, have)
        yield Step("configure", (link.kind, difference), f"WireGuard settings of {link.name}", *words)
    if found is None or replaced or found.mtu != link.mtu:
        yield Step("set-mtu", link, f"MTU of {link.name}", str(link.mtu), str(found.mtu) if found else "none")


def _aim(want: State, have: State) -> Iterator[Step]:
    """Where the uplink has moved, the same endpoints are told again: WireGuard goes on using the source address and
    the interface by which it last heard the peer, and that way may be gone. Sessions survive this."""
    defaults = {route for route in want.routes if route.table == RECORD_TABLE and route.destination in DEFAULT.values()}
    former = any(rule.preference == PREFERENCE_REPLY and rule.source for rule in have.rules - want.rules)
    if want.link and want.device and have.device and (former or defaults - have.routes):
        known = {peer.public_key for peer in have.device.peers}
        peers = sorted((peer for peer in want.device.peers if peer.public_key in known), key=lambda p: p.public_key)
        item = want.link.kind, wireguard.Change(None, None, None, (), tuple(peers))
        yield Step("aim", item, f"endpoints of {want.link.name}", "by the present uplink", "by a former one")


def _keepalive(want: State, have: State) -> Iterator[Step]:
    if not want.link or not want.device:
        return
    difference = wireguard.change(have.device, want.device)
    if difference.keepalives:
        item = want.link.kind, wireguard.Change(None, None, None, (), (), difference.keepalives)
        peers = have.device.peers if have.device else ()
        known = {peer.public_key: str(peer.keepalive) for peer in peers if peer.public_key not in difference.removed}
        wanted = ", ".join(str(seconds) for _, seconds in difference.keepalives)
        found = ", ".join(known.get(key, "none") for key, _ in difference.keepalives)
        yield Step("keepalive", item, f"keepalive of {want.link.name}", wanted, found)


def _settings(difference: wireguard.Change, want: Device, have: State) -> tuple[str, str]:
    """In words, and without keys."""
    if have.device is None:
        return f"{len(difference.peers)} peer(s)", "not configured"
    words = []
    if difference.private_key:
        words.append("another private key")
    if difference.listen_port is not None:
        words.append(f"listen port {have.device.listen_port}")
    if difference.fwmark is not None:
        words.append(f"fwmark {have.device.fwmark}")
    if extra := set(difference.removed) - {peer.public_key for peer in want.peers}:
        words.append(f"{len(extra)} peer(s) too many")
    known = {peer.public_key: peer for peer in have.device.peers}
    for peer in difference.peers:
        before = known.get(peer.public_key)
        if before is None:
            words.append("a peer missing")
        elif fields := [n.replace("_", " ") for n in before._fields[:-1] if getattr(before, n) != getattr(peer, n)]:
            words.append(f"another {' and '.join(fields)} of a peer")
    return "as configured", ", ".join(words)


def _kind(kind: str) -> str:
    return {WIREGUARD: "kernel WireGuard", TUN: "wireguard-go"}.get(kind, kind)


def _add_address(address: Address) -> Step:
    text = f"{address.address}/{address.prefix_length}"
    return Step("add-address", address, f"address {text}", "there", "none")


def _add_route(route: Route) -> Step:
    return Step("add-route", route, f"route {_show_route(route)}", "there", "none")


def _add_rule(rule: Rule) -> Step:
    return Step("add-rule", rule, f"rule {_show_rule(rule)}", "there", "none")


def _route_order(route: Route) -> tuple[Any, ...]:
    """Links before the gateways that are reached over them."""
    family, table, destination, device, gateway, kind, source, metric, *rest = route
    link = gateway is None
    return (family, table, not link, destination, metric, kind, device or "", gateway or "", source or "", rest)


def _rule_order(rule: Rule) -> tuple[Any, ...]:
    return (rule.family, rule.preference, str(rule))


def _show_route(route: Route) -> str:
    kind = "" if route.kind == "unicast" else f"{route.kind} "
    destination = "default" if route.destination == DEFAULT[route.family] else route.destination
    gateway = f" via {route.gateway}" if route.gateway else ""
    device = f" dev {route.device}" if route.device else ""
    family = "" if route.family == INET else " (IPv6)"
    return f"{kind}{destination}{gateway}{device} in table {route.table}{family}"


def _show_rule(rule: Rule) -> str:
    words = [f"{rule.preference}:", *(["not"] if rule.invert else [])]
    words += ["from", rule.source or "all"]
    words += ["to", rule.destination] if rule.destination else []
    words += ["dport", str(rule.port)] if rule.port is not None else []
    words += ["fwmark", str(rule.mark)] if rule.mark is not None else []
    words += ["lookup", str(rule.table)]
    words += ["suppress_prefixlength", str(rule.suppress_prefix_length)] * (rule.suppress_prefix_length is not None)
    words += ["and more"] if rule.other else []
    return f"{' '.join(words)}{'' if rule.family == INET else ' (IPv6)'}"
