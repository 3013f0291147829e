"""The environment -> Settings. What is not understood is an error: a typing mistake must not open anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

from init_wg.errors import ConfigError
from init_wg.log import LEVELS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_T = TypeVar("_T")
_YES, _NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


class Settings(NamedTuple):
    """What design and README call the environment table. Times are in seconds."""

    config: str
    interface: str
    implementation: str  # auto, kernel, userspace
    kill_switch: bool
    bypass_routes: bool
    bypass_cidrs: str  # auto, private, none or a list
    dns_config: bool
    dns_mode: str  # tunnel, split, cluster
    cluster_domain: str | None
    input_ports: tuple[int, ...]
    handshake_timeout: float


def read(environment: Mapping[str, str]) -> Settings:
    """Parse and validate. Raises ConfigError naming the variable and what it may be; "" counts as not set."""

    def value(name: str, default: str, parse: Callable[[str], _T], may_be: str) -> _T:
        text = environment.get(name, "").strip() or default
        try:
            return parse(text)
        except ValueError:
            shown = text if len(text) <= 40 and text.isprintable() else "what is set"
            raise ConfigError(f"environment: {name}={shown} is not understood: it may be {may_be}") from None

    # Read by `log` itself, which tells errors before anything is validated.
    value("LOG_LEVEL", "info", _one_of(*LEVELS), "debug, info, warning or error")
    value("LOG_FORMAT", "text", _one_of("text", "json"), "text or json")
    return Settings(
        config=value("WG_CONFIG", "/etc/wireguard", str, "a path, or a pattern"),
        interface=value("WG_INTERFACE", "wg0", _interface, "a name of at most 15 letters, digits, _ . or -"),
        implementation=value("WG_IMPLEMENTATION", "auto", _one_of("auto", "kernel", "userspace"),
                             "auto, kernel or userspace"),
        kill_switch=value("ENABLE_KILL_SWITCH", "true", _boolean, "true or false"),
        bypass_routes=value("ENABLE_BYPASS_ROUTES", "true", _boolean, "true or false"),
        bypass_cidrs=value("BYPASS_CIDRS", "auto", str, "auto, private, none or a list"),
        dns_config=value("ENABLE_DNS_CONFIG", "true", _boolean, "true or false"),
        dns_mode=value("DNS_MODE", "tunnel", _one_of("tunnel", "split", "cluster"), "tunnel, split or cluster"),
        cluster_domain=value("CLUSTER_DOMAIN", "auto", _domain, "auto or a domain name"),
        input_ports=value("VPN_INPUT_PORTS", "none", _ports, "none or a list of ports, 1 to 65535"),
        handshake_timeout=value("HANDSHAKE_TIMEOUT", "15", _seconds, "a number of seconds, 0.1 to 3600"),
    )  # fmt: skip


def _boolean(text: str) -> bool:
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


def _ports(text: str) -> tuple[int, ...]:
    if text.lower() == "none":
        return ()
    ports = {_port(word) for word in text.replace(",", " ").split()}
    return tuple(sorted(ports))


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
        raise ValueError
    return int(text)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.1 <= seconds <= 3600:
        raise ValueError
    return seconds
