"""`up`: server by server, endpoint by endpoint, until one shakes hands."""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from itertools import cycle
from typing import TYPE_CHECKING

from init_wg import log
from init_wg.config import tunnel as config
from init_wg.design import dns, reach
from init_wg.design.firewall.policy import Names
from init_wg.errors import ConfigError, HandshakeError, InitWgError, KernelError, VerifyError
from init_wg.kernel import device, lock, netlink
from init_wg.model import server, wireguard
from init_wg.model.state import WIREGUARD
from init_wg.model.wireguard import show_endpoint
from init_wg.setup import endpoints, input_ports, reconcile, resolvers
from init_wg.setup.observe import Observation, look, observe
from init_wg.setup.reconcile import Comparison, Goal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from init_wg.config.settings import Settings
    from init_wg.config.tunnel import Tunnel
    from init_wg.design.steps import Step
    from init_wg.model.state import State, TunnelInterface
    from init_wg.model.wireguard import Reading

LOCK_TIMEOUT = 120.0  # seconds: longer than any run with a handful of silent servers
LOOK_AGAIN = 0.2  # seconds between looks for drift while waiting for a handshake
LIVE_ANSWER = 2.0  # seconds that a session has to prove that it lives, before it is begun anew
LEAST_FOR_ADDRESS = 2.0  # seconds for each address of a name, however many there are
#: Seconds until a handshake without an answer is begun anew, over and over; WireGuard itself waits 5 s
#: (REKEY_TIMEOUT). The first is short, for an initiation that was lost; then slow links have their time; then a server
#: that comes back is found within a second.
PATIENCE = (0.8, 1.2, 2.5, 0.9, 0.9, 0.9, 0.9, 0.9)


def up(settings: Settings, first: str | None = None) -> None:
    """From whatever is there to a tunnel that is up and verified; an existing right one is left alone.

    `first` names the server to begin with, and demands proof that it answers now; without it, the one that is
    already set up comes first, else the first by name. Raises InitWgError; the pod is sealed then.
    """
    files = _usable(_read(settings.config))
    failures: list[InitWgError] = []
    with lock.acquire(LOCK_TIMEOUT), netlink.Socket() as kernel:
        seen = observe(kernel, settings.interface)
        settings = input_ports.extended(settings, seen.state.ruleset)
        for tunnel in (ordered := _order(files, seen.state, settings.interface, first)):
            try:
                alone = len(ordered) == 1
                _connect(kernel, settings, tunnel, seen, demanded=first is not None, alone=alone)
            except InitWgError as error:
                failures.append(error)
                if tunnel is not ordered[-1]:
                    about = "" if tunnel.path in str(error) else f"{tunnel.path}: "
                    log.warning(f"{about}{error}; trying the next server")
                    seen = observe(kernel, settings.interface)
            else:
                return
    raise _gravest(failures)


def _gravest(failures: list[InitWgError]) -> InitWgError:
    """What to say when no server could be set up: a server that does not answer now may do so later, a kernel that
    refuses may, too; a conflict of one server's file has been told."""
    for kind in (HandshakeError, KernelError, VerifyError):
        for failure in reversed(failures):
            if isinstance(failure, kind):
                return failure
    return failures[0]


def down(settings: Settings) -> None:
    """Take away all that is ours."""
    with lock.acquire(LOCK_TIMEOUT), netlink.Socket() as kernel:
        reconcile.down(kernel, settings)


def differences(settings: Settings) -> tuple[Step, ...]:
    """All that is to be done, without doing it. Raises InitWgError."""
    return compare(settings, look(settings.interface))[1].steps


def compare(settings: Settings, seen: Observation) -> tuple[Tunnel, Comparison]:
    """All that differs from the server that is set up (or the first one), without changing anything.

    Raises ConfigError when the file of the server that is set up is bad: no other server is what should be there.
    """
    files = _read(settings.config)
    bad = files.get(_set_up(files, seen.state, settings.interface) or "")
    if isinstance(bad, ConfigError):
        raise ConfigError(f"{bad}; what is set up from it stays as it is")
    settings = input_ports.extended(settings, seen.state.ruleset)
    tunnel = _order(_usable(files), seen.state, settings.interface, None)[0]
    goal = Goal(settings, tunnel, endpoints.known(settings, tunnel, seen.state))
    return tunnel, reconcile.compare(goal, seen, reconcile.preferred_kind(settings, seen.state))


