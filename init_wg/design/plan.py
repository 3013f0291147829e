"""(want, have) -> ordered steps, each saying why. Pure. No steps: nothing has drifted.

The order is the fail-closed order. After every single step, whatever comes next or never comes, nothing may
leave the pod that could not leave before:

  1  a kill-switch that was there but is not right is put right first; one that is still sealed stays sealed
  2  what leads past the tunnel is taken away: stray routes, foreign rules, an interface that is not WireGuard's
  3  the interface is made and configured while it is down, with the mark before the first peer
  4  addresses, the unreachable defaults under the tunnel's, the rules; forwarding, where it is wanted
  5  the sealed kill-switch is opened, for the tunnel and what bypasses it by name
  6  the interface goes up; then its routes, which need that
  7  what makes a peer speak by itself comes last: a handshake that is refused is tried again only after 5 s
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from init_wg.design.steps import (
    AddAddress,
    AddRoute,
    AddRule,
    Configure,
    CreateInterface,
    DeleteAddress,
    DeleteInterface,
    DeleteRoute,
    DeleteRule,
    DeleteRuleset,
    OpenRuleset,
    RepairRuleset,
    RepeatEndpoints,
    SetForwarding,
    SetKeepalives,
    SetMtu,
    SetUp,
    Step,
    unwanted_interface,
    wrong_interface,
)
from init_wg.model import wireguard
from init_wg.model.state import (
    DEFAULT,
    PREFERENCE_REPLY,
    RECORD_TABLE,
    Address,
    Device,
    Route,
    Rule,
    State,
    TunnelInterface,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


def plan(want: State, have: State, sealed: str) -> tuple[Step, ...]:
    """The steps from `have` to `want`. `sealed` is the lockdown's text: it opens last, all else is mended first."""
    is_sealed = have.ruleset == sealed and want.ruleset != ""
    opening = _ruleset(want.ruleset, have.ruleset, is_sealed=is_sealed)
    pairs = [_Pair(each, have.interface(each.link.name)) for each in want.interfaces]
    # The addresses and routes of an interface that is made anew go, or went, with it.
    new = {pair.want.link.name for pair in pairs if not pair.known}
    have = have._replace(routes=frozenset(route for route in have.routes if route.device not in new))
    steps: list[Step] = []
    if not is_sealed and want.ruleset:
        steps += opening
    steps += _removals(want, have, new)
    for pair in pairs:
        steps += _interface(pair)
    steps += [AddAddress(pair.want.link.name, address) for pair in pairs for address in pair.missing_addresses()]
    missing = sorted(want.routes - have.routes, key=_route_order)
    steps += [AddRoute(route) for route in missing if route.device is None]
    steps += [AddRule(rule) for rule in sorted(want.rules - have.rules, key=_rule_order)]
    steps += [SetForwarding(name) for name in sorted(want.forwarding - (have.forwarding - new))]
    if is_sealed:
        steps += opening
    steps += [SetUp(pair.want.link.name) for pair in pairs if not pair.known or pair.known.link.up != pair.want.link.up]
    steps += [AddRoute(route) for route in missing if route.device is not None]
    if not want.ruleset:  # ENABLE_KILL_SWITCH=false: what protected until now goes when all else stands
        steps += opening
    for pair in pairs:
        steps += _repeated_endpoints(pair, want, have)
    for pair in pairs:
        steps += _keepalives(pair)
    return tuple(steps)


class _Pair(NamedTuple):
    """An interface that is wanted, and what is there by its name."""

    want: TunnelInterface
    found: TunnelInterface | None

    @property
    def known(self) -> TunnelInterface | None:
        """The one that is there, if it is a WireGuard device of the kind we want, and answers."""
        usable = self.found and self.found.link.kind == self.want.link.kind and self.found.device is not None
        return self.found if usable else None

    @property
    def before(self) -> Device | None:
        """Its settings."""
        return self.known.device if self.known else None

    def missing_addresses(self) -> list[Address]:
        return sorted(self.want.addresses - (self.known.addresses if self.known else frozenset()))


def _ruleset(want: str, have: str, *, is_sealed: bool) -> list[Step]:
    if want == have:
        return []
    if not want:
        return [DeleteRuleset()]
    return [(OpenRuleset if is_sealed else RepairRuleset)(want, _difference(want, have))]


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


