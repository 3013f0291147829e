"""What the exit check's answers mean."""

from __future__ import annotations

import pytest

from watchdog.verify import judge


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
