"""DNS: which resolvers there are, and how the forwarder is started. Pure.

The forwarder is dnsmasq: 5 MB, in every distribution, and its server=/domain/ is exactly what `split` needs.
It listens on the loopback and holds nothing of ours: the kill-switch decides where its queries may go.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple

from init_wg.design import reach
from init_wg.design.firewall.killswitch import DOCKER_RESOLVER, FORWARDER_PORT, FORWARDER_SOURCE
from init_wg.design.firewall.policy import Asked, Names
from init_wg.model.networks import hosts

if TYPE_CHECKING:
    from collections.abc import Iterable

    from init_wg.config.settings import Settings
    from init_wg.config.tunnel import Tunnel
    from init_wg.model.networks import Address

#: What the forwarder asks instead of the cluster's resolver: addresses for documentation (RFC 5737, RFC 3849),
#: which nobody else has a reason to ask.
ALIASES = {4: "192.0.2.53", 6: "2001:db8::53"}
CLUSTER_DOMAIN = "cluster.local"
MOST_DOTS = 15  # as glibc and musl have it
MOST_SHOWN = 60  # characters of what is no address


class ResolvConf(NamedTuple):
    """The pod's own: nameservers and search domains, in order. A name with `ndots` dots is asked as it is first.

    left_out: what stands where a nameserver's address should, and is none that a rule can say.
    """

    nameservers: tuple[str, ...]
    search: tuple[str, ...]
    ndots: int = 1
    left_out: tuple[str, ...] = ()


def parse(text: str) -> ResolvConf:
    """resolv.conf(5): of several search lines the last one counts; what is no address is left out."""
    nameservers: dict[str, None] = {}
    left_out: list[str] = []
    search: tuple[str, ...] = ()
    ndots = 1
    for words in map(str.split, text.splitlines()):
        if len(words) > 1 and words[0] == "nameserver":
            if is_address(words[1]):
                nameservers[str(ip_address(words[1]))] = None
            else:
                left_out.append(words[1][:MOST_SHOWN])
        elif words and words[0] in ("search", "domain"):
            search = tuple(word.rstrip(".").lower() for word in words[1:])
        elif words and words[0] == "options":
            found = (word.removeprefix("ndots:") for word in words if word.startswith("ndots:"))
            ndots = next((min(int(value), MOST_DOTS) for value in found if value.isdecimal()), ndots)
    return ResolvConf(tuple(nameservers), search, ndots, tuple(left_out))


def spelled_out(host: str, pod: ResolvConf) -> tuple[str, ...]:
    """The names that the system's resolver tries for this one, in its order: resolv.conf(5), `search` and `ndots`."""
    whole = host.rstrip(".")
    if host.endswith("."):
        return (whole,)
    guesses = [f"{whole}.{domain}" for domain in pod.search if domain]
    tried = [whole, *guesses] if whole.count(".") >= pod.ndots else [*guesses, whole]
    return tuple(dict.fromkeys(tried))


def choose(settings: Settings, tunnel: Tunnel, pod: ResolvConf, *, listening: bool = False) -> Names | Asked:
    """How DNS is steered. In `cluster`, everybody may ask the pod's resolvers outside the tunnel.

    listening: the forwarder runs. Without it several resolvers are not out of reach: the first one answers.
    """
    resolvers = reach.resolvers(tunnel)
    if settings.dns_config and settings.dns_mode == "cluster":
        return Asked(hosts(pod.nameservers))
    if not settings.dns_config or not resolvers:
        return Asked(())
    split = settings.dns_mode == "split"
    return Names(
        resolvers=tuple(map(str, resolvers)),
        cluster=tuple((ALIASES[a.version], str(a)) for a in _cluster(pod)) if split else (),
        docker=split and DOCKER_RESOLVER in pod.nameservers,
        forwarded=split or (_several(resolvers) and listening),
    )