def _removals(want: State, have: State, new: set[str]) -> Iterator[Step]:
    """All that leads past the tunnel, then what is only too much. `new`: interfaces that are made anew."""
    for other in sorted(have.others - want.others, key=lambda other: other.name):
        yield DeleteInterface(other.name, "the tunnel's address on it")
    for route in sorted(have.routes - want.routes, key=_route_order, reverse=True):
        yield DeleteRoute(route)
    for rule in sorted(have.rules - want.rules, key=_rule_order):
        yield DeleteRule(rule)
    for found in have.interfaces:
        wanted = want.interface(found.link.name)
        if found.link.name not in new:
            left = found.addresses - (wanted.addresses if wanted else frozenset())
            yield from (DeleteAddress(found.link.name, address) for address in sorted(left))
    for found in have.interfaces:
        if want.interface(found.link.name) is None:
            yield unwanted_interface(found.link)


def _interface(pair: _Pair) -> Iterator[Step]:
    link, known, device = pair.want.link, pair.known, pair.want.device
    if pair.found and not known:
        yield wrong_interface(pair.found.link, link.kind)
    if not known:
        yield CreateInterface(link)
    if device:
        difference = wireguard.change(pair.before, device)._replace(keepalives=())
        if any(value for value in difference) or difference.fwmark is not None:
            yield Configure(link, difference, *_settings(difference, device, pair.before))
    if not known or known.link.mtu != link.mtu:
        yield SetMtu(link, pair.found.link if pair.found else None)


def _repeated_endpoints(pair: _Pair, want: State, have: State) -> Iterator[Step]:
    """Where the uplink has moved, the same endpoints are told again: WireGuard goes on using the source address and
    the interface by which it last heard the peer, and that way may be gone. Sessions survive this."""
    defaults = {route for route in want.routes if route.table == RECORD_TABLE and route.destination in DEFAULT.values()}
    former = any(rule.preference == PREFERENCE_REPLY and rule.source for rule in have.rules - want.rules)
    before = pair.before
    if pair.want.device and before and (former or defaults - have.routes):
        known = {peer.public_key for peer in before.peers}
        peers = sorted((p for p in pair.want.device.peers if p.public_key in known), key=lambda p: p.public_key)
        yield RepeatEndpoints(pair.want.link, wireguard.Change(None, None, None, (), tuple(peers)))


def _keepalives(pair: _Pair) -> Iterator[Step]:
    if not pair.want.device:
        return
    before = pair.before
    difference = wireguard.change(before, pair.want.device)
    if difference.keepalives:
        change = wireguard.Change(None, None, None, (), (), difference.keepalives)
        peers = before.peers if before else ()
        known = {peer.public_key: str(peer.keepalive) for peer in peers if peer.public_key not in difference.removed}
        wanted = ", ".join(str(seconds) for _, seconds in difference.keepalives)
        found = ", ".join(known.get(key, "none") for key, _ in difference.keepalives)
        yield SetKeepalives(pair.want.link, change, wanted, found)


def _settings(difference: wireguard.Change, want: Device, have: Device | None) -> tuple[str, str]:
    """In words, and without keys."""
    if have is None:
        return f"{len(difference.peers)} peer(s)", "not configured"
    words = []
    if difference.private_key:
        words.append("another private key")
    if difference.listen_port is not None:
        words.append(f"listen port {have.listen_port}")
    if difference.fwmark is not None:
        words.append(f"fwmark {have.fwmark}")
    if extra := set(difference.removed) - {peer.public_key for peer in want.peers}:
        words.append(f"{len(extra)} peer(s) too many")
    known = {peer.public_key: peer for peer in have.peers}
    for peer in difference.peers:
        before = known.get(peer.public_key)
        if before is None:
            words.append("a peer missing")
        elif fields := [n.replace("_", " ") for n in before._fields[:-1] if getattr(before, n) != getattr(peer, n)]:
            words.append(f"another {' and '.join(fields)} of a peer")
    return "as configured", ", ".join(words)


def _route_order(route: Route) -> tuple[Any, ...]:
    """Links before the gateways that are reached over them."""
    family, table, destination, device, gateway, kind, source, metric, *rest = route
    link = gateway is None
    return (family, table, not link, destination, metric, kind, device or "", gateway or "", source or "", rest)


def _rule_order(rule: Rule) -> tuple[Any, ...]:
    return (rule.family, rule.preference, str(rule))
