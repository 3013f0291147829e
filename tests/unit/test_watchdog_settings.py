"""The watchdog's part of the environment, and what the exit check's answers mean."""

from __future__ import annotations

import pytest

from init_wg.errors import ConfigError
from watchdog.settings import read
from watchdog.verify import judge


def test_defaults() -> None:
    found = read({})
    assert found == ("/etc/wireguard", "wg0", True, 9999, 15.0, "", 300.0, "", ())
    assert read({"HEALTH_PORT": " ", "VERIFY_URL": ""}) == found


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HEALTH_PORT", "0"),
        ("HEALTH_PORT", "70000"),
        ("HEALTH_PORT", "http"),
        ("ENABLE_HEALTH_PROBE", "perhaps"),
        ("VERIFY_INTERVAL", "-1"),
        ("VERIFY_INTERVAL", "nan"),
        ("HANDSHAKE_TIMEOUT", "soon"),
        ("VERIFY_URL", "am.i.mullvad.net"),
    ],
)
def test_what_is_not_understood_is_an_error(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"environment: {name}"):
        read({name: value})


@pytest.mark.parametrize(
    ("answer", "expected", "fine"),
    [
        ('{"ip": "185.213.154.68", "mullvad_exit_ip": true}', "", True),
        ('{"ip": "8.8.8.8", "mullvad_exit_ip": false}', "", False),
        ('{"ip": "8.8.8.8", "mullvad_exit_ip": "true"}', "", False),
        ('{"ip": "185.213.154.68", "mullvad_exit_ip": true}', "185.213.154.99", False),
        ("8.8.8.8\n", "", True),
        ('"8.8.8.8"', "", True),
        ("10.0.0.1", "", False),
        ("2001:4860:4860::8888", "", True),
        ("2001:4860:4860:0::8888", "2001:4860:4860::8888", True),
        ("203.0.113.51", "203.0.113.51", True),
        ("203.0.113.51", "203.0.113.52, 203.0.113.51", True),
        ("203.0.113.51", "203.0.113.52", False),
        ("203.0.113.51", "somewhere", False),
        ('{"origin": "8.8.8.8"}', "", True),
        ("<html>Sign in to the network</html>", "", False),
        ("", "", False),
        ("[1, 2]", "", False),
        ("null", "", False),
        ("3232235777", "", False),
        ("{}", "", False),
    ],
)
def test_answers_of_exit_checks(answer: str, expected: str, fine: bool) -> None:
    judged, sentence = judge(answer, expected)
    assert judged is fine
    assert sentence
    assert "\n" not in sentence


def test_what_a_service_of_that_name_has_put_there_is_no_setting() -> None:
    found = read({"HEALTH_PORT": "tcp://10.43.7.7:80", "VERIFY_INTERVAL": "udp://10.43.7.8:53"})
    assert (found.health_port, found.verify_interval) == (9999, 300.0)
    assert [notice.split(" is ")[0] for notice in found.notices] == [
        "environment: HEALTH_PORT", "environment: VERIFY_INTERVAL",
    ]  # fmt: skip
    with pytest.raises(ConfigError):
        read({"HEALTH_PORT": "http"})
