"""The endpoints of a server's peers as addresses: from the file, from the device, or asked through a hole."""

from __future__ import annotations

import time
from ipaddress import ip_address
from typing import TYPE_CHECKING

from init_wg.design import desired, dns
from init_wg.design import pod as pods
from init_wg.design.firewall import killswitch, ruleset
from init_wg.design.firewall.policy import Hole, Resolving, Sealed
from init_wg.errors import HandshakeError
from init_wg.kernel import nft
from init_wg.model import server
from init_wg.model.networks import hosts
from init_wg.model.state import INET, INET6
from init_wg.setup import resolve
from init_wg.setup.reconcile import Goal, compare, preferred_kind

if TYPE_CHECKING:
    from init_wg.config.settings import Settings
    from init_wg.config.tunnel import Endpoint, Tunnel
    from init_wg.design.firewall.policy import Opened
    from init_wg.model.state import State
    from init_wg.setup.observe import Observation

Addresses = dict[str, tuple[str, int]]


def known(settings: Settings, tunnel: Tunnel, have: State) -> Addresses:
    """The configuration's addresses; for names, what the device was given when they were resolved. Another server
    may have the same public key: only of the one that is set up the device's addresses are its own."""
    marks = {route for route in have.routes if server.is_mark(route)}
    device = have.device(settings.interface)
    mine = not marks or server.mark(tunnel.name) in marks
    current = {peer.public_key: peer.endpoint for peer in (device.peers if device and mine else ())}
    found = {}
    for key, endpoint in _wanted(tunnel).items():
        now = current.get(key)
        if dns.is_address(endpoint.host):
            found[key] = (str(ip_address(endpoint.host)), endpoint.port)
        elif now and now[1] == endpoint.port:
            found[key] = now
    return found


def candidates(settings: Settings, tunnel: Tunnel, seen: Observation, *, ask_again: bool) -> list[Addresses]:
    """The endpoints to try in turn: one set of endpoints, or one for each address that a peer's name has.

    A name is not asked again while its peer's session lives, unless `ask_again`: that would change nothing but
    open a hole. An address that is in use already comes first. Raises HandshakeError when there is none.
    """
    fixed = known(settings, tunnel, seen.state)
    now = time.time()
    found: dict[str, list[tuple[str, int]]] = {}
    for key, endpoint in _wanted(tunnel).items():
        session = seen.sessions(settings.interface).get(key)
        settled = key in fixed and session is not None and session.lives(now)
        if not dns.is_address(endpoint.host) and (ask_again or not settled):
            addresses = _ask(Goal(settings, tunnel, fixed), seen, endpoint.host)
            found[key] = sorted(((a, endpoint.port) for a in addresses), key=lambda end: end != fixed.get(key))
    most = max(map(len, found.values()), default=1)
    sets = [fixed | {key: ends[min(n, len(ends) - 1)] for key, ends in found.items()} for n in range(most)]
    return _reachable(settings, tunnel, seen, sets)


def _wanted(tunnel: Tunnel) -> dict[str, Endpoint]:
    return {peer.public_key: peer.endpoint for peer in tunnel.peers if peer.endpoint}


def _reachable(settings: Settings, tunnel: Tunnel, seen: Observation, sets: list[Addresses]) -> list[Addresses]:
    """Only what the uplink has a default route for."""
    pod = pods.discover(seen.kernel, settings.interface)
    usable = [
        ends
        for ends in sets
        if all((INET6 if ":" in address else INET) in pod.defaults for address, _ in ends.values())
    ]
    if not usable:
        address = next(iter(sets[0].values()))[0]
        raise HandshakeError(
            f"{tunnel.path}: the pod has no {'IPv6' if ':' in address else 'IPv4'} way to the endpoint {address}: "
            "use a server with an address of the other family"
        )
    return usable


def _ask(goal: Goal, seen: Observation, host: str) -> list[str]:
    """The name's addresses: of /etc/hosts, else asked through a hole in the kill-switch that is closed again whatever
    happens."""
    if listed := resolve.from_hosts(host):
        return listed
    servers = resolve.resolvers(seen.resolv_conf)
    with resolve.query_socket() as (query, port):
        if not goal.settings.kill_switch:
            return resolve.resolve(query, host, seen.resolv_conf, goal.tunnel.path)
        hole = Hole(hosts(servers), port)
        try:
            nft.load(killswitch.replacement(ruleset.text(Resolving(_holding(goal, seen), hole))))
            return resolve.resolve(query, host, seen.resolv_conf, goal.tunnel.path)
        finally:
            nft.load(killswitch.replacement(ruleset.text(_holding(goal, seen))))


def _holding(goal: Goal, seen: Observation) -> Sealed | Opened:
    """The kill-switch before and after the query: sealed if it is, else opened for the device as it is now.

    As designed, not as found: what somebody has changed in it must not be put back.
    """
    device = seen.state.device(goal.settings.interface)
    now = {peer.public_key: peer.endpoint for peer in (device.peers if device else ()) if peer.endpoint}
    comparison = compare(goal._replace(endpoints=now), seen, preferred_kind(goal.settings, seen.state))
    sealed = Sealed(comparison.now.gate)
    if device is None or seen.state.ruleset == ruleset.text(sealed):
        return sealed
    return desired.policy(goal.settings, goal.tunnel, comparison.pod, comparison.now)
