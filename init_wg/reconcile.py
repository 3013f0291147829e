"""Observe, plan, run, observe again: setup, repair and check are this one loop."""

from __future__ import annotations

import errno
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from init_wg import bypass, config, desired, device, killswitch, lock, lockdown, log, netlink, nft, resolve
from init_wg import pod as pods
from init_wg.errors import ConfigError, HandshakeError, KernelError, VerifyError
from init_wg.observe import Observation, observe
from init_wg.plan import Step, plan
from init_wg.policy import Hole
from init_wg.state import INET, INET6, TUN, WIREGUARD, State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from init_wg.config import Tunnel
    from init_wg.pod import Pod
    from init_wg.settings import Settings

#: Rounds of observe and apply until nothing differs. One does it; more only against something that interferes.
ROUNDS = 4
LOCK_TIMEOUT = 120.0
#: A session older than REJECT_AFTER_TIME (180 s, WireGuard whitepaper, section 6.1) carries nothing any more.
REJECT_AFTER_TIME = 180.0


class Desired(NamedTuple):
    """One comparison: the pod as seen, the state it should have, and the steps between."""

    server: str
    seen: Observation
    pod: Pod
    want: State
    steps: tuple[Step, ...]
    explanation: str


class _NoKernelWireGuardError(Exception):
    """The kernel cannot make the interface, and WG_IMPLEMENTATION leaves the choice to us."""


def up(settings: Settings, environment: Mapping[str, str], first: str | None = None) -> None:
    """From whatever is there to a tunnel that is up and verified; an existing right one is left alone.

    `first` names the server to begin with; without it, the one that is already set up, else by name order.
    Raises InitWgError; the pod is sealed then.
    """
    tunnels = _load(settings.config)
    with lock.acquire(LOCK_TIMEOUT), netlink.Socket() as kernel:
        seen = observe(kernel, settings.interface)
        for number, tunnel in enumerate(ordered := _order(tunnels, seen.state, first)):
            try:
                _connect(kernel, settings, environment, tunnel, seen)
            except HandshakeError as error:
                if number + 1 == len(ordered):
                    raise
                log.warning(f"{error}; trying the next server")
                seen = observe(kernel, settings.interface)
            else:
                return


def check(settings: Settings, environment: Mapping[str, str]) -> tuple[Step, ...]:
    """What has drifted, without changing anything."""
    return compare(settings, environment).steps


def compare(settings: Settings, environment: Mapping[str, str]) -> Desired:
    """The comparison behind check and status, against the server that is set up or the first one."""
    tunnels = _load(settings.config)
    with netlink.Socket() as kernel:
        seen = observe(kernel, settings.interface)
        tunnel = _order(tunnels, seen.state, None)[0]
        kind = _preferred_kind(settings, seen.state)
        return _compare(settings, environment, tunnel, seen, kind, _endpoints_now(tunnel, seen.state))


def down(settings: Settings) -> None:
    """Take away all that is ours. The pod is open then, as it was before: only on explicit request."""
    with lock.acquire(LOCK_TIMEOUT), netlink.Socket() as kernel:
        have = observe(kernel, settings.interface).state
        for step in plan(desired.nothing(have), have, ""):
            _run(kernel, settings, step)


def _connect(
    kernel: netlink.Socket, settings: Settings, environment: Mapping[str, str], tunnel: Tunnel, seen: Observation
) -> None:
    """One server: its endpoint's addresses in turn, until one shakes hands."""
    for notice in tunnel.notices:
        log.warning(notice)
    candidates = _candidates(settings, environment, tunnel, seen)
    timeout = settings.handshake_timeout / len(candidates)
    for number, endpoints in enumerate(candidates):
        started = time.time()
        seen, changed = _converge(kernel, settings, environment, tunnel, endpoints, seen)
        try:
            _await_handshake(settings, tunnel, seen, started if changed else None, timeout)
        except HandshakeError:
            if number + 1 == len(candidates):
                raise
        else:
            ends = " and ".join(f"{address}:{port}" for address, port in endpoints.values())
            (log.info if changed else log.debug)(f"{settings.interface} is up: server {tunnel.name} at {ends}")
            return


