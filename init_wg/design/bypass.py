"""Which networks stay reachable beside the tunnel (BYPASS_CIDRS), and which the pod is attached to do not. Pure.

Never one that covers the tunnel's own addresses or resolvers, never everything, and never a public network or a
cloud's metadata service that nobody named.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, NamedTuple

from init_wg.design import reach
from init_wg.errors import ConfigError
from init_wg.model.networks import (
    METADATA,
    PRIVATE,
    Address,
    Network,
    both,
    covers,
    interval,
    is_local,
    merge,
    prefixes,
    without,
)
from init_wg.model.state import DEFAULT

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from init_wg.config.settings import Settings
    from init_wg.config.tunnel import Tunnel
    from init_wg.design.pod import Pod
    from init_wg.model.networks import Interval

#: Service networks by platform, for KUBERNETES_SERVICE_HOST. Most specific first where they nest.
SERVICE_NETWORKS = tuple(
    map(
        ip_network,
        (
            "10.43.0.0/16",  # k3s, RKE2
            "10.152.183.0/24",  # MicroK8s
            "10.100.0.0/16",  # EKS
            "10.96.0.0/12",  # kubeadm, kind, minikube, Talos
            "172.20.0.0/16",  # EKS
            "172.30.0.0/16",  # OpenShift
            "34.118.224.0/20",  # GKE
            "10.245.0.0/16",  # DigitalOcean
            "10.0.0.0/16",  # AKS
        ),
    )
)


#: Of a long list, so many are told in one line.
TOLD = 40


class Bypass(NamedTuple):
    """The networks as routes have them, a sentence that lists them and says how they were chosen, and the networks as
    nft prints them; both are sorted and disjoint. closed: what the pod is attached to and yet cannot reach, and why.
    """

    networks: tuple[str, ...]
    explanation: str
    spelled: tuple[str, ...] = ()
    closed: tuple[str, ...] = ()


def choose(settings: Settings, pod: Pod, tunnel: Tunnel, service_host: str | None) -> Bypass:
    """service_host: KUBERNETES_SERVICE_HOST. Raises ConfigError for a list that must not be."""
    inside = (*(interface.ip for interface in tunnel.addresses), *reach.resolvers(tunnel))
    words = settings.bypass_cidrs.replace(",", " ").split()
    special = {word.lower() for word in words} & {"auto", "private", "none"}
    if "none" in special and len(words) > 1:
        raise ConfigError("environment: BYPASS_CIDRS: none stands beside other words: keep it alone, or delete it")
    if not settings.bypass_routes or "none" in special:
        return Bypass((), "nothing bypasses the tunnel")
    deduced = {
        net: why for net, why in _deduced(pod, service_host) if not _is_everything(*interval(net)) and _rest(net)
    }
    wanted: dict[Network, str] = dict.fromkeys(PRIVATE, "private") if "private" in special else {}
    wanted |= deduced if "auto" in special else {}
    intervals, said = _named(tuple(word for word in words if word.lower() not in special), inside)
    intervals += tuple(map(interval, without(wanted, (*inside, *METADATA))))
    told = [f"{network} ({why}{_but_for(network, inside)})" for network, why in wanted.items()] + [said] * bool(said)
    networks, spelled = _both(intervals)
    closed = tuple(_closed(pod, deduced, service_host, merge(intervals)))
    explanation = f"bypass: {', '.join(told) or 'nothing'}" + (f"; closed: {few(closed)}" if closed else "")
    return Bypass(networks, explanation, spelled, closed)


@lru_cache(maxsize=1)  # a run compares several times, and the list may have thousands
def _both(intervals: tuple[Interval, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return both(intervals)


@lru_cache(maxsize=1)
def _named(words: tuple[str, ...], inside: tuple[Address, ...]) -> tuple[tuple[Interval, ...], str]:
    """What BYPASS_CIDRS lists, and in words how that is understood; "" when it lists nothing."""
    found = tuple(_parsed(words, inside))
    read = [f"{prefixes([each])[0]}" for each in found[:TOLD]]
    odd = [
        f"{word} is read as {net}" for word, net, each in zip(words, read, found, strict=False) if _is_odd(word, each)
    ]
    notes = f"; {few(odd)}" if odd else ""
    return found, f"{few([*read, *words[TOLD:]])} (BYPASS_CIDRS{notes})" if words else ""


def _is_odd(word: str, found: Interval) -> bool:
    """One address without a length, which may have been meant as a network; or an address within its network."""
    address, slash, _ = word.partition("/")
    return not slash or interval(address)[1] != found[1]


def _parsed(words: tuple[str, ...], inside: tuple[Address, ...]) -> Iterable[Interval]:
    points = [(address, address.version, int(address)) for address in inside]
    for word in words:
        try:
            version, first, last = found = interval(word)
        except ValueError:
            raise ConfigError(
                f"environment: BYPASS_CIDRS: {word[:60]!a} is not a network: write it like 10.43.0.0/16"
            ) from None
        if _is_everything(*found):
            raise ConfigError(
                f"environment: BYPASS_CIDRS: {prefixes([found])[0]} is the whole internet: nothing would be tunnelled"
            )
        for address, family, number in points:
            if family == version and first <= number <= last:
                raise ConfigError(
                    f"environment: BYPASS_CIDRS: {prefixes([found])[0]} covers {address}, which is inside the tunnel "
                    "(Address or DNS of the configuration): name smaller networks, or use auto"
                )
        yield found


def _deduced(pod: Pod, service_host: str | None) -> Iterable[tuple[Network, str]]:
    for network in map(ip_network, pod.origin.networks):
        if is_local(network):
            yield network, "the pod's routes"
    if not service_host:
        return
    if service := _address(service_host):
        known = next((network for network in SERVICE_NETWORKS if covers(network, service)), None)
        wide = ip_network((service, 16 if service.version == 4 else 108), strict=False)
        alone = ip_network(service)
        yield known or (wide if is_local(wide) else alone), "services, by KUBERNETES_SERVICE_HOST"
    for address in map(ip_network, pod.origin.addresses):
        wide = ip_network((address.network_address, 16 if address.version == 4 else 48), strict=False)
        if is_local(wide):
            yield wide, "pods, by the pod's address"


def _closed(pod: Pod, deduced: Iterable[Network], service_host: str | None, opened: list[Interval]) -> Iterable[str]:
    """What is near, and refused by the kill-switch: people look for it in the log first."""
    for network in deduced:
        if not any(_within(interval(part), opened) for part in _rest(network)):
            yield f"{network} (auto would open it)"
    for route in pod.routes:
        network = ip_network(route.destination)
        if route.kind != "unicast" or route.destination in DEFAULT.values() or not _rest(network):
            continue
        if route.device != pod.uplink:
            yield f"{network} (on {route.device}, which is not the uplink {pod.uplink})"
        elif not is_local(network) and not _within(interval(network), opened):
            yield f"{network} (public: BYPASS_CIDRS may name it)"
    reached = {route.device for route in pod.routes}
    yield from (f"{link} (not the uplink {pod.uplink})" for link in pod.links if link not in {pod.uplink} | reached)
    if service_host and not _address(service_host):
        yield (
            f"services (KUBERNETES_SERVICE_HOST={service_host[:60]!a} is not an address, and is not looked up: "
            "BYPASS_CIDRS may name their network, as in auto,10.96.0.0/12)"
        )


def _rest(network: Network) -> list[Network]:
    """What of it may be deduced."""
    return without((network,), METADATA)


def _within(network: Interval, opened: list[Interval]) -> bool:
    version, first, last = network
    return any(version == other and low <= first and last <= high for other, low, high in opened)


def _but_for(network: Network, inside: Iterable[Address]) -> str:
    """What is cut out of it because the tunnel has it."""
    cut = [str(address) for address in dict.fromkeys(inside) if covers(network, address)]
    return f"; but {', '.join(cut)} is inside the tunnel" if cut else ""


def _address(text: str) -> Address | None:
    try:
        return ip_address(text.strip("[]"))
    except ValueError:
        return None


def few(listed: Sequence[str]) -> str:
    """With commas between; of many, how many more there are."""
    more = f", and {len(listed) - TOLD} more" if len(listed) > TOLD else ""
    return ", ".join(listed[:TOLD]) + more


def _is_everything(version: int, first: int, last: int) -> bool:
    """Halves of the internet are its usual disguise."""
    return (last - first).bit_length() >= {4: 31, 6: 127}[version]
