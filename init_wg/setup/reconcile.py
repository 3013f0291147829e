"""Observe, plan, apply, observe again: setup, repair and check are this one loop."""

from __future__ import annotations

import os
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from init_wg import log
from init_wg.config import tunnel as config
from init_wg.design import bypass, desired, dns, reach
from init_wg.design import pod as pods
from init_wg.design.firewall import killswitch, ruleset
from init_wg.design.firewall.policy import Gate, Names, Sealed
from init_wg.design.plan import plan
from init_wg.design.steps import AddRoute, Configure, CreateInterface, PutRuleset, RepeatEndpoints, SetUp, Step
from init_wg.errors import ConfigError, VerifyError
from init_wg.kernel import netlink, nft, older
from init_wg.model.state import INET, INET6, TUN, WIREGUARD, State
from init_wg.setup import apply, lockdown
from init_wg.setup.observe import Observation, observe

if TYPE_CHECKING:
    from init_wg.config.settings import Settings
    from init_wg.config.tunnel import Tunnel
    from init_wg.design.bypass import Bypass
    from init_wg.design.desired import Circumstances
    from init_wg.design.pod import Pod

#: Rounds of observe and apply until nothing differs. One does it; more only against something that interferes.
ROUNDS = 4
#: From so many routes on they are added together.
BULK = 64


class Goal(NamedTuple):
    """The aim of a reconciliation: the settings, one server, and its peers' endpoints by public key, as addresses."""

    settings: Settings
    tunnel: Tunnel
    endpoints: dict[str, tuple[str, int]]


class Comparison(NamedTuple):
    """The pod as seen, the facts about it, the state it should have, and the steps between.

    notices: what people should know of it, though it works.
    """

    pod: Pod
    now: Circumstances
    want: State
    steps: tuple[Step, ...]
    notices: tuple[str, ...]

    @property
    def bypass(self) -> Bypass:
        return self.now.bypass


def converge(kernel: netlink.Socket, goal: Goal, seen: Observation) -> tuple[Observation, bool]:
    """Apply what differs from the goal until nothing does.

    Returns the last look, and whether WireGuard itself was changed. Raises KernelError, and VerifyError when
    it reads back different.
    """
    kind = preferred_kind(goal.settings, seen.state)
    comparison = compare(goal, seen, kind)
    changed = False
    for number in range(ROUNDS):
        if not comparison.steps:
            for notice in comparison.notices if number else ():  # which implementation there is, is known only now
                log.warning(notice)
            return seen, changed
        if number == 0:
            log.info(comparison.bypass.explanation)
            _tell(goal.tunnel, comparison)
        try:
            changed |= _apply(kernel, goal.settings, comparison.steps)
        except apply.NoKernelWireGuardError:
            log.info("the kernel has no WireGuard: using wireguard-go")
            kind = TUN
            nothing_changed = isinstance(comparison.steps[0], CreateInterface)
            if nothing_changed:
                comparison = compare(goal, seen, kind)
                continue
        seen = observe(kernel, goal.settings.interface)
        comparison = compare(goal, seen, kind)
    return _give_up(goal.tunnel, comparison)


def _tell(tunnel: Tunnel, comparison: Comparison) -> None:
    """A tunnel that is set up anew: what will not be reached through it, nor beside it."""
    if any(isinstance(step, Configure) for step in comparison.steps):
        for note in reach.notes(tunnel, comparison.bypass.networks):
            log.warning(note)


def _apply(kernel: netlink.Socket, settings: Settings, steps: tuple[Step, ...]) -> bool:
    """Run the steps in their order; returns whether WireGuard itself was changed."""
    for _, group in groupby(steps, type):
        together = list(group)
        if log.enabled("debug"):
            for step in together:
                log.debug(str(step))
        routes = [step for step in together if isinstance(step, AddRoute)]
        if len(routes) > BULK:
            apply.add_routes(kernel, routes)
            continue
        for step in together:
            apply.run(kernel, settings, step)
    return any(isinstance(step, Configure | SetUp | RepeatEndpoints) for step in steps)