def _converge(
    kernel: netlink.Socket,
    settings: Settings,
    environment: Mapping[str, str],
    tunnel: Tunnel,
    endpoints: dict[str, tuple[str, int]],
    seen: Observation,
) -> tuple[Observation, bool]:
    """Apply what differs until nothing does. Returns the last look, and whether WireGuard itself was changed."""
    kind = _preferred_kind(settings, seen.state)
    changed = False
    for number in range(ROUNDS):
        comparison = _compare(settings, environment, tunnel, seen, kind, endpoints)
        if not comparison.steps:
            break
        if number == ROUNDS - 1:
            _give_up(comparison)
        if number == 0:
            log.info(comparison.explanation)
        try:
            for step in comparison.steps:
                log.debug(str(step))
                _run(kernel, settings, step)
                changed |= step.action in ("configure", "link-up")
        except _NoKernelWireGuardError:
            log.info("the kernel has no WireGuard: using wireguard-go")
            kind = TUN
            if step is comparison.steps[0]:
                continue  # nothing has changed, so there is nothing to look at again
        seen = observe(kernel, settings.interface)
    return seen, changed


def _give_up(comparison: Desired) -> NoReturn:
    """Applied, and still different. If the kill-switch itself cannot be trusted, seal the pod again."""
    steps = comparison.steps
    if any(step.action == "load" for step in steps):
        lockdown.reseal(list(comparison.pod.links))
    raise VerifyError(
        f"applied, but it reads back different: {'; '.join(map(str, steps[:3]))}; "
        "something else in this pod is changing its network: find it, or give the pod's network to init-wg alone"
    )


def _compare(
    settings: Settings,
    environment: Mapping[str, str],
    tunnel: Tunnel,
    seen: Observation,
    kind: str,
    endpoints: dict[str, tuple[str, int]],
    hole: Hole | None = None,
) -> Desired:
    pod = pods.discover(seen.kernel, settings.interface)
    chosen = bypass.choose(settings, pod, tunnel, environment.get("KUBERNETES_SERVICE_HOST"))
    gate, routed = _gate(settings, pod, seen.state.ruleset)
    now = desired.Circumstances(
        kind=kind,
        endpoints=endpoints,
        families=_families(settings.interface),
        gate=gate,
        routed=routed,
        bypass=chosen.networks,
        others=seen.state.others,
        hole=hole,
    )
    want = desired.state(settings, tunnel, pod, now)
    steps = plan(want, seen.state, killswitch.sealed(pod.links if gate else (), routed=routed))
    return Desired(tunnel.name, seen, pod, want, steps, chosen.explanation)


# --- servers and endpoints ---------------------------------------------------------------------------------------


def _load(path: str) -> list[Tunnel]:
    """Every server's file. One bad file among good ones is reported and left out."""
    tunnels: list[Tunnel] = []
    bad: list[ConfigError] = []
    for file in config.servers(path):
        try:
            tunnels.append(config.load(file))
        except ConfigError as error:
            bad.append(error)
    if not tunnels:
        raise bad[0]
    for reason in bad:
        log.warning(f"{reason}; this server is left out")
    return tunnels


def _order(tunnels: list[Tunnel], have: State, first: str | None) -> list[Tunnel]:
    """By name, turned so that `first` (or the server that is set up) comes first."""
    names = [tunnel.name for tunnel in tunnels]
    if first is not None and first not in names:
        raise ConfigError(f"--server {first}: there is no such server; there is: {', '.join(names)}")
    start = 0
    for number, tunnel in enumerate(tunnels):
        if tunnel.name == first or (first is None and is_current(tunnel, have)):
            start = number
            break
    return tunnels[start:] + tunnels[:start]


def is_current(tunnel: Tunnel, have: State) -> bool:
    """Is this the server that the device is set up for?"""
    peers = have.device.peers if have.device else ()
    return bool(peers) and {peer.public_key for peer in peers} == {peer.public_key for peer in tunnel.peers}


def _endpoints_now(tunnel: Tunnel, have: State) -> dict[str, tuple[str, int]]:
    """The configuration's addresses; for names, what the device was given when they were resolved."""
    known = {peer.public_key: peer.endpoint for peer in (have.device.peers if have.device else ())}
    endpoints = {}
    for peer in tunnel.peers:
        if peer.endpoint is None:
            continue
        current = known.get(peer.public_key)
        if resolve.is_address(peer.endpoint.host):
            endpoints[peer.public_key] = (str(resolve.address(peer.endpoint.host)), peer.endpoint.port)
        elif current and current[1] == peer.endpoint.port:
            endpoints[peer.public_key] = current
    return endpoints


