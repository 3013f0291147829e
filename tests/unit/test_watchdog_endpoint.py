""":9999: what is at which path, and that a port which is taken is waited for. The server has its own tests."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from init_wg.config.settings import read
from init_wg.kernel import sealed
from tests.unit.build_watchdog import Port, StillLoop
from tests.unit.test_watchdog_status import STATUS
from watchdog import facts
from watchdog.pages import LISTEN_AGAIN, Endpoint


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Port:
    def refuse(*_: object) -> tuple[int, ...]:
        raise PermissionError

    monkeypatch.setattr(sealed, "in_place", refuse)
    monkeypatch.setattr(facts, "counters", refuse)
    return Port(monkeypatch)


def made(loop: StillLoop, disabled: Callable[[], str] = str) -> Endpoint:
    return Endpoint(loop, read({}), facts.Kernel("wg0"), lambda: STATUS, disabled, bool)


def test_before_the_first_verdict_it_is_red(loop: StillLoop, port: Port) -> None:
    made(loop).open()
    assert port.get("/") == (503, "VPN is not active: the watchdog is starting")


def test_what_is_published_is_at_three_paths_and_a_turn_is_told_once(loop: StillLoop, port: Port) -> None:
    it = made(loop)
    it.open()
    said = [it.publish(reason) for reason in ("no tunnel", "silence", "", "", "silence")]
    assert said == [True, False, True, False, True]
    for path in ("/", "/healthz", "/readyz"):
        assert port.get(path) == (503, "VPN is not active: silence")
    it.publish("")
    assert port.get("/healthz") == (200, "VPN is active")
    assert "init_wg_up 1\n" in port.get("/metrics")[1]


def test_an_answer_that_stays_the_same_is_rendered_once(loop: StillLoop, port: Port) -> None:
    it = made(loop)
    it.open()
    it.publish("")
    first = port.pages[b"/"]()
    it.publish("")
    assert port.pages[b"/"]() is first


def test_alive_is_who_can_repair(loop: StillLoop, port: Port) -> None:
    reasons = ["cannot start a program: no memory", ""]
    made(loop, lambda: reasons.pop(0)).open()
    assert port.get("/livez") == (503, "the watchdog cannot repair: cannot start a program: no memory")
    assert port.get("/livez") == (200, "the watchdog works")


def test_a_kernel_that_says_nothing_is_no_reason_to_say_nothing(loop: StillLoop, port: Port) -> None:
    made(loop).open()
    page = port.get("/metrics")[1]
    assert "init_wg_http_connections 2\n" in page
    assert "init_wg_sealed" not in page
    assert '"sealed": null' in port.get("/status")[1]


@pytest.mark.parametrize("answer", [True, False])
def test_sealed_is_what_the_one_predicate_says(
    monkeypatch: pytest.MonkeyPatch, loop: StillLoop, port: Port, answer: bool
) -> None:
    monkeypatch.setattr(sealed, "in_place", lambda: answer)
    monkeypatch.setattr(facts, "counters", lambda _: (0, 0))
    made(loop).open()
    assert f"init_wg_sealed {int(answer)}\n" in port.get("/metrics")[1]
    assert f'"sealed": {str(answer).lower()}' in port.get("/status")[1]


def test_a_port_that_is_taken_is_waited_for(loop: StillLoop, port: Port, capsys: pytest.CaptureFixture[str]) -> None:
    port.reason = errno.EADDRINUSE
    it = made(loop)
    it.open()
    assert "set HEALTH_PORT to a free one; trying again in 5 s" in capsys.readouterr().err
    it.publish("")
    it.close()
    port.reason = 0
    loop.advance(LISTEN_AGAIN)
    assert port.get("/") == (200, "VPN is active")
