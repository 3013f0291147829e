"""The machine as it is -> where its clusters are, and how its VPN is told. Pure: from one look at the kernel."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, NamedTuple

from init_wg.config.node_settings import Vpn
from init_wg.errors import ConfigError
from init_wg.model import networks
from init_wg.model.state import DEFAULT, MAIN_TABLE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from init_wg.config.node_settings import NodeSettings
    from init_wg.model.networks import Network
    from init_wg.model.snapshot import Snapshot
    from init_wg.model.state import Route

#: Mullvad's app (mullvad-types, talpid-core/src/linux): its mark and its interface.
MULLVAD = Vpn(0x6D6F6C65, "wg0-mullvad")
#: Its table; how its forward chain accepts what bears its mark, since 2023.6.
TABLE, ACCEPTS = "table inet mullvad {", "ct mark 0x00000f41 accept"
#: Its tunnels' own addresses and resolvers (10.64.0.1).
_INSIDE = ip_network("10.64.0.0/10")
_SEEN = 2  # arp_ignore: no answer to who is not in the same subnet (Documentation/networking/ip-sysctl.rst)
#: In the app's input chain with "local network sharing".
_LAN_SHARING = "fc00::/7"
_AT_MOST = 4  # marks that are told


class Machine(NamedTuple):
    """vpn: absent, connected, or blocked (connecting, or its lockdown). gateways: those of the default routes."""

    uplinks: tuple[str, ...]
    addresses: tuple[str, ...]
    gateways: tuple[str, ...]
    pods: tuple[Network, ...]
    told: Vpn
    vpn: str
    point_to_point: tuple[str, ...]


def discover(kernel: Snapshot, settings: NodeSettings, rules: str, written: tuple[Network, ...] = ()) -> Machine:
    """rules: the whole ruleset as nft prints it. written: the pods' networks by the files of a network plugin; those
    that are no networks of their own, as with macvlan on the LAN, are left out."""
    learnt = settings.vpn or _learnt(kernel)
    told = learnt or MULLVAD
    main = [route for route in kernel.routes if route.table == MAIN_TABLE and route.device not in (None, told.tunnel)]
    defaults = [route for route in main if route.destination in DEFAULT.values()]
    uplinks = tuple(dict.fromkeys(route.device for route in defaults if route.device))
    numbers = {interface.number: interface.name for interface in kernel.interfaces}
    addresses = networks.hosts(
        each.address.address
        for each in kernel.addresses
        if numbers.get(each.link) in uplinks and not ip_address(each.address.address).is_link_local
    )
    vpn = "absent" if TABLE not in rules else "connected" if _leads(kernel, told) else "blocked"
    alone = tuple(sorted({str(route.device) for route in _to_one_pod(main, uplinks)}))
    gateways = tuple(route.gateway for route in defaults if route.gateway)
    machine = Machine(uplinks, addresses, gateways, settings.pods or (), told, vpn, alone)
    if settings.pods is None:
        own = (network for network in written if not _unfit(network, machine, ()))
        machine = machine._replace(pods=(*_pods(main, uplinks), *own))
    return machine._replace(pods=tuple(sorted(set(machine.pods), key=networks.interval)))


def _learnt(kernel: Snapshot) -> Vpn | None:
    """From the rule that leads into a VPN's table all packets but its own: `not fwmark M lookup M`."""
    for rule in kernel.rules:
        if rule.invert and rule.mark:
            for route in kernel.routes:
                if route.table == rule.table and route.destination in DEFAULT.values() and route.device:
                    return Vpn(rule.mark, route.device)
    return None


def _leads(kernel: Snapshot, told: Vpn) -> bool:
    return any(rule.invert and rule.mark == told.mark for rule in kernel.rules)


def _pods(main: list[Route], uplinks: tuple[str, ...]) -> Iterator[Network]:
    for route in main:
        network = ip_network(route.destination)
        if route.kind == "unicast" and network.prefixlen and route.device not in (*uplinks, "lo") and _is_one(network):
            yield network


