""":9999: what is at which path, and that a port which is taken is waited for. The server has its own tests."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable

import pytest

from init_wg.config.settings import read
from init_wg.kernel import sealed
from tests.unit.build_watchdog import Port, StillLoop
from tests.unit.test_watchdog_status import STATUS
from watchdog import facts
from watchdog.pages import LISTEN_AGAIN, Endpoint
from watchdog.status import Status


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Port:
    def refuse(*_: object) -> tuple[int, ...]:
        raise PermissionError

    monkeypatch.setattr(sealed, "in_place", refuse)
    monkeypatch.setattr(facts, "counters", refuse)
    return Port(monkeypatch)


def made(loop: StillLoop, disabled: Callable[[], str] = str, told: Callable[[], Status] = lambda: STATUS) -> Endpoint:
    return Endpoint(loop, read({}), facts.Kernel("wg0"), told, disabled, bool)


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
    first = port.ask("/")
    it.publish("")
    assert port.ask("/") is first


SLOW = 0.75  # seconds that a page may take where the processor is busy


def slowly(loop: StillLoop, told: list[Status]) -> Callable[[], Status]:
    """Tells the next of these, the last one for ever; each takes its time."""

    def tell() -> Status:
        loop.advance(SLOW)
        return told.pop(0) if len(told) > 1 else told[0]

    return tell


def test_a_page_that_took_long_is_not_kept_for_long(loop: StillLoop, port: Port) -> None:
    it = made(loop, told=slowly(loop, [STATUS._replace(verdict="first"), STATUS._replace(verdict="second")]))
    it.open()
    it.publish("")
    assert '"verdict": "first"' in port.get("/status")[1]
    loop.advance(0.5)
    assert '"verdict": "first"' in port.get("/status")[1]
    loop.advance(0.6)
    assert '"verdict": "second"' in port.get("/status")[1]


def test_no_page_is_older_than_the_reason(loop: StillLoop, port: Port) -> None:
    it = made(loop, told=slowly(loop, [STATUS._replace(verdict="first"), STATUS._replace(verdict="second")]))
    it.open()
    it.publish("")
    assert '"verdict": "first"' in port.get("/status")[1]
    it.publish("silence")
    assert '"verdict": "second"' in port.get("/status")[1]


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


BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@pytest.mark.parametrize(
    "accept", ["", "*/*", "text/*", "application/json", "text/plain;version=0.0.4;q=0.5,*/*;q=0.1", "text/html;q=0"]
)
def test_programs_get_the_exact_words(loop: StillLoop, port: Port, accept: str) -> None:
    """curl, wget, the kubelet and Prometheus ask for anything."""
    it = made(loop)
    it.open()
    it.publish("")
    assert port.ask("/", accept).body == "VPN is active"


@pytest.mark.parametrize(("reason", "code"), [("", 200), ("silence", 503)])
def test_a_browser_gets_a_page_with_the_same_status(loop: StillLoop, port: Port, reason: str, code: int) -> None:
    it = made(loop)
    it.open()
    it.publish(reason)
    reply = port.ask("/", BROWSER)
    assert reply.status == code
    assert (
        f'<h1 id="words" aria-live="polite">{"VPN is not active: silence" if reason else "VPN is active"}</h1>'
        in reply.body
    )
    assert len(reply.body) <= 20 * 1024
    assert "{" + "nonce}" not in reply.body
    head = reply.head[0][0].decode()
    assert "Content-Type: text/html; charset=utf-8\r\n" in head
    assert port.ask("/healthz", BROWSER).body.startswith("VPN is")


def test_only_what_the_page_brings_along_runs(loop: StillLoop, port: Port) -> None:
    it = made(loop)
    it.open()
    first = port.ask("/", BROWSER)
    policy = re.findall(r"Content-Security-Policy: ([^\r]+)", first.head[0][0].decode())[0]
    nonces = set(re.findall(r"nonce-([0-9a-f]{32})'", policy))
    assert len(nonces) == 1
    assert set(re.findall(r'nonce="([^"]+)"', first.body)) == nonces
    assert "unsafe" not in policy
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", first.body)
    loop.advance(10)
    assert not nonces & set(re.findall(r'nonce="([^"]+)"', port.ask("/", BROWSER).body))


def test_prometheus_gets_the_format_that_it_asks_for(loop: StillLoop, port: Port) -> None:
    made(loop).open()
    asked = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
    assert port.ask("/metrics", asked).body.endswith("\n# EOF\n")
    assert "# EOF" not in port.ask("/metrics", "text/plain;version=0.0.4").body
