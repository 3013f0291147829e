"""`up`: server by server, endpoint by endpoint, until one shakes hands."""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from init_wg import log
from init_wg.config import tunnel as config
from init_wg.design import dns
from init_wg.errors import ConfigError, HandshakeError
from init_wg.kernel import device, lock, netlink
from init_wg.model import wireguard
from init_wg.model.state import WIREGUARD
from init_wg.setup import endpoints, reconcile
from init_wg.setup.observe import Observation, observe
from init_wg.setup.reconcile import Comparison, Goal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from init_wg.config.settings import Settings
    from init_wg.config.tunnel import Tunnel
    from init_wg.model.state import State
    from init_wg.model.wireguard import Reading

LOCK_TIMEOUT = 120.0  # seconds: longer than any run with a handful of silent servers
LOOK_AGAIN = 0.2  # seconds between looks for drift while waiting for a handshake
LIVE_ANSWER = 2.0  # seconds that a session has to prove that it lives, before it is begun anew
#: Seconds until a handshake without an answer is begun anew, one after the other; WireGuard itself waits 5 s
#: (REKEY_TIMEOUT). The first is short, for an initiation that was lost; the others leave slow links their time.
PATIENCE = (0.8, 1.5, 2.5, 5.0)


def up(settings: Settings, environment: Mapping[str, str], first: str | None = None) -> None:
    """From whatever is there to a tunnel that is up and verified; an existing right one is left alone.

    `first` names the server to begin with, and demands proof that it answers now; without it, the one that is
    already set up comes first, else the first by name. Raises InitWgError; the pod is sealed then.
    """
    tunnels = _load(settings.config)
    with lock.acquire(LOCK_TIMEOUT), netlink.Socket() as kernel:
        seen = observe(kernel, settings.interface)
        for number, tunnel in enumerate(ordered := _order(tunnels, seen.state, first)):
            try:
                _connect(kernel, settings, environment, tunnel, seen, demanded=tunnel.name == first)
            except HandshakeError as error:
                if number + 1 == len(ordered):
                    raise
                log.warning(f"{error}; trying the next server")
                seen = observe(kernel, settings.interface)
            else:
                return


def down(settings: Settings) -> None:
    """Take away all that is ours."""
    with lock.acquire(LOCK_TIMEOUT), netlink.Socket() as kernel:
        reconcile.down(kernel, settings)


def compare(settings: Settings, environment: Mapping[str, str]) -> tuple[Tunnel, Comparison]:
    """What differs from the server that is set up (or the first one), without changing anything."""
    tunnels = _load(settings.config)
    with netlink.Socket() as kernel:
        seen = observe(kernel, settings.interface)
    tunnel = _order(tunnels, seen.state, None)[0]
    goal = Goal(settings, environment, tunnel, endpoints.known(tunnel, seen.state))
    return tunnel, reconcile.compare(goal, seen, reconcile.preferred_kind(settings, seen.state))


def forwarder(settings: Settings, environment: Mapping[str, str]) -> tuple[str, ...] | None:
    """The command line of the DNS forwarder for the server that is set up; None when nothing leads to it."""
    tunnel, comparison = compare(settings, environment)
    resolv_conf = dns.read()
    chosen = dns.choose(settings, tunnel, resolv_conf)
    if chosen is None or not dns.needs_forwarder(chosen, resolv_conf):
        return None
    return dns.forwarder(chosen, resolv_conf, settings.cluster_domain, comparison.bypass.networks)


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
    known = [tunnel.name for tunnel in tunnels]
    if first is not None and first not in known:
        raise ConfigError(f"--server {first}: there is no such server; there is: {', '.join(known)}")
    start = 0
    for number, tunnel in enumerate(tunnels):
        if tunnel.name == first or (first is None and _is_current(tunnel, have)):
            start = number
            break
    return tunnels[start:] + tunnels[:start]


def _is_current(tunnel: Tunnel, have: State) -> bool:
    """Is this the server that the device is set up for?"""
    peers = have.device.peers if have.device else ()
    return bool(peers) and {peer.public_key for peer in peers} == {peer.public_key for peer in tunnel.peers}