def notices(settings: Settings, tunnel: Tunnel, pod: ResolvConf) -> tuple[str, ...]:
    """Which of the pod's nameservers are left out, and why, where one of them is needed."""
    names = any(peer.endpoint and not is_address(peer.endpoint.host) for peer in tunnel.peers)
    if not names and not (settings.dns_config and settings.dns_mode != "tunnel"):
        return ()
    return tuple(
        f"/etc/resolv.conf: nameserver {word} is left out: "
        + ("an address with a zone cannot be written in a rule" if "%" in word else "it is no IP address")
        for word in pod.left_out
    )


def dnsmasq(listening: Iterable[str], resolvers: Iterable[str]) -> tuple[str, ...]:
    """The command line of a forwarder on these addresses that asks these resolvers. It reads no files, writes none, and
    stays in the foreground."""
    servers = [f"--server={resolver}" for resolver in resolvers]
    return (
        "dnsmasq",
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--pid-file=",
        "--user=root",  # there is no capability to become another user,
        "--group=",  # nor for the groups
        "--log-facility=-",
        "--no-resolv",
        "--no-hosts",
        f"--port={FORWARDER_PORT}",
        f"--listen-address={','.join(listening)}",
        "--bind-dynamic",  # an address may come later: Docker's containers may have no ::1, a server's wg0 comes again
        "--cache-size=1000",
        "--edns-packet-max=1232",
        # In their order, as resolv.conf's: the first may know names of which the second denies the existence.
        *(["--strict-order"] if len(servers) > 1 else []),
        *servers,
    )


def forwarder(
    names: Names, pod: ResolvConf, domain: str | None, reverse: Iterable[str], search: Iterable[str] = ()
) -> tuple[str, ...]:
    """The command line of egress mode's forwarder.

    search: the tunnel's own domains, whose names are never the cluster's.
    """
    inside = [alias for alias, _ in names.cluster]
    inside += [f"{DOCKER_RESOLVER}@{FORWARDER_SOURCE}"] if names.docker else []
    # A guess like www.example.com.default.svc.cluster.local goes to the cluster and nowhere else; a search domain
    # of the node's own is none of the cluster's, whose resolver would pass the guess on to the node's.
    own = domain or (_domain(pod) if names.cluster else None)
    domains = [own] if own else []
    domains += [""] if names.docker else []  # "//": names without a dot, as a stack's services have
    return (
        *dnsmasq(("127.0.0.1", "::1"), names.resolvers),
        *(f"--server=/{ours}/{resolver}" for ours in search if ours != own for resolver in names.resolvers if inside),
        *(f"--server=/{domain}/{server}" for domain in domains for server in inside),
        *(f"--rev-server={network},{server}" for network in reverse for server in inside),
    )


def needs_forwarder(names: Names, pod: ResolvConf) -> bool:
    """Does anything lead to the forwarder? A redirection into the tunnel needs none."""
    families = {ip_address(resolver).version for resolver in names.resolvers}
    others = any(ip_address(server).version not in families for server in pod.nameservers)
    several = _several(map(ip_address, names.resolvers))
    return names.forwarded or several or others or DOCKER_RESOLVER in pod.nameservers


def _several(resolvers: Iterable[Address]) -> bool:
    """More than one of a family: a redirection knows one destination."""
    versions = [address.version for address in resolvers]
    return len(versions) > len(set(versions))


def one_for_each_family(addresses: Iterable[Address]) -> tuple[Address, ...]:
    """The first IPv4 address and the first IPv6 address."""
    first: dict[int, Address] = {}
    for address in addresses:
        first.setdefault(address.version, address)
    return tuple(first[version] for version in sorted(first))


def _cluster(pod: ResolvConf) -> tuple[Address, ...]:
    """The cluster's resolvers: those of resolv.conf that are not in the pod itself."""
    return one_for_each_family(a for a in map(ip_address, pod.nameservers) if not a.is_loopback)


def _domain(pod: ResolvConf) -> str:
    """What follows "svc." in the search list that the kubelet writes."""
    found = [domain.removeprefix("svc.") for domain in pod.search if domain.startswith("svc.")]
    return found[0] if found else CLUSTER_DOMAIN


def is_address(text: str) -> bool:
    """An address, rather than a name? An address with a zone (%eth0) is none: no rule can say it."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return "%" not in text