def forwarder(settings: Settings) -> tuple[str, ...] | None:
    """The command line of the DNS forwarder for the server that is set up; None when nothing leads to it."""
    seen = look(settings.interface)
    tunnel, comparison = compare(settings, seen)
    chosen = dns.choose(settings, tunnel, seen.resolv_conf)
    if not isinstance(chosen, Names) or not dns.needs_forwarder(chosen, seen.resolv_conf):
        return None
    chosen = chosen._replace(resolvers=resolvers.answering_first(chosen.resolvers, settings.interface))
    networks = comparison.bypass.networks
    return dns.forwarder(chosen, seen.resolv_conf, settings.cluster_domain, networks, tunnel.search)


def marked(path: str, have: State) -> str | None:
    """The name of the server that is set up, whatever its file says now; None when no mark is there."""
    return _marked(map(config.name, config.servers(path)), have)


def _read(path: str) -> dict[str, Tunnel | ConfigError]:
    """Every server's file by its name, in name order, or what is wrong with it."""
    files: dict[str, Tunnel | ConfigError] = {}
    for file in config.servers(path):
        try:
            files[config.name(file)] = config.load(file)
        except ConfigError as error:
            files[config.name(file)] = error
    return files


def _usable(files: dict[str, Tunnel | ConfigError]) -> dict[str, Tunnel | ConfigError]:
    """The same. A bad file among good ones is reported; raises ConfigError when there is no good one."""
    bad = [reason for reason in files.values() if isinstance(reason, ConfigError)]
    if len(bad) == len(files):
        raise bad[0]
    for reason in bad:
        log.warning(f"{reason}; this server is left out")
    return files


def _order(files: dict[str, Tunnel | ConfigError], have: State, interface: str, first: str | None) -> list[Tunnel]:
    """By name, turned so that `first` (or the server that is set up) comes first. If its file is bad, the next one."""
    known = list(files)
    if first is not None and first not in known:
        raise ConfigError(f"--server {first}: there is no such server; there is: {', '.join(known)}")
    start = known.index(first or _set_up(files, have, interface) or known[0])
    turned = (files[name] for name in known[start:] + known[:start])
    return [tunnel for tunnel in turned if not isinstance(tunnel, ConfigError)]


def _set_up(files: dict[str, Tunnel | ConfigError], have: State, interface: str) -> str | None:
    """The server that is set up: the one whose mark is there. Without a mark of one of these, the one that the device
    resembles most, if it has its peers."""
    if name := _marked(files, have):
        return name
    own = have.interface(interface)
    good = {name: tunnel for name, tunnel in files.items() if not isinstance(tunnel, ConfigError)}
    likeness = {name: _likeness(tunnel, own) for name, tunnel in good.items() if own}
    if not likeness:
        return None
    name = max(likeness, key=lambda name: likeness[name])
    return name if likeness[name] else None


def _marked(names: Iterable[str], have: State) -> str | None:
    marks = {route.metric for route in have.routes if server.is_mark(route)}
    return next((name for name in names if server.number(name) in marks), None)


def _likeness(tunnel: Tunnel, have: TunnelInterface) -> int:
    """How much of this server is in the device; 0 if it has other peers."""
    found = {peer.public_key: peer.endpoint for peer in (have.device.peers if have.device else ())}
    if not have.device or found.keys() != {peer.public_key for peer in tunnel.peers}:
        return 0
    addresses = {(str(a.ip), a.network.prefixlen) for a in tunnel.addresses}
    likeness = 1 + (have.device.private_key == tunnel.private_key)
    likeness += addresses == {(a.address, a.prefix_length) for a in have.addresses}
    for key, (host, port) in ((peer.public_key, peer.endpoint) for peer in tunnel.peers if peer.endpoint):
        now = found[key] or ("", 0)
        likeness += (now[1] == port) + (now[0] == host)
    return likeness


def _connect(
    kernel: netlink.Socket,
    settings: Settings,
    tunnel: Tunnel,
    seen: Observation,
    *,
    demanded: bool,
    alone: bool,
) -> None:
    """One server: its endpoint's addresses in turn. Raises HandshakeError when none answers.

    demanded: it has to prove that it answers now; alone: there is no other server to try.
    """
    for notice in tunnel.notices:
        log.warning(notice)
    sets = endpoints.candidates(settings, tunnel, seen, ask_again=demanded)
    timeout = max(settings.handshake_timeout / len(sets), min(settings.handshake_timeout, LEAST_FOR_ADDRESS))
    for number, ends in enumerate(sets):
        goal = Goal(settings, tunnel, ends)
        started = time.time()
        seen, changed = reconcile.converge(kernel, goal, seen)
        try:
            if changed:
                _await_proof(kernel, goal, seen, started, timeout)
            elif demanded:
                _demand_proof(kernel, goal, seen, timeout, alone=alone and len(sets) == 1)
            elif not _lives(seen, settings.interface):
                _await_proof(kernel, goal, seen, started, timeout)
        except HandshakeError:
            if number + 1 == len(sets):
                raise
        else:
            where = " and ".join(map(show_endpoint, ends.values()))
            (log.info if changed else log.debug)(f"{settings.interface} is up: server {tunnel.name} at {where}")
            if changed and settings.dns_config and settings.dns_mode == "cluster":
                log.warning("DNS_MODE=cluster: the cluster's resolver, and whom it asks, see every name")
            return