def _is_one(network: Network) -> bool:
    return not network.is_link_local and not network.is_multicast


def _to_one_pod(main: list[Route], uplinks: tuple[str, ...]) -> Iterator[Route]:
    for route in main:
        alone = ip_network(route.destination)
        if alone.version == 4 and alone.prefixlen == 32 and not route.gateway and route.device not in (*uplinks, "lo"):
            yield route


def refuse(machine: Machine, rules: str, resolvers: tuple[str, ...]) -> None:
    """Raises ConfigError where a licence for these networks would be one for the internet, or for the VPN's own."""
    for network in machine.pods:
        why = _unfit(network, machine, resolvers)
        if why:
            raise ConfigError(
                f"NODE_PODS: {network} {why}: name the networks of your pods alone, as NODE_PODS=10.244.0.0/16; "
                "nothing was changed"
            )
    if machine.vpn != "absent" and ACCEPTS not in _chain(rules, "forward"):
        raise ConfigError(
            "this VPN does not accept marked packets that are forwarded (Mullvad's app does since 2023.6): update it; "
            "nothing was changed"
        )


def _unfit(network: Network, machine: Machine, resolvers: tuple[str, ...]) -> str:
    if network.prefixlen == 0:
        return "is everything"
    if not networks.is_local(network):
        return "is public"
    if network.version == 4 and network.supernet_of(_INSIDE):  # type: ignore[arg-type]
        return f"covers the VPN's own {_INSIDE}"
    for address in resolvers:
        if networks.covers(_INSIDE, ip_address(address)) and networks.covers(network, ip_address(address)):
            return f"has the VPN's resolver {address} in it"
    for address in machine.addresses:
        if networks.covers(network, ip_address(address)):
            return f"has this machine's own address {address} in it"
    for address in machine.gateways:
        if networks.covers(network, ip_address(address)):
            return f"has the router {address} in it"
    return ""


def _chain(rules: str, name: str) -> str:
    table = rules.partition(TABLE)[2].partition("\n}")[0]
    return table.partition(f"chain {name} {{")[2].partition("\n\t}")[0]


def foreign(marks: Mapping[int, int]) -> tuple[str, ...]:
    """A sentence for connections with a mark that is neither ours nor the VPN's: the number of each mark."""
    if not marks:
        return ()
    total, shown = sum(marks.values()), ", ".join(f"{mark:#x}" for mark in sorted(marks)[:_AT_MOST])
    more = ", ..." if len(marks) > _AT_MOST else ""
    bear = "connection bears" if total == 1 else "connections bear"
    treats = "it stays, and the VPN treats them as it would without this table"
    return (f"{total} {bear} a mark of somebody else ({shown}{more}): {treats}",)


def notices(machine: Machine, arp_ignore: str, rules: str) -> tuple[str, ...]:
    """Sentences for people, of things that work otherwise than they may expect."""
    found = []
    six = next((network for network in machine.pods if network.version == 6), None)
    if six and machine.vpn != "absent" and _LAN_SHARING not in _chain(rules, "input"):
        # Neighbour discovery is tracked by no connection (net/netfilter/nf_conntrack_proto_icmpv6.c), so no mark of
        # one helps; the app accepts solicitations from link-local addresses only.
        found.append(
            f"the VPN refuses neighbour discovery from {six}, so these pods have no IPv6: switch on the app's local "
            "network sharing (mullvad lan set allow)"
        )
    if machine.point_to_point and arp_ignore == str(_SEEN):
        found.append(
            f"arp_ignore is 2, which Mullvad's app sets: pods on point-to-point links ({machine.point_to_point[0]}) "
            "may not find their gateway: start its daemon with TALPID_FIREWALL_DONT_SET_ARP_IGNORE=1"
        )
    if not machine.pods:
        found.append("no pod network is known yet: nothing is opened but NODE_INBOUND; NODE_PODS names one")
    if not machine.uplinks:
        found.append("there is no default route yet, so outsiders reach nothing")
    return tuple(found)
