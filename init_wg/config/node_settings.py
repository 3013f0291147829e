"""The environment -> NodeSettings, by one table: what `init-wg node` asks for. Pure. Loaded by that command only."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING, NamedTuple

from init_wg.config.settings import Setting, values
from init_wg.errors import ConfigError
from init_wg.model import ports

if TYPE_CHECKING:
    from collections.abc import Mapping

AUTO = "auto"
#: Ports that nobody opens by a range: the machine's own resolver, and its shell.
ALONE = {22: "the machine's shell", 53: "its resolver"}


class Ports(NamedTuple):
    """One protocol's ports, as nft writes them: "443", "30000-32767"."""

    protocol: str  # tcp, udp
    ports: tuple[str, ...]


class Vpn(NamedTuple):
    """How a VPN's own packets are told from others: the mark that leads past its table; and its interface."""

    mark: int
    tunnel: str


class NodeSettings(NamedTuple):
    """Validated. pods, vpn: absent (None) for auto. inbound: at most one entry for each protocol."""

    pods: tuple[IPv4Network | IPv6Network, ...] | None
    inbound: tuple[Ports, ...]
    peers: tuple[IPv4Network | IPv6Network, ...]
    vpn: Vpn | None
    notices: tuple[str, ...] = ()


def read(environment: Mapping[str, str]) -> NodeSettings:
    """Parse and validate. Raises ConfigError naming the variable and what it may be; "" counts as not set."""
    found, notices = values(TABLE, environment)
    return NodeSettings(**found, notices=tuple(notices))


def _networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(ip_network(word) for word in text.replace(",", " ").split())


def _pods(text: str) -> tuple[IPv4Network | IPv6Network, ...] | None:
    return None if text.lower() == AUTO else _networks(text)


def _inbound(text: str) -> tuple[Ports, ...]:
    words: dict[str, list[str]] = {"tcp": [], "udp": []}
    for word in text.replace(",", " ").split():
        protocol, slash, port = word.lower().partition("/")
        if not (slash and port) or protocol not in words:
            raise ValueError
        _refuse_hidden(word, *ports.parse(port))
        words[protocol].append(port)
    return tuple(Ports(protocol, ports.merge(each)) for protocol, each in words.items() if each)


def _refuse_hidden(word: str, span: str) -> None:
    first, _, last = span.partition("-")
    for port, what in ALONE.items():
        if last and int(first) <= port <= int(last):
            raise ConfigError(
                f"environment: NODE_INBOUND: {word} has {port} in it, {what}: name {port} alone, or leave it out"
            )


def _vpn(text: str) -> Vpn | None:
    if text.lower() == AUTO:
        return None
    mark, comma, tunnel = text.partition(",")
    number, name = int(mark, 0), tunnel.strip()
    if not comma or not 0 < number < 1 << 32 or not 0 < len(name) < 16 or not set(name).isdisjoint(' /"\\'):
        raise ValueError
    return Vpn(number, name)


def _setting(*row: object) -> Setting:
    name, field, default, parse, may_be, meaning = row
    return Setting(name, field, default, parse, may_be, "setup", meaning)  # type: ignore[arg-type]


TABLE = (
    _setting("NODE_PODS", "pods", AUTO, _pods, "auto, or networks with commas between",
             "The networks of pods and containers. `auto` takes the main table's routes over devices that are neither "
             "an uplink nor the VPN's, those of Docker's bridges among them, and the networks in the files of flannel "
             "and of CNI plugins."),
    _setting("NODE_INBOUND", "inbound", "", _inbound, "ports as tcp/443,udp/30000-32767",
             "The ports of this machine that outsiders may reach beside the VPN: node ports, host ports, an ingress. "
             "Whoever reaches them sees the machine's own address."),
    _setting("NODE_PEERS", "peers", "", _networks, "addresses or networks with commas between",
             "The cluster's other nodes. Traffic with them goes beside the VPN, in clear unless the cluster encrypts "
             "it."),
    _setting("NODE_VPN", "vpn", AUTO, _vpn, "auto, or a mark and an interface as 0x6d6f6c65,wg0-mullvad",
             "The mark of the VPN's own packets, and its interface. `auto` learns both from the routing policy, and "
             "takes Mullvad's where there is nothing to learn from."),
)  # fmt: skip
