"""Which networks stay reachable beside the tunnel (BYPASS_CIDRS). Pure.

Never one that covers the tunnel's own addresses or resolvers, never everything, and never a public network
that nobody named.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, NamedTuple

from init_wg.errors import ConfigError
from init_wg.model.networks import PRIVATE, Address, Network, both, covers, interval, is_local, prefixes, without

if TYPE_CHECKING:
    from collections.abc import Iterable

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


class Bypass(NamedTuple):
    """The networks as routes have them, a sentence that says how they were chosen, and the networks as nft prints
    them. Both are sorted and disjoint."""

    networks: tuple[str, ...]
    explanation: str
    spelled: tuple[str, ...] = ()


def choose(settings: Settings, pod: Pod, tunnel: Tunnel, service_host: str | None) -> Bypass:
    """service_host: KUBERNETES_SERVICE_HOST. Raises ConfigError for a list that must not be."""
    inside: list[Address] = [interface.ip for interface in tunnel.addresses] + list(tunnel.dns)
    word = settings.bypass_cidrs.lower()
    if not settings.bypass_routes or word == "none":
        return Bypass((), "nothing bypasses the tunnel")
    if word == "private":
        return _bypass(map(interval, without(PRIVATE, inside)), "bypass: all private networks")
    if word != "auto":
        return _named(settings.bypass_cidrs, tuple(inside))
    found = {network: why for network, why in _deduced(pod, service_host) if not _is_everything(*interval(network))}
    said = ", ".join(f"{network} ({why})" for network, why in found.items()) or "nothing"
    return _bypass(map(interval, without(found, inside)), f"bypass: {said}")


def _bypass(intervals: Iterable[Interval], explanation: str) -> Bypass:
    networks, spelled = both(intervals)
    return Bypass(networks, explanation, spelled)


@lru_cache(maxsize=1)  # a run compares several times, and the list may have thousands
def _named(text: str, inside: tuple[Address, ...]) -> Bypass:
    return _bypass(_parsed(text, inside), "bypass: as BYPASS_CIDRS says")


def _parsed(text: str, inside: tuple[Address, ...]) -> Iterable[Interval]:
    points = [(address, address.version, int(address)) for address in inside]
    for word in text.replace(",", " ").split():
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
    for route in pod.routes:
        network = ip_network(route.destination)
        if route.kind == "unicast" and route.device == pod.uplink and is_local(network) and not network.is_link_local:
            yield network, "the pod's routes"
    if not service_host:
        return
    try:
        service = ip_address(service_host)
    except ValueError:
        return
    known = next((network for network in SERVICE_NETWORKS if covers(network, service)), None)
    wide = ip_network((service, 16 if service.version == 4 else 108), strict=False)
    alone = ip_network(service)
    yield known or (wide if is_local(wide) else alone), "services, by KUBERNETES_SERVICE_HOST"
    for address in pod.addresses:
        wide = ip_network((address.ip, 16 if address.version == 4 else 48), strict=False)
        if is_local(wide):
            yield wide, "pods, by the pod's address"


def _is_everything(version: int, first: int, last: int) -> bool:
    """Halves of the internet are its usual disguise."""
    return (last - first).bit_length() >= {4: 31, 6: 127}[version]
