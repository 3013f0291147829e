"""The environment -> ServerSettings, by one table: what WG_MODE=server asks for beside the common settings. Pure.

Names and defaults are those of linuxserver/wireguard, so that its compose files go on working. Loaded in server mode
only.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING, Any, NamedTuple

from init_wg.config import peer_names
from init_wg.config import values as wireguard
from init_wg.config.peer_names import BadNameError
from init_wg.config.settings import Setting, boolean, port, values
from init_wg.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

AUTO, NONE = "auto", "none"
#: Before a peer's name: the networks behind that peer.
BEHIND = "SERVER_ALLOWEDIPS_PEER_"
#: linuxserver's, for what this program has no use for.
IGNORED = ("PUID", "PGID", "TZ")
_WIDEST, _NARROWEST = 16, 30  # of INTERNAL_SUBNET
_WIDEST6, _NARROWEST6 = 8, 112  # of INTERNAL_SUBNET6: a /112 has a number for each host of the widest INTERNAL_SUBNET


class ServerSettings(NamedTuple):
    """Validated. Networks are without host bits; keepalive is in seconds, 0 is off.

    peers: absent (None) where PEERS is not set. url: "" none, "auto", or a host without brackets. subnet6: "auto",
    "none" or a network. peer_dns: the server itself is None. behind: by the end of the variable's name, see
    `networks_behind`.
    """

    peers: tuple[str, ...] | None
    peers_file: str
    url: str
    port: int
    subnet: IPv4Network
    subnet6: IPv6Network | str
    allowed_ips: tuple[IPv4Network | IPv6Network, ...]
    peer_to_peer: bool
    peer_dns: tuple[str, ...] | None
    keepalive: int
    preshared_keys: bool
    data: str
    behind: tuple[tuple[str, tuple[IPv4Network | IPv6Network, ...]], ...] = ()
    notices: tuple[str, ...] = ()


def read(environment: Mapping[str, str]) -> ServerSettings:
    """Parse and validate. Raises ConfigError naming the variable and what it may be; "" counts as not set."""
    found, notices = values(TABLE, environment)
    found.pop("log_confs")
    if found["peers"] is None and not found["peers_file"]:
        raise ConfigError(
            "environment: PEERS is not set: write how many peers there are (PEERS=3) or their names "
            "(PEERS=phone,laptop), or name a file of them in PEERS_FILE"
        )
    if found["peers"] is not None and found["peers_file"]:
        raise ConfigError("environment: PEERS and PEERS_FILE are both set: keep one of them, for one list of peers")
    ignored = [name for name in IGNORED if environment.get(name, "").strip()]
    if ignored:
        notices.append(
            f"environment: {', '.join(ignored)}: accepted and ignored: the volume's files belong to root, and nothing "
            "here depends on a time zone"
        )
    behind = tuple((name.removeprefix(BEHIND), _behind(name, text)) for name, text in sorted(environment.items())
                   if name.startswith(BEHIND) and text.strip())  # fmt: skip
    return ServerSettings(**found, behind=behind, notices=tuple(notices))


def networks_behind(
    settings: ServerSettings, names: tuple[str, ...]
) -> dict[str, tuple[IPv4Network | IPv6Network, ...]]:
    """The networks behind each of these peers. Raises ConfigError for a variable that belongs to none of them.

    Shells allow letters, digits and _ only in a variable's name: any other character may be written as _.
    """
    found: dict[str, tuple[IPv4Network | IPv6Network, ...]] = {}
    for end, networks in settings.behind:
        owner = next((name for name in names if end in (name, _as_variable(name))), None)
        if owner is None:
            raise ConfigError(f"environment: {BEHIND}{end}: there is no peer of that name: correct it, or delete it")
        found[owner] = networks
    return found


def behind_by(settings: ServerSettings, name: str) -> str | None:
    """The variable with the networks behind this peer."""
    return next((BEHIND + end for end, _ in settings.behind if end in (name, _as_variable(name))), None)


def _as_variable(name: str) -> str:
    return name.replace("-", "_").replace(".", "_")


def _behind(name: str, text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    try:
        networks = _networks(text)
    except ValueError:
        raise ConfigError(
            f"environment: {name} is not understood: it may be networks with commas between, as 192.168.1.0/24"
        ) from None
    if any(network.prefixlen == 0 for network in networks):
        raise ConfigError(f"environment: {name} has a default route: name the networks that are behind this peer")
    return networks


def _peers(text: str) -> tuple[str, ...] | None:
    if not text:
        return None
    try:
        return peer_names.parse(text)
    except BadNameError as error:
        raise ConfigError(f"environment: PEERS {error}") from None


def _url(text: str) -> str:
    if text.lower() in ("", AUTO):
        return text.lower()
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    host = f"[{bare}]" if ":" in bare else bare
    return wireguard.endpoint(f"{host}:1")[0]


def _subnet(text: str) -> IPv4Network:
    address, slash, length = text.partition("/")
    network = IPv4Network(f"{address}/{length if slash else 24}")  # strict: no host bits
    if not _WIDEST <= network.prefixlen <= _NARROWEST or not network.is_private or network.is_loopback:
        raise ValueError
    return network


def _subnet6(text: str) -> IPv6Network | str:
    if text.lower() in (AUTO, NONE):
        return text.lower()
    network = IPv6Network(text)
    if not _WIDEST6 <= network.prefixlen <= _NARROWEST6 or network.is_link_local or network.is_multicast:
        raise ValueError
    return network


def _networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    found = tuple(dict.fromkeys(map(wireguard.network, text.replace(",", " ").split())))
    if not found:
        raise ValueError
    return found


def _peer_dns(text: str) -> tuple[str, ...] | None:
    if text.lower() == AUTO:
        return None
    if text.lower() == NONE:
        return ()
    words = text.replace(",", " ").split()
    if any(word.strip(wireguard.HEX_DIGITS + ".:") for word in words):
        raise ValueError
    return tuple(dict.fromkeys(str(wireguard.resolver(word)) for word in words))


def _log_confs(text: str) -> bool:
    if boolean(text):
        raise ConfigError(
            "environment: LOG_CONFS=true: secrets do not go into logs: delete it; "
            "`init-wg peer show NAME --qr` prints a peer's code on request"
        )
    return False


def _folder(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError
    return text


def _setting(name: str, field: str, default: str, parse: Callable[[str], Any], may_be: str, meaning: str) -> Setting:
    return Setting(name, field, default, parse, may_be, "both", meaning)


TABLE = (
    _setting("PEERS", "peers", "", _peers, "a number, or names with commas between",
             "How many peers there are (`peer1`, `peer2`, ...), or their names: 1 to 31 letters, digits, `_`, `.` or "
             "`-`. A peer that is taken out of the list is refused at once and keeps its keys: put back, it works as "
             "before."),
    _setting("PEERS_FILE", "peers_file", "", str, "a path",
             "Instead of `PEERS`: a file with one name for each line. The watchdog looks at it every two seconds, so "
             "editing a ConfigMap adds and removes peers."),
    _setting("SERVERURL", "url", "", _url, "a host name, an address or auto",
             "The host in the peers' files. Serving needs none. `auto` takes the uplink's own address, if that is "
             "public. No service on the internet is asked."),
    _setting("SERVERPORT", "port", "51820", port, "a number from 1 to 65535",
             "The UDP port in the peers' files: that of the NodePort or the router. In the pod it is always 51820."),
    _setting("INTERNAL_SUBNET", "subnet", "10.13.13.0/24", _subnet, "a private IPv4 network from /16 to /30",
             "The peers' IPv4 network; without a prefix length a /24. The server has its first address."),
    _setting("INTERNAL_SUBNET6", "subnet6", "auto", _subnet6, "auto, none or an IPv6 network from /8 to /112",
             "The peers' IPv6 network. `auto` is a /64 below fd00::/8, made of the server's public key."),
    _setting("ALLOWEDIPS", "allowed_ips", "0.0.0.0/0, ::/0", _networks, "networks with commas between",
             "Where peers may go: written into their files, and enforced here for each packet. A default route means "
             "the public internet. A private network has to be named, and link-local addresses, metadata services "
             "among them, exactly."),
    _setting("PEER_TO_PEER", "peer_to_peer", "false", boolean, "true or false",
             "`true` lets peers reach each other."),
    _setting("PEERDNS", "peer_dns", "auto", _peer_dns, "auto, none or addresses",
             "The resolvers in the peers' files. `auto` is the server itself, which asks the pod's own resolvers: so "
             "peers know the cluster's names."),
    _setting("PEER_KEEPALIVE", "keepalive", "25", wireguard.keepalive, "a number of seconds, 0 to 65535, or off",
             "PersistentKeepalive in the peers' files: it keeps NATs and NodePorts open. 0 is off."),
    _setting("PRESHARED_KEYS", "preshared_keys", "true", boolean, "true or false",
             "A preshared key for each new peer."),
    _setting("LOG_CONFS", "log_confs", "false", _log_confs, "false",
             "linuxserver's prints the peers' keys. `true` is rejected: secrets do not go into logs, and "
             "`init-wg peer show NAME` prints them on request."),
    _setting("SERVER_DATA", "data", "/var/lib/init-wg", _folder, "an absolute path",
             "The volume with the keys. See [server.md](server.md)."),
)  # fmt: skip