def _connect(
    kernel: netlink.Socket,
    settings: Settings,
    environment: Mapping[str, str],
    tunnel: Tunnel,
    seen: Observation,
    *,
    demanded: bool,
) -> None:
    """One server: its endpoint's addresses in turn. Raises HandshakeError when none answers."""
    for notice in tunnel.notices:
        log.warning(notice)
    sets = endpoints.candidates(settings, environment, tunnel, seen, ask_again=demanded)
    timeout = settings.handshake_timeout / len(sets)
    for number, ends in enumerate(sets):
        goal = Goal(settings, environment, tunnel, ends)
        started = time.time()
        seen, changed = reconcile.converge(kernel, goal, seen)
        try:
            if changed:
                _await_proof(kernel, goal, seen, started, timeout)
            elif demanded:
                _demand_proof(kernel, goal, seen, timeout)
            elif not _lives(seen):
                _await_proof(kernel, goal, seen, started, timeout)
        except HandshakeError:
            if number + 1 == len(sets):
                raise
        else:
            where = " and ".join(f"{address}:{port}" for address, port in ends.values())
            (log.info if changed else log.debug)(f"{settings.interface} is up: server {tunnel.name} at {where}")
            if changed and settings.dns_config and settings.dns_mode == "cluster":
                log.warning("DNS_MODE=cluster: the cluster's resolver, and whom it asks, see every name")
            return


def _lives(seen: Observation) -> bool:
    """Has the device, which is as it should be, a session that can still carry data?"""
    newest = max((traffic.latest_handshake for traffic in seen.traffic.values()), default=0.0)
    return newest > time.time() - endpoints.REJECT_AFTER_TIME


def _demand_proof(kernel: netlink.Socket, goal: Goal, seen: Observation, timeout: float) -> None:
    """An unchanged device: its session may go on if it answers at once. Else the peers are set anew, because a
    session that is thought to live shakes hands again only after 15 s without an answer."""
    patience = min(LIVE_ANSWER, timeout / 3)
    try:
        _await_proof(kernel, goal, seen, time.time(), patience)
    except HandshakeError:
        if seen.state.link and seen.state.device:
            device.write(goal.settings.interface, seen.state.link.kind, wireguard.renewal(seen.state.device.peers))
        _await_proof(kernel, goal, seen, time.time(), timeout - patience)


def _await_proof(kernel: netlink.Socket, goal: Goal, seen: Observation, since: float, timeout: float) -> None:
    """Return when a peer has proved to be there. Raises HandshakeError after `timeout` seconds.

    Proof is a handshake after `since` (Unix time); or, as one is not due where a session outlived the change,
    anything received. What drifts meanwhile is mended: nobody else would.
    """
    interface = goal.settings.interface
    before = sum(traffic.received_bytes for traffic in seen.traffic.values())
    start = looked = time.monotonic()
    provoked, renewed = start - 1, start
    patience = iter(PATIENCE)
    wait = next(patience)
    pause = 0.001
    while (now := time.monotonic()) < start + timeout:
        reading = device.read(interface, seen.state.link.kind if seen.state.link else WIREGUARD)
        sessions = reading.traffic.values() if reading else ()
        if any(s.latest_handshake >= since for s in sessions) or sum(s.received_bytes for s in sessions) > before:
            return
        if now - renewed >= wait:
            _renew(interface, seen, reading)
            provoked, renewed, wait = start - 1, now, next(patience, wait)
        if now - provoked >= 1:
            _provoke(interface, goal.tunnel)
            provoked = now
        if now - looked >= LOOK_AGAIN:
            seen, _ = reconcile.converge(kernel, goal, observe(kernel, interface))
            looked = time.monotonic()
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)
    ends = ", ".join(f"{peer.endpoint.host}:{peer.endpoint.port}" for peer in goal.tunnel.peers if peer.endpoint)
    raise HandshakeError(
        f"{goal.tunnel.path}: no handshake with {ends} in {timeout:g} s: is the server up, the key still valid, "
        "and UDP to it allowed (network policy, firewall)?"
    )


def _renew(interface: str, seen: Observation, reading: Reading | None) -> None:
    """Begin the handshakes anew that nobody answered. A session that can still carry data is left alone."""
    if reading and seen.state.link:
        alive = time.time() - endpoints.REJECT_AFTER_TIME
        silent = [p for p in reading.device.peers if reading.traffic[p.public_key].latest_handshake <= alive]
        device.write(interface, seen.state.link.kind, wireguard.renewal(silent))


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
