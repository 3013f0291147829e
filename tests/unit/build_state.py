"""Whole States for the unit tests: the right one, and what the kernel makes of a plan's steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from init_wg.design import desired
from init_wg.design.firewall import killswitch
from init_wg.design.pod import discover
from init_wg.model.secret import Secret
from init_wg.model.snapshot import Interface
from init_wg.model.state import Device, Link, State
from tests.unit import build

if TYPE_CHECKING:
    from collections.abc import Iterable

    from init_wg.config.settings import Settings
    from init_wg.config.tunnel import Tunnel
    from init_wg.design.desired import Circumstances
    from init_wg.design.plan import Step

SEALED = killswitch.sealed(("eth0",))
NO_KEY = Secret("A" * 43 + "=")
NEW_DEVICE = Device(NO_KEY, 0, 0, frozenset())
DEFAULT_MTU = 1420
#: The kernel's own rules, and the routes of a pod that nobody has touched.
UNTOUCHED_RULES = frozenset(rule for rule in desired.state(
    build.settings(), build.tunnel(), build.pod(), build.circumstances()
).rules if rule.preference in (0, 32766, 32767))  # fmt: skip
UNTOUCHED = State(None, None, frozenset(), frozenset(build.MAIN_ROUTES), UNTOUCHED_RULES, frozenset(), "")
FRESH = UNTOUCHED._replace(ruleset=SEALED)


class World(NamedTuple):
    """What a pod is told: the environment, the file, and the circumstances."""

    settings: Settings = build.settings()
    tunnel: Tunnel = build.tunnel()
    circumstances: Circumstances = build.circumstances()


ORDINARY = World()


def wanted(have: State, world: World = ORDINARY) -> State:
    """What should be there, derived as `reconcile` does it: main's own routes come from what is there."""
    others = tuple(Interface(9 + n, other.name, other.kind, 1420, up=True) for n, other in enumerate(have.others))
    kernel = build.snapshot(interfaces=(build.LOOPBACK, build.UPLINK, *others), routes=tuple(have.routes))
    pod = discover(kernel, world.settings.interface)
    return desired.state(world.settings, world.tunnel, pod, world.circumstances._replace(others=have.others))


RIGHT = wanted(FRESH)


def simulate(state: State, steps: Iterable[Step]) -> State:
    """The kernel, as far as steps can tell. An assertion fails where the kernel would refuse."""
    for step in steps:
        state = _after(state, step)
    return state


def _after(state: State, step: Step) -> State:
    item = step.item
    match step.action:
        case "load" | "open":
            return state._replace(ruleset=item)
        case "unload":
            return state._replace(ruleset="")
        case "delete-link":
            return _without_link(state, item.name)
        case "create-link":
            assert state.link is None, "EEXIST"
            return state._replace(link=item._replace(mtu=DEFAULT_MTU, up=False), device=NEW_DEVICE)
        case "set-mtu":
            return state._replace(link=_link(state)._replace(mtu=item.mtu))
        case "link-up":
            return state._replace(link=_link(state)._replace(up=True))
        case "configure" | "aim" | "keepalive":
            return state._replace(device=_configured(state, *item))
        case "add-address":
            assert _link(state)
            return state._replace(addresses=state.addresses | {item})
        case "delete-address":
            assert item in state.addresses, "EADDRNOTAVAIL"
            return state._replace(addresses=state.addresses - {item})
        case "add-route":
            assert item not in state.routes, "EEXIST"
            if item.device == "wg0":
                assert _link(state).up, "ENETDOWN"
            return state._replace(routes=state.routes | {item})
        case "delete-route":
            assert item in state.routes, "ESRCH"
            return state._replace(routes=state.routes - {item})
        case "add-rule":
            assert item not in state.rules, "EEXIST"
            return state._replace(rules=state.rules | {item})
        case "delete-rule":
            assert item in state.rules, "ENOENT"
            return state._replace(rules=state.rules - {item})
    raise AssertionError(step.action)


def _link(state: State) -> Link:
    assert state.link, "ENODEV"
    return state.link


def _without_link(state: State, name: str) -> State:
    left = frozenset(route for route in state.routes if route.device != name)
    others = frozenset(other for other in state.others if other.name != name)
    assert (state.link and state.link.name == name) or others != state.others, "ENODEV"
    if others != state.others:
        return state._replace(others=others, routes=left)
    return state._replace(link=None, device=None, addresses=frozenset(), routes=left)


def _configured(state: State, kind: str, change: object) -> Device:
    """As WireGuard does it: what is None stays, and an allowed network moves to the peer that is set last."""
    from init_wg.model.wireguard import Change

    assert isinstance(change, Change)
    assert state.device
    assert _link(state).kind == kind
    device = state.device
    if change.private_key is not None:
        device = device._replace(private_key=change.private_key)
    if change.listen_port is not None:
        device = device._replace(listen_port=change.listen_port)
    if change.fwmark is not None:
        device = device._replace(fwmark=change.fwmark)
    peers = {peer.public_key: peer for peer in device.peers if peer.public_key not in change.removed}
    for peer in change.peers:
        peers = {key: p._replace(allowed_ips=p.allowed_ips - peer.allowed_ips) for key, p in peers.items()}
        peers[peer.public_key] = peer
    for key, seconds in change.keepalives:
        peers[key] = peers[key]._replace(keepalive=seconds)
    return device._replace(peers=frozenset(peers.values()))
