"""Whole States for the unit tests: the right one, and what the kernel makes of a plan's steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from init_wg.design import desired
from init_wg.design.firewall import killswitch
from init_wg.design.firewall.policy import Gate
from init_wg.design.pod import discover
from init_wg.design.steps import (
    AddAddress,
    AddRoute,
    AddRule,
    ChangeDevice,
    CreateInterface,
    DeleteAddress,
    DeleteInterface,
    DeleteRoute,
    DeleteRule,
    DeleteRuleset,
    PutRuleset,
    SetMtu,
    SetUp,
)
from init_wg.model.secret import Secret
from init_wg.model.snapshot import Interface
from init_wg.model.state import Device, State, TunnelInterface
from tests.unit import build

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from init_wg.config.settings import Settings
    from init_wg.config.tunnel import Tunnel
    from init_wg.design.desired import Circumstances
    from init_wg.design.steps import Step

SEALED = killswitch.sealed(("eth0",))
NO_KEY = Secret("A" * 43 + "=")
NEW_DEVICE = Device(NO_KEY, 0, 0, frozenset())
DEFAULT_MTU = 1420
#: The kernel's own rules, and the routes of a pod that nobody has touched.
UNTOUCHED_RULES = frozenset(rule for rule in desired.state(
    build.settings(), build.tunnel(), build.pod(), build.circumstances()
).rules if rule.preference in (0, 32766, 32767))  # fmt: skip
UNTOUCHED = State((), frozenset(build.MAIN_ROUTES), UNTOUCHED_RULES, frozenset(), "")
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
    now = world.circumstances._replace(gate=Gate(pod.links, routed=True), others=have.others)
    return desired.state(world.settings, world.tunnel, pod, now)


RIGHT = wanted(FRESH)


def right(state: State = RIGHT) -> TunnelInterface:
    """The one interface of a state."""
    (own,) = state.interfaces
    return own


def simulate(state: State, steps: Iterable[Step]) -> State:
    """The kernel, as far as steps can tell. An assertion fails where the kernel would refuse."""
    for step in steps:
        state = _after(state, step)
    return state


def _after(state: State, step: Step) -> State:
    match step:
        case PutRuleset():
            return state._replace(ruleset=step.ruleset)
        case DeleteRuleset():
            return state._replace(ruleset="")
        case DeleteInterface():
            return _without_interface(state, step.name)
        case CreateInterface(link=link):
            assert state.interface(link.name) is None, "EEXIST"
            made = TunnelInterface(link._replace(mtu=DEFAULT_MTU, up=False), NEW_DEVICE, frozenset())
            return state._replace(interfaces=tuple(sorted((*state.interfaces, made))))
        case SetMtu(link=link):
            return with_interface(state, link.name, lambda own: own._replace(link=own.link._replace(mtu=link.mtu)))
        case SetUp():
            return with_interface(state, step.name, lambda own: own._replace(link=own.link._replace(up=True)))
        case ChangeDevice():
            return with_interface(state, step.name, lambda own: own._replace(device=_configured(own, step)))
        case AddAddress(address=address):
            return with_interface(state, step.interface, lambda own: own._replace(addresses=own.addresses | {address}))
        case DeleteAddress(address=address):
            assert address in _interface(state, step.interface).addresses, "EADDRNOTAVAIL"
            return with_interface(state, step.interface, lambda own: own._replace(addresses=own.addresses - {address}))
        case AddRoute(route=route):
            assert route not in state.routes, "EEXIST"
            if route.device and route.device != "eth0":
                assert _interface(state, route.device).link.up, "ENETDOWN"
            return state._replace(routes=state.routes | {route})
        case DeleteRoute(route=route):
            assert route in state.routes, "ESRCH"
            return state._replace(routes=state.routes - {route})
        case AddRule(rule=rule):
            assert rule not in state.rules, "EEXIST"
            return state._replace(rules=state.rules | {rule})
        case DeleteRule(rule=rule):
            assert rule in state.rules, "ENOENT"
            return state._replace(rules=state.rules - {rule})
    raise AssertionError(step)


def with_interface(state: State, name: str, change: Callable[[TunnelInterface], TunnelInterface]) -> State:
    """One of its interfaces changed."""
    assert state.interface(name), "ENODEV"
    return state._replace(
        interfaces=tuple(change(each) if each.link.name == name else each for each in state.interfaces)
    )


def _interface(state: State, name: str) -> TunnelInterface:
    found = state.interface(name)
    assert found, "ENODEV"
    return found


def _without_interface(state: State, name: str) -> State:
    left = frozenset(route for route in state.routes if route.device != name)
    interfaces = tuple(each for each in state.interfaces if each.link.name != name)
    others = frozenset(other for other in state.others if other.name != name)
    assert (interfaces, others) != (state.interfaces, state.others), "ENODEV"
    return state._replace(interfaces=interfaces, others=others, routes=left)


def _configured(own: TunnelInterface, step: ChangeDevice) -> Device:
    """As WireGuard does it: what is None stays, and an allowed network moves to the peer that is set last."""
    device, change = own.device, step.change
    assert device
    assert own.link.kind == step.kind
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
