"""init_wg.config.settings: what is not understood is an error that names its variable."""

from __future__ import annotations

from typing import Any

import pytest

from init_wg.config.settings import TABLE, Settings, read
from init_wg.errors import ConfigError

DEFAULTS = Settings(
    mode="egress",
    config="/etc/wireguard",
    interface="wg0",
    implementation="auto",
    kill_switch=True,
    bypass_routes=True,
    bypass_cidrs="auto",
    dns_config=True,
    dns_mode="tunnel",
    cluster_domain=None,
    input_ports=(),
    input_ports_file="",
    handshake_timeout=15.0,
    health_probe=True,
    health_port=9999,
    verify_url="",
    verify_interval=300.0,
    verify_expect="",
    verify_failures=3,
    log_level="info",
    log_format="text",
)


def test_the_defaults() -> None:
    assert read({}) == DEFAULTS


def test_every_default_is_the_same_as_an_empty_value() -> None:
    """compose passes `${NAME:-}` on as nothing."""
    names = [setting.name for setting in TABLE]
    assert read(dict.fromkeys(names, "")) == read(dict.fromkeys(names, " \t")) == DEFAULTS


@pytest.mark.parametrize(
    ("name", "value", "field", "expected"),
    [
        ("WG_CONFIG", "/config/wg.conf", "config", "/config/wg.conf"),
        ("WG_INTERFACE", "tunnel_1.a-b", "interface", "tunnel_1.a-b"),
        ("WG_INTERFACE", "fifteen-letters", "interface", "fifteen-letters"),
        ("WG_IMPLEMENTATION", "Kernel", "implementation", "kernel"),
        ("WG_IMPLEMENTATION", "userspace", "implementation", "userspace"),
        *(("ENABLE_KILL_SWITCH", yes, "kill_switch", True) for yes in ("true", "TRUE", "yes", "on", "1", " true\n")),
        *(("ENABLE_KILL_SWITCH", no, "kill_switch", False) for no in ("false", "False", "no", "off", "0")),
        ("ENABLE_BYPASS_ROUTES", "no", "bypass_routes", False),
        ("ENABLE_DNS_CONFIG", "off", "dns_config", False),
        ("BYPASS_CIDRS", "10.0.0.0/16", "bypass_cidrs", "10.0.0.0/16"),
        ("DNS_MODE", "SPLIT", "dns_mode", "split"),
        ("DNS_MODE", "cluster", "dns_mode", "cluster"),
        ("CLUSTER_DOMAIN", "AUTO", "cluster_domain", None),
        ("CLUSTER_DOMAIN", ".K8s.Example.", "cluster_domain", "k8s.example"),
        ("CLUSTER_DOMAIN", "stack_default", "cluster_domain", "stack_default"),
        ("LOG_LEVEL", "DEBUG", "log_level", "debug"),
        ("LOG_FORMAT", "json", "log_format", "json"),
        ("HEALTH_PORT", "8080", "health_port", 8080),
        ("VERIFY_URL", "https://am.i.mullvad.net/json", "verify_url", "https://am.i.mullvad.net/json"),
        ("VPN_INPUT_PORTS", "none", "input_ports", ()),
        ("VPN_INPUT_PORTS", "6881", "input_ports", ("6881",)),
        ("VPN_INPUT_PORTS", "51413, 6881 6881,1", "input_ports", ("1", "6881", "51413")),
        ("VPN_INPUT_PORTS", "65535", "input_ports", ("65535",)),
        ("VPN_INPUT_PORTS", "50000-50100", "input_ports", ("50000-50100",)),
        (
            "VPN_INPUT_PORTS",
            "51413 50100-50200, 50000-50150,50201,80-80",
            "input_ports",
            ("80", "50000-50201", "51413"),
        ),
        ("VPN_INPUT_PORTS", "1-65535", "input_ports", ("1-65535",)),
        ("VPN_INPUT_PORTS_FILE", " /run/ports/forwarded ", "input_ports_file", "/run/ports/forwarded"),
        ("HANDSHAKE_TIMEOUT", "0.5", "handshake_timeout", 0.5),
        ("HANDSHAKE_TIMEOUT", "3600", "handshake_timeout", 3600.0),
    ],
)
def test_what_is_understood(name: str, value: str, field: str, expected: Any) -> None:
    assert read({name: value}) == DEFAULTS._replace(**{field: expected})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("WG_INTERFACE", bad) for bad in ("lo", "sixteen-letters-", "a b", "../wg0", "-wg0", ".wg", "wg/0", 'a"b',
                                            "wg0;", "wgö", "eth*", "wg%d", "wg0\n\nx")),
        *(("WG_IMPLEMENTATION", bad) for bad in ("go", "wireguard-go", "true", "auto kernel")),
        *(("ENABLE_KILL_SWITCH", bad) for bad in ("fasle", "flase", "2", "ja", "disabled", "none", "null")),
        ("ENABLE_BYPASS_ROUTES", "maybe"),
        ("ENABLE_DNS_CONFIG", "tunnel"),
        ("DNS_MODE", "host"),
        *(("CLUSTER_DOMAIN", bad) for bad in ("a b", "a..b", "a/b", "a,b", "ä.b", "x" * 64, "#")),
        ("LOG_LEVEL", "verbose"),
        ("HEALTH_PORT", "0"), ("HEALTH_PORT", "70000"), ("HEALTH_PORT", "http"), ("ENABLE_HEALTH_PROBE", "perhaps"),
        ("VERIFY_INTERVAL", "-1"), ("VERIFY_INTERVAL", "nan"), ("VERIFY_URL", "am.i.mullvad.net"),
        ("LOG_FORMAT", "xml"),
        *(("VPN_INPUT_PORTS", bad) for bad in ("0", "65536", "70000", "-1", "80/tcp", "90-80", "http", "1e3", "٣", "+5",
                                               "1_000", "8" * 5000)),
        *(("VPN_INPUT_PORTS", bad) for bad in ("80-", "-80", "0-80", "80-65536", "80-90-100", "80 - 90", "80:90")),
        *(("HANDSHAKE_TIMEOUT", bad) for bad in ("0", "0.09", "3601", "-5", "nan", "inf", "15s", "9" * 5000)),
    ],
)  # fmt: skip
def test_what_is_not_understood_names_the_variable(name: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read({name: value})
    message = str(caught.value)
    assert message.startswith(f"environment: {name}=")
    assert "it may be " in message
    assert message.isprintable()
    assert len(message) < 200
    assert caught.value.exit_code == 2


def test_a_secret_in_the_wrong_variable_is_not_shown() -> None:
    with pytest.raises(ConfigError, match="what is set is not understood") as caught:
        read({"WG_INTERFACE": "mJVW3x7EylG8hC8bHmUEcHxYGsnfNlcDVJPzXcwZrGo="})
    assert "mJVW" not in str(caught.value)


def test_what_a_service_of_that_name_has_put_there_is_no_setting() -> None:
    """The kubelet and Docker's links put NAME_PORT=tcp://... into every container, for each Service."""
    found = read({"HEALTH_PORT": "tcp://10.43.7.7:80", "VERIFY_INTERVAL": "udp://10.43.7.8:53"})
    assert found._replace(notices=()) == DEFAULTS
    assert [notice.split(" is ")[0] for notice in found.notices] == [
        "environment: HEALTH_PORT", "environment: VERIFY_INTERVAL",
    ]  # fmt: skip


def test_the_lockdown_reads_its_two_settings_as_the_table_does() -> None:
    """It cannot wait for this module: what must come first must not wait for imports."""
    table = {setting.name: setting for setting in TABLE}
    assert (table["ENABLE_KILL_SWITCH"].default, table["WG_INTERFACE"].default) == ("true", "wg0")
    for word in ("false", "no", "off", "0"):
        assert read({"ENABLE_KILL_SWITCH": word}).kill_switch is False