def _lives(seen: Observation, interface: str) -> bool:
    """Has the device, which is as it should be, a session that can still carry data?"""
    now = time.time()
    return any(session.lives(now) for session in seen.sessions(interface).values())


def _demand_proof(kernel: netlink.Socket, goal: Goal, seen: Observation, timeout: float, *, alone: bool) -> None:
    """An unchanged device: its session may go on if it answers at once. Else the peers are set anew, because a
    session that is thought to live shakes hands again only after 15 s without an answer. Not where nobody else can
    be tried: a server that comes back knows the session for 180 s, and serves it at once."""
    if alone:
        return _await_proof(kernel, goal, seen, time.time(), timeout)
    patience = min(LIVE_ANSWER, timeout / 3)
    try:
        _await_proof(kernel, goal, seen, time.time(), patience)
    except HandshakeError:
        own = seen.state.interface(goal.settings.interface)
        if own and own.device:
            device.write(own.link.name, own.link.kind, wireguard.renewal(own.device.peers))
        return _await_proof(kernel, goal, seen, time.time(), timeout - patience)
    return None


def _await_proof(kernel: netlink.Socket, goal: Goal, seen: Observation, since: float, timeout: float) -> None:
    """Return when a peer has proved to be there. Raises HandshakeError after `timeout` seconds.

    Proof is a handshake after `since` (Unix time); or, as one is not due where a session outlived the change,
    anything received. What drifts meanwhile is mended: nobody else would.
    """
    interface = goal.settings.interface
    before = sum(traffic.received_bytes for traffic in seen.sessions(interface).values())
    start = looked = time.monotonic()
    provoked, renewed = start - 1, start
    patience = cycle(PATIENCE)
    wait = next(patience)
    pause = 0.001
    while (now := time.monotonic()) < start + timeout:
        own = seen.state.interface(interface)
        reading = device.read(interface, own.link.kind if own else WIREGUARD)
        sessions = reading.traffic.values() if reading else ()
        if any(s.latest_handshake >= since for s in sessions) or sum(s.received_bytes for s in sessions) > before:
            return
        if now - renewed >= wait:
            _renew(own, reading)
            provoked, renewed, wait = start - 1, now, next(patience)
        if now - provoked >= 1:
            _provoke(interface, goal.tunnel)
            provoked = now
        if now - looked >= LOOK_AGAIN:
            seen, _ = reconcile.converge(kernel, goal, observe(kernel, interface))
            looked = time.monotonic()
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)
    ends = ", ".join(show_endpoint(peer.endpoint) for peer in goal.tunnel.peers if peer.endpoint)
    raise HandshakeError(
        f"{goal.tunnel.path}: no handshake with {ends} in {timeout:g} s: is the server up, the key still valid, "
        "and UDP to it allowed (network policy, firewall)?"
    )


def _renew(own: TunnelInterface | None, reading: Reading | None) -> None:
    """Begin the handshakes anew that nobody answered. A session that can still carry data is left alone."""
    if reading and own:
        now = time.time()
        silent = [peer for peer in reading.device.peers if not reading.traffic[peer.public_key].lives(now)]
        device.write(own.link.name, own.link.kind, wireguard.renewal(silent))


def _provoke(interface: str, tunnel: Tunnel) -> None:
    """Send every peer one byte, to the discard port (RFC 863): WireGuard shakes hands when there is data."""
    for peer in tunnel.peers:
        any(_sends(interface, target) for target in reach.targets(tunnel, peer))


def _sends(interface: str, target: str) -> bool:
    """One byte into the tunnel; returns whether it left."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            with suppress(PermissionError):  # without NET_RAW, before Linux 5.7; the rules lead there anyway
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
            probe.sendto(b"\0", socket.MSG_DONTWAIT, (target, 9))
    except OSError:
        return False
    return True
