"""`up` in server mode: the volume, then observe, compare, apply and observe again until nothing differs.

The pod is sealed before this begins. No peer has to be there, so there is no handshake to wait for.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from init_wg import log
from init_wg.config import server_settings
from init_wg.design import pod as pods
from init_wg.design.firewall import killswitch
from init_wg.design.plan import plan
from init_wg.design.steps import CreateInterface, PutRuleset, Step
from init_wg.errors import ConfigError, VerifyError
from init_wg.kernel import forwarding, lock, netlink
from init_wg.model.serving import GOES_ON
from init_wg.model.state import TUN
from init_wg.server import enrol
from init_wg.server.design import desired
from init_wg.server.design.register import SERVER_NUMBER
from init_wg.setup import apply, lockdown, reconcile
from init_wg.setup.observe import Observation, observe, resolv_conf

if TYPE_CHECKING:
    from init_wg.config.server_settings import ServerSettings
    from init_wg.config.settings import Settings
    from init_wg.design.pod import Pod
    from init_wg.model.state import State, TunnelInterface
    from init_wg.server.enrol import Enrolled

LOCK_TIMEOUT = 120.0  # seconds
ROUNDS = 4


class Comparison(NamedTuple):
    """The pod as seen, and what is to be done to it."""

    pod: Pod
    steps: tuple[Step, ...]
    forwards6: bool


def up(settings: Settings, first: str | None = None) -> None:
    """From whatever is there to a running server. Raises InitWgError: sealed then, or serving what was known.

    first: there is no other server to choose, so naming one is a mistake.
    """
    if first is not None:
        raise ConfigError(
            "usage: --server chooses whose client this pod is, and WG_MODE=server makes it a server itself"
        )
    server = read(settings)
    with lock.acquire(LOCK_TIMEOUT), netlink.Socket() as kernel:
        found = enrol.enrol(server)
        changed = _converge(kernel, settings, server, found)
    if changed:
        log.info(f"{settings.interface} is up: a server of {len(found.active)} peer(s) in "
                 f"{' and '.join(map(str, found.within))}")  # fmt: skip
    if found.failure:
        raise type(found.failure)(f"{found.failure}{GOES_ON}")


def read(settings: Settings) -> ServerSettings:
    """The settings of this mode, from the environment. Raises ConfigError."""
    server = server_settings.read(os.environ)
    if not settings.kill_switch:
        raise ConfigError("environment: ENABLE_KILL_SWITCH=false: a server without its rules would let everybody in")
    return server


def differences(settings: Settings) -> tuple[Step, ...]:
    """All that is to be done, without doing it; the volume stays as it is, too. Raises InitWgError."""
    return now(settings)[1].steps


def now(settings: Settings) -> tuple[Enrolled, Comparison, Observation]:
    """Whom to serve, what differs from that, and the look. Changes nothing. Raises InitWgError."""
    server = read(settings)
    found = enrol.enrol(server, keep=False)
    with netlink.Socket() as kernel:
        seen = look(kernel, settings)
    return found, compare(settings, server, found, seen, reconcile.preferred_kind(settings, seen.state)), seen


def down(settings: Settings) -> None:
    """Take away all that is ours, but for the volume."""
    with lock.acquire(LOCK_TIMEOUT), netlink.Socket() as kernel:
        seen = look(kernel, settings)
        for name in seen.state.forwarding - {settings.interface}:
            forwarding.switch(kernel, netlink.index(name), on=False)
        reconcile.down(kernel, settings)


def forwarder(settings: Settings) -> tuple[str, ...] | None:
    """The command line of the peers' DNS forwarder; None where their files name other resolvers."""
    server = read(settings)
    if server.peer_dns is not None:
        return None
    families = reconcile.families(settings.interface)
    within = enrol.enrol(server, keep=False).within
    own = [str(network[SERVER_NUMBER]) for network in within if desired.family(network) in families]
    return desired.forwarder(own, resolv_conf().nameservers)


def look(kernel: netlink.Socket, settings: Settings) -> Observation:
    """All that decides where packets go, the links that forward among it. Raises OSError and KernelError."""
    seen = observe(kernel, settings.interface)
    return seen._replace(state=seen.state._replace(forwarding=forwarding.links(kernel)))


def compare(settings: Settings, server: ServerSettings, found: Enrolled, seen: Observation, kind: str) -> Comparison:
    """The steps from what is there to what should be. Raises ConfigError and KernelError."""
    pod = pods.discover(seen.kernel, settings.interface)
    gate, routed = reconcile.egress_gate(settings, pod, seen.state.ruleset)
    now = desired.Circumstances(
        kind=kind,
        families=reconcile.families(settings.interface),
        gate=gate,
        routed=routed,
        nameservers=seen.resolv_conf.nameservers,
        forwards6=forwarding.ipv6(),
    )
    have = _comparable(seen.state)
    want = desired.state(settings, server, found.register, found.within, pod, now, have)
    sealed = killswitch.sealed(pod.links if gate else (), routed=routed)
    return Comparison(pod, plan(want, have, sealed), now.forwards6)


def _comparable(have: State) -> State:
    """Without the endpoints: where a peer comes from is its own business, and no difference."""
    return have._replace(interfaces=tuple(map(_without_endpoints, have.interfaces)))


def _without_endpoints(interface: TunnelInterface) -> TunnelInterface:
    if not interface.device:
        return interface
    peers = frozenset(peer._replace(endpoint=None) for peer in interface.device.peers)
    return interface._replace(device=interface.device._replace(peers=peers))


def _converge(kernel: netlink.Socket, settings: Settings, server: ServerSettings, found: Enrolled) -> bool:
    """Returns whether anything was changed."""
    seen = look(kernel, settings)
    kind = reconcile.preferred_kind(settings, seen.state)
    comparison = compare(settings, server, found, seen, kind)
    new = any(isinstance(step, CreateInterface) for step in comparison.steps)
    for number in range(ROUNDS):
        if not comparison.steps:
            for notice in server.notices if new else ():
                log.warning(notice)
            if new and len(found.within) > 1 and not comparison.forwards6:
                log.warning(
                    "the kernel does not forward IPv6 here, so peers' IPv6 is refused and they use IPv4: for IPv6, set "
                    "the pod's sysctl net.ipv6.conf.all.forwarding=1"
                )
            return bool(number)
        try:
            for step in comparison.steps:
                log.debug(str(step))
                apply.run(kernel, settings, step)
        except apply.NoKernelWireGuardError:
            log.info("the kernel has no WireGuard: using wireguard-go")
            kind = TUN
            if isinstance(comparison.steps[0], CreateInterface):
                comparison = compare(settings, server, found, seen, kind)
                continue
        seen = look(kernel, settings)
        comparison = compare(settings, server, found, seen, kind)
    return _give_up(comparison)


def _give_up(comparison: Comparison) -> bool:
    """Applied, and still different. If the ruleset itself cannot be trusted, seal the pod again."""
    if any(isinstance(step, PutRuleset) for step in comparison.steps):
        lockdown.reseal(list(comparison.pod.links))
    raise VerifyError(
        f"applied, but it reads back different: {'; '.join(map(str, comparison.steps[:3]))}; "
        "something else in this pod is changing its network: find it, or give the pod's network to init-wg alone"
    )