def compare(goal: Goal, seen: Observation, kind: str) -> Comparison:
    """The present state against the wanted one, for an interface of this kind."""
    settings, tunnel = goal.settings, goal.tunnel
    own = seen.state.interface(settings.interface)
    new = {a.address for a in (own.addresses if own else ())}.isdisjoint(str(a.ip) for a in tunnel.addresses)
    pod = pods.apart(pods.discover(seen.kernel, settings.interface), tunnel, new=new)
    chosen = bypass.choose(settings, pod, tunnel, settings.service_host)
    gate, routed = egress_gate(settings, pod, seen.state.ruleset)
    queries = dns.choose(settings, tunnel, seen.resolv_conf, listening=_forwarder_listens())
    now = desired.Circumstances(
        kind=kind,
        endpoints=goal.endpoints,
        families=families(settings.interface),
        gate=Gate(pod.links, routed) if gate else None,
        bypass=chosen,
        others=seen.state.others,
        dns=queries._replace(group=os.getegid()) if isinstance(queries, Names) else queries,
        older=_older(seen.state.ruleset),
    )
    want = desired.state(settings, tunnel, pod, now)
    sealed = ruleset.text(Sealed(now.gate))
    notice = desired.mtu_notice(tunnel, pod, kind, goal.endpoints)
    notices = (*((notice,) if notice else ()), *dns.notices(settings, tunnel, seen.resolv_conf))
    return Comparison(pod, now, want, plan(want, seen.state, sealed), notices)


def _forwarder_listens() -> bool:
    """Has somebody in this network the forwarder's port on the loopback?"""
    port = f":{killswitch.FORWARDER_PORT:04X} "
    try:
        with open("/proc/net/udp") as file:  # local addresses in the second column, as "0100007F:2745"
            return any(f"0100007F{port}" in line for line in file)
    except OSError:
        return False


def down(kernel: netlink.Socket, settings: Settings) -> None:
    """Take away all that is ours. The pod is open then, as it was before: only on explicit request."""
    have = observe(kernel, settings.interface).state
    for step in plan(desired.nothing(have), have, ""):
        apply.run(kernel, settings, step)


def preferred_kind(settings: Settings, have: State) -> str:
    """A device that answers is kept, whatever made it, unless the setting names the other implementation."""
    if settings.implementation != "auto":
        return WIREGUARD if settings.implementation == "kernel" else TUN
    found = have.interface(settings.interface)
    return found.link.kind if found and found.device else WIREGUARD


def _give_up(tunnel: Tunnel, comparison: Comparison) -> NoReturn:
    """Applied, and still different. If the kill-switch itself cannot be trusted, seal the pod again."""
    steps = comparison.steps
    if any(isinstance(step, PutRuleset) for step in steps):
        lockdown.reseal(list(comparison.pod.links))
    if any(isinstance(step, Configure) for step in steps):
        try:
            config.refuse_own_key(tunnel)
        except ConfigError:
            if comparison.want.ruleset:
                lockdown.reseal(list(comparison.pod.links))
            raise
    raise VerifyError(
        f"applied, but it reads back different: {'; '.join(map(str, steps[:3]))}; "
        "something else in this pod is changing its network: find it, or give the pod's network to init-wg alone"
    )


def _older(loaded: str) -> tuple[int, ...]:
    """The ports that the rules remember from when they were first opened; what is open now, where there are none."""
    remembered = killswitch.older(loaded)
    return older.ports() if remembered is None else remembered


def egress_gate(settings: Settings, pod: Pod, loaded: str) -> tuple[bool, bool]:
    """The parts of the egress gate that the kernel has. A gate that is in place and whole proves it; else ask."""
    if not settings.kill_switch:
        return False, False
    found = killswitch.has_gate(loaded)
    return found if all(found) else nft.egress_hook(pod.links[0])


def families(interface: str) -> tuple[int, ...]:
    """Docker and others switch IPv6 off where the network has none; adding its addresses is an error then."""
    for name in (interface, "default"):
        try:
            with open(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6") as file:
                return (INET,) if file.read().strip() == "1" else (INET, INET6)
        except OSError:
            continue
    return (INET,)
