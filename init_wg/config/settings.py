"""The environment -> Settings, by one table for both programs: TABLE. Pure.

Invalid values are rejected with exit code 2; they never fall back to the default, because a typing mistake must not
open anything. docs/configuration.md is made of this table (`make docs`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from init_wg.errors import ConfigError
from init_wg.log import LEVELS
from init_wg.model import ports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_YES, _NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
#: How the variables begin that the kubelet and Docker's links make of a Service called HEALTH, VERIFY, ...
_SERVICE_LINK = ("tcp://", "udp://", "sctp://")


class Settings(NamedTuple):
    """All settings, validated. Times are in seconds. notices: sentences for the log."""

    mode: str  # egress, server, node
    config: str
    interface: str
    implementation: str  # auto, kernel, userspace
    kill_switch: bool
    bypass_routes: bool
    bypass_cidrs: str  # read further by design.bypass, with the tunnel at hand
    dns_config: bool
    dns_mode: str  # tunnel, split, cluster
    cluster_domain: str | None
    input_ports: tuple[str, ...]  # sorted and disjoint, "51413" or "50000-50100"
    input_ports_file: str  # more of them, which may change at any time; "": none
    handshake_timeout: float
    health_probe: bool
    health_port: int
    verify_url: str  # "": off
    verify_interval: float
    verify_expect: str  # "": any public address
    verify_failures: int
    log_level: str
    log_format: str
    service_host: str | None = None  # of Kubernetes' own API, where there is one
    notices: tuple[str, ...] = ()


class Setting(NamedTuple):
    """One variable. parse raises ValueError; may_be ends the sentence of a refusal; meaning is Markdown for people.

    field: of Settings. reader: "setup", "watchdog" or "both"; both programs validate all of them.
    """

    name: str
    field: str
    default: str
    parse: Callable[[str], Any]
    may_be: str
    reader: str
    meaning: str


def read(environment: Mapping[str, str]) -> Settings:
    """Parse and validate. Raises ConfigError naming the variable and what it may be; "" counts as not set."""
    found, notices = values(TABLE, environment)
    return Settings(**found, service_host=environment.get("KUBERNETES_SERVICE_HOST"), notices=tuple(notices))


def values(table: Iterable[Setting], environment: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """The values of a table by their fields, and sentences for the log. Raises as `read` does."""
    found: dict[str, Any] = {}
    notices = []
    for setting in table:
        text = environment.get(setting.name, "").strip()
        if text.startswith(_SERVICE_LINK):
            notices.append(
                f"environment: {setting.name} is what Kubernetes says of a Service of that name, and ignored: "
                "set enableServiceLinks: false in the pod"
            )
            text = ""
        try:
            found[setting.field] = setting.parse(text or setting.default)
        except ValueError:
            shown = text if len(text) <= 40 and text.isprintable() else "what is set"
            raise ConfigError(
                f"environment: {setting.name}={shown} is not understood: it may be {setting.may_be}"
            ) from None
    return found, notices


def boolean(text: str) -> bool:
    if text.lower() not in _YES + _NO:
        raise ValueError
    return text.lower() in _YES


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError
        return text.lower()

    return parse


def _interface(text: str) -> str:
    """IFNAMSIZ is 16 with the zero byte; what nft, paths and the shell would take for something else is out."""
    allowed = all(character.isascii() and (character.isalnum() or character in "_.-") for character in text)
    if not allowed or not 0 < len(text) < 16 or text[0] in ".-" or text == "lo":
        raise ValueError
    return text


def _domain(text: str) -> str | None:
    if text.lower() == "auto":
        return None
    labels = text.strip(".").lower().split(".")
    # With "_": Docker's networks are domains, too, and compose calls a stack's first one <project>_default.
    plain = [label.replace("-", "a").replace("_", "a") for label in labels]
    if not all(label and len(label) < 64 and label.isalnum() and label.isascii() for label in plain):
        raise ValueError
    return ".".join(labels)


def _ports(text: str) -> tuple[str, ...]:
    return () if text.lower() == "none" else ports.parse(text)


def port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 6 and 0 < int(text) < 65536):
        raise ValueError
    return int(text)


def _count(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
            raise ValueError
        return int(text)

    return parse


def _seconds(least: float, most: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        seconds = float(text)
        if not least <= seconds <= most:  # also what is not a number: nan compares false
            raise ValueError
        return seconds

    return parse


def _url(text: str) -> str:
    if text and not text.startswith(("https://", "http://")):
        raise ValueError
    return text


TABLE = (
    Setting("WG_MODE", "mode", "egress", _one_of("egress", "server", "node"), "egress, server or node", "both",
            "`egress` sends everything that leaves the pod through a tunnel. `server` makes the pod the other end of "
            "one. `node` is for the watchdog beside `init-wg node`."),
    Setting("WG_CONFIG", "config", "/etc/wireguard", str, "a path, or a pattern", "both",
            "A wg-quick file, a folder, or a pattern such as `/etc/wireguard/$(POD_NAME).*.conf`. In a folder every "
            "`*.conf` is a server, and they are tried in name order, beginning with the one that is set up. A `wg "
            "setconf` file without `Address` has its addresses in `<name>.address` beside it."),
    Setting("WG_INTERFACE", "interface", "wg0", _interface, "a name of at most 15 letters, digits, _ . or -", "both",
            "The interface's name."),
    Setting("WG_IMPLEMENTATION", "implementation", "auto", _one_of("auto", "kernel", "userspace"),
            "auto, kernel or userspace", "setup",
            "`kernel`, `userspace` (wireguard-go), or the kernel's with userspace as the fallback."),
    Setting("ENABLE_KILL_SWITCH", "kill_switch", "true", boolean, "true or false", "setup",
            "`false` is allowed and loud: routing alone protects then."),
    Setting("ENABLE_BYPASS_ROUTES", "bypass_routes", "true", boolean, "true or false", "setup",
            "Keeps the cluster's or the compose networks reachable over the uplink."),
    Setting("BYPASS_CIDRS", "bypass_cidrs", "auto", str, "auto, private, none or a list", "setup",
            "Networks that stay reachable over the uplink: a list of networks and the words `auto` and `private`, "
            "or `none`. `auto` means the pod's own private networks, the service network deduced from "
            "`KUBERNETES_SERVICE_HOST` and, in Kubernetes, the pod's /16 (IPv6: /48). `private` means RFC 1918 and "
            "fc00::/7. A listed network is rejected if it contains the tunnel's addresses, its DNS servers, or half of "
            "the internet. A public network, or a cloud's metadata service (169.254.0.0/16 and others), is opened only "
            "if it is named. The pod's networks are those that it had when it was first set up: what a neighbour "
            "advertises later opens nothing. The log and `status` list the result and what stays closed."),
    Setting("ENABLE_DNS_CONFIG", "dns_config", "true", boolean, "true or false", "setup",
            "`false` redirects no query."),
    Setting("DNS_MODE", "dns_mode", "tunnel", _one_of("tunnel", "split", "cluster"), "tunnel, split or cluster", "both",
            "`tunnel`, `split` or `cluster`, **which leaks names**. See [dns.md](dns.md)."),
    Setting("CLUSTER_DOMAIN", "cluster_domain", "auto", _domain, "auto or a domain name", "setup",
            "The domain that the cluster's resolver answers in `split`; `auto` takes it from the search list."),
    Setting("VPN_INPUT_PORTS", "input_ports", "none", _ports, "none or a list of ports, 1 to 65535, and ranges of them",
            "setup",
            "Ports (TCP and UDP) that may be reached through the tunnel, for a provider's port forwarding; ranges, "
            "too: `6881, 50000-50100`."),
    Setting("VPN_INPUT_PORTS_FILE", "input_ports_file", "", str, "a path", "both",
            "A file of more such ports, one for each line, that may change while the pod runs: a NAT-PMP client writes "
            "it into a shared volume, and the watchdog applies it within three seconds. Without the file there are "
            "none; while it is wrong, the open ports stay."),
    Setting("HANDSHAKE_TIMEOUT", "handshake_timeout", "15", _seconds(0.1, 3600), "a number of seconds, 0.1 to 3600",
            "both",
            "Seconds that `up` waits for a first handshake, per server. A lost one is begun again within a second."),
    Setting("ENABLE_HEALTH_PROBE", "health_probe", "true", boolean, "true or false", "watchdog",
            "`false` opens no port. Repairs go on."),
    Setting("HEALTH_PORT", "health_port", "9999", port, "a number from 1 to 65535", "watchdog",
            "The port of the health endpoint."),
    Setting("VERIFY_URL", "verify_url", "", _url, "an http:// or https:// address", "watchdog",
            "The exit check: a URL that answers the caller's address, such as `https://am.i.mullvad.net/json`. "
            "Empty is off."),
    Setting("VERIFY_INTERVAL", "verify_interval", "300", _seconds(1, 86400), "a number from 1 to 86400", "watchdog",
            "Seconds between two exit checks."),
    Setting("VERIFY_EXPECT", "verify_expect", "", str, "addresses", "watchdog",
            "Addresses that the exit check may see. Empty allows every public address."),
    Setting("VERIFY_FAILURES", "verify_failures", "3", _count(1, 100), "a number from 1 to 100", "watchdog",
            "Exit checks that fail in a row until the VPN counts as not active and the next server is tried. A page "
            "that is often away itself needs more."),
    Setting("LOG_LEVEL", "log_level", "info", _one_of(*LEVELS), "debug, info, warning or error", "both",
            "`debug` shows every step."),
    Setting("LOG_FORMAT", "log_format", "text", _one_of("text", "json"), "text or json", "both",
            "`json` writes one object per line."),
)  # fmt: skip