def _candidates(
    settings: Settings, environment: Mapping[str, str], tunnel: Tunnel, seen: Observation
) -> list[dict[str, tuple[str, int]]]:
    """What to try: one set of endpoints, or one for each address that a peer's name has.

    A name is not asked again while its peer's session lives: that would change nothing but open a hole.
    """
    fixed = _endpoints_now(tunnel, seen.state)
    named = [peer for peer in tunnel.peers if peer.endpoint and not resolve.is_address(peer.endpoint.host)]
    alive = time.time() - REJECT_AFTER_TIME
    asked = [
        peer
        for peer in named
        if peer.public_key not in fixed
        or peer.public_key not in seen.traffic
        or seen.traffic[peer.public_key].latest_handshake < alive
    ]
    if not asked:
        return _reachable(settings, tunnel, seen, [fixed])
    found = {}
    for peer in asked:
        if peer.endpoint:
            found[peer.public_key] = [
                (address, peer.endpoint.port)
                for address in _resolve(settings, environment, tunnel, seen, peer.endpoint.host)
            ]
    most = max(map(len, found.values()))
    candidates = [fixed | {key: ends[min(n, len(ends) - 1)] for key, ends in found.items()} for n in range(most)]
    return _reachable(settings, tunnel, seen, candidates)


def _reachable(
    settings: Settings, tunnel: Tunnel, seen: Observation, candidates: list[dict[str, tuple[str, int]]]
) -> list[dict[str, tuple[str, int]]]:
    """Only what the uplink has a default route for."""
    pod = pods.discover(seen.kernel, settings.interface)
    usable = [
        ends
        for ends in candidates
        if all((INET6 if ":" in address else INET) in pod.defaults for address, _ in ends.values())
    ]
    if not usable:
        address = next(iter(candidates[0].values()))[0]
        raise HandshakeError(
            f"{tunnel.path}: the pod has no {'IPv6' if ':' in address else 'IPv4'} way to the endpoint {address}: "
            "use a server with an address of the other family"
        )
    return usable


def _resolve(
    settings: Settings, environment: Mapping[str, str], tunnel: Tunnel, seen: Observation, host: str
) -> list[str]:
    """The name's addresses, asked through a hole in the kill-switch that is closed again whatever happens."""
    servers = resolve.resolvers()
    with resolve.query_socket() as (query, port):
        hole = Hole(tuple(sorted(servers, key=lambda s: (":" in s, resolve.sort_key(s)))), port)
        if settings.kill_switch:
            nft.load(killswitch.replacement(_holding(settings, environment, tunnel, seen, hole)))
        try:
            return resolve.resolve(query, host, servers, tunnel.path)
        finally:
            if settings.kill_switch:
                nft.load(killswitch.replacement(_holding(settings, environment, tunnel, seen, None)))


def _holding(
    settings: Settings, environment: Mapping[str, str], tunnel: Tunnel, seen: Observation, hole: Hole | None
) -> str:
    """The kill-switch for the time of the query: sealed if it is, else opened for the device as it is now.

    As designed, not as found: what somebody has changed in it must not be put back.
    """
    pod = pods.discover(seen.kernel, settings.interface)
    gate, routed = _gate(settings, pod, seen.state.ruleset)
    links = pod.links if gate else ()
    if seen.state.device is None or seen.state.ruleset == killswitch.sealed(links, routed=routed):
        return killswitch.sealed(links, hole, routed=routed)
    now = {peer.public_key: peer.endpoint for peer in seen.state.device.peers if peer.endpoint}
    kind = _preferred_kind(settings, seen.state)
    return _compare(settings, environment, tunnel, seen, kind, now, hole).want.ruleset


# --- the handshake -----------------------------------------------------------------------------------------------


def _await_handshake(
    settings: Settings, tunnel: Tunnel, seen: Observation, changed: float | None, timeout: float
) -> None:
    """Return when a peer has proved to be there. Raises HandshakeError after `timeout` seconds.

    Proof is a handshake since `changed`, the Unix time of our last change; or, on an unchanged device, a session
    that still lives. With a session that outlived the change no handshake is due: then received bytes prove it.
    """
    newest = max((t.latest_handshake for t in seen.traffic.values()), default=0.0)
    if changed is None and newest > time.time() - REJECT_AFTER_TIME:
        return
    since = changed if changed is not None else time.time()
    kind = seen.state.link.kind if seen.state.link else WIREGUARD
    before = sum(traffic.received_bytes for traffic in seen.traffic.values())
    deadline = time.monotonic() + timeout
    pause = 0.001
    provoked = 0.0
    while time.monotonic() < deadline:
        reading = device.read(settings.interface, kind)
        sessions = reading.traffic.values() if reading else ()
        if any(s.latest_handshake >= since for s in sessions) or sum(s.received_bytes for s in sessions) > before:
            return
        if time.monotonic() - provoked > 1:
            _provoke(settings.interface, tunnel)
            provoked = time.monotonic()
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)
    ends = ", ".join(f"{p.endpoint.host}:{p.endpoint.port}" for p in tunnel.peers if p.endpoint)
    raise HandshakeError(
        f"{tunnel.path}: no handshake with {ends} in {timeout:g} s: is the server up, the key still valid, "
        "and UDP to it allowed (network policy, firewall)?"
    )


