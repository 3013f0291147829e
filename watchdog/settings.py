"""The watchdog's part of the environment. What is not understood is an error, as in init_wg.settings."""

from __future__ import annotations

from typing import NamedTuple

from init_wg.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: All that are read here.
_NAMES = (
    "WG_CONFIG", "WG_INTERFACE", "ENABLE_HEALTH_PROBE", "HEALTH_PORT", "HANDSHAKE_TIMEOUT", "VERIFY_URL",
    "VERIFY_INTERVAL", "VERIFY_EXPECT",
)  # fmt: skip
_YES, _NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


class Settings(NamedTuple):
    """Times are in seconds. verify_url: "" is off; verify_expect: "" is any public address."""

    config: str
    interface: str
    health_probe: bool
    health_port: int
    handshake_timeout: float
    verify_url: str
    verify_interval: float
    verify_expect: str
    notices: tuple[str, ...]  # what was ignored, for the log


def read(environment: Mapping[str, str]) -> Settings:
    """Parse and validate. Raises ConfigError naming the variable and what it may be; "" counts as not set."""

    links = _service_links(environment)

    def text(name: str, default: str) -> str:
        return ("" if name in links else environment.get(name, "").strip()) or default

    def refuse(name: str, may_be: str) -> ConfigError:
        shown = text(name, "")
        shown = shown if len(shown) <= 40 and shown.isprintable() else "what is set"
        return ConfigError(f"environment: {name}={shown} is not understood: it may be {may_be}")

    def boolean(name: str, default: str) -> bool:
        word = text(name, default).lower()
        if word not in _YES + _NO:
            raise refuse(name, "true or false")
        return word in _YES

    def number(name: str, default: str, least: float, most: float, parse: Callable[[str], float]) -> float:
        try:
            value = parse(text(name, default))
        except ValueError:
            value = least - 1
        if not least <= value <= most:  # also what is not a number: nan compares false
            raise refuse(name, f"a number from {least:g} to {most:g}")
        return value

    url = text("VERIFY_URL", "")
    if url and not url.startswith(("https://", "http://")):
        raise ConfigError("environment: VERIFY_URL is not understood: it may be an http:// or https:// address")
    return Settings(
        config=text("WG_CONFIG", "/etc/wireguard"),
        interface=text("WG_INTERFACE", "wg0"),
        health_probe=boolean("ENABLE_HEALTH_PROBE", "true"),
        health_port=int(number("HEALTH_PORT", "9999", 1, 65535, int)),
        handshake_timeout=number("HANDSHAKE_TIMEOUT", "15", 0.1, 3600, float),
        verify_url=url,
        verify_interval=number("VERIFY_INTERVAL", "300", 1, 86400, float),
        verify_expect=text("VERIFY_EXPECT", ""),
        notices=tuple(
            f"environment: {name} is what Kubernetes says of a Service of that name, and ignored: "
            "set enableServiceLinks: false in the pod"
            for name in links
        ),
    )


def _service_links(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Names of ours that a Service's own variables have taken: the kubelet and Docker's links put NAME_PORT=tcp://...
    into every container. For a setting that is no value at all."""
    return tuple(
        name for name in _NAMES if environment.get(name, "").strip().startswith(("tcp://", "udp://", "sctp://"))
    )