def _provoke(interface: str, tunnel: Tunnel) -> None:
    """Send one byte into the tunnel, to the discard port (RFC 863): WireGuard shakes hands when there is data."""
    for target in _targets(tunnel):
        family = socket.AF_INET6 if ":" in target else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                with suppress(PermissionError):  # without NET_RAW, before Linux 5.7; the rules lead there anyway
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
                probe.sendto(b"\0", socket.MSG_DONTWAIT, (target, 9))
        except OSError:
            continue
        return


def _targets(tunnel: Tunnel) -> Iterable[str]:
    """Addresses inside the tunnel: its resolvers, then the first host of every allowed network."""
    yield from (str(address) for address in tunnel.dns)
    for peer in tunnel.peers:
        yield from (str(network[min(1, network.num_addresses - 1)]) for network in peer.allowed_ips)


# --- circumstances and steps -------------------------------------------------------------------------------------


def _preferred_kind(settings: Settings, have: State) -> str:
    """A device that answers is kept, whatever made it, unless the setting names the other implementation."""
    if settings.implementation != "auto":
        return WIREGUARD if settings.implementation == "kernel" else TUN
    return have.link.kind if have.link and have.device else WIREGUARD


def _gate(settings: Settings, pod: Pod, ruleset: str) -> tuple[bool, bool]:
    """What of the egress gate the kernel has. A gate that is in place and whole proves it; else ask."""
    if not settings.kill_switch:
        return False, False
    found = killswitch.has_gate(ruleset)
    return found if all(found) else nft.egress_hook(pod.links[0])


def _families(interface: str) -> tuple[int, ...]:
    """Docker and others switch IPv6 off where the network has none; adding its addresses is an error then."""
    for name in (interface, "default"):
        try:
            with open(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6") as file:
                return (INET,) if file.read().strip() == "1" else (INET, INET6)
        except OSError:
            continue
    return (INET,)


def _run(kernel: netlink.Socket, settings: Settings, step: Step) -> None:
    """Carry out one step. What is already there, or already gone, is not an error: the next look decides."""
    try:
        _ACTIONS[step.action](kernel, settings, step.item)
    except OSError as error:
        adding = step.action.startswith("add-") and error.errno == errno.EEXIST
        gone = step.action.startswith("delete-") and error.errno in (
            errno.ENOENT,
            errno.ESRCH,
            errno.ENODEV,
            errno.EADDRNOTAVAIL,
        )
        if not adding and not gone:
            raise KernelError(f"{step.what}: {netlink.describe(error)}") from error


def _create_link(kernel: netlink.Socket, settings: Settings, link: Any) -> None:
    if link.kind == TUN:
        device.start_userspace(link.name)
        return
    try:
        netlink.add_link(kernel, link.name, link.kind)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        if settings.implementation == "auto":
            raise _NoKernelWireGuardError from error
        raise KernelError(
            "the kernel has no WireGuard: load the node's wireguard module, or set WG_IMPLEMENTATION=userspace"
        ) from error


_ACTIONS: dict[str, Callable[[netlink.Socket, Settings, Any], None]] = {
    "load": lambda _, __, text: nft.load(killswitch.replacement(text)),
    "unload": lambda _, __, ___: nft.load(killswitch.removal()),
    "delete-link": lambda kernel, _, link: netlink.delete_link(kernel, netlink.index(link.name)),
    "create-link": _create_link,
    "configure": lambda _, settings, item: device.write(settings.interface, *item),
    "set-mtu": lambda kernel, _, link: netlink.change_link(kernel, netlink.index(link.name), mtu=link.mtu),
    "link-up": lambda kernel, _, link: netlink.change_link(kernel, netlink.index(link.name), up=True),
    "add-address": lambda k, s, address: netlink.write_address(k, netlink.index(s.interface), address, add=True),
    "delete-address": lambda k, s, address: netlink.write_address(k, netlink.index(s.interface), address, add=False),
    "add-route": lambda k, _, route: netlink.write_route(k, route, add=True),
    "delete-route": lambda k, _, route: netlink.write_route(k, route, add=False),
    "add-rule": lambda k, _, rule: netlink.write_rule(k, rule, add=True),
    "delete-rule": lambda k, _, rule: netlink.write_rule(k, rule, add=False),
}
