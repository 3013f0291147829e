"""The status page as people see it: in a real browser, light and dark, on a phone, with hostile words in it.

PAGE_PICTURES=folder keeps the pictures.
"""

from __future__ import annotations

import importlib.resources
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.lab import NEEDS, Lab, ip_batch, wait_until
from tests.lab.machine import INBOUND, MachineLab
from tests.lab.needs import Needs, demand
from tests.lab.served import ServerLab
from tests.netns.chaos import Watchdog, fetch
from tests.page.browser import Browser
from tests.picture import PICTURE

# A server's name is a file's name: it may hold anything but a slash.
HOSTILE = "<img src=x onerror=document.title='hit'>&quot;"
# An interface's name may hold anything but a slash and blanks, in 15 bytes.
HOSTILE_LINK = "<img>&quot;"
LOOKS = [(False, 1200), (True, 1200), (False, 360), (True, 360)]


@pytest.fixture(scope="module", autouse=True)
def machine() -> None:
    """Skip, with the reason, where no browser or no lab is to be had; under CI that is a failure."""
    demand("the page's suite", NEEDS, Needs({"chromium": "chromium"}))


@pytest.fixture(scope="module")
def kept() -> Iterator[Watchdog]:
    """A pod with two servers, set up and watched."""
    with Lab() as lab, Watchdog(lab, env={"WG_CONFIG": str(lab.config_folder)}) as watchdog:
        watchdog.settle()
        yield watchdog


@pytest.fixture(scope="module")
def browser(kept: Watchdog, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """On the node, where `kubectl port-forward` would end."""
    with Browser(kept.lab.node.popen, tmp_path_factory.mktemp("browser")) as it:
        yield it


def opened(browser: Browser, watchdog: Watchdog) -> None:
    browser.open(f"http://{watchdog.lab.pod.addresses[4]}:9999/")
    browser.until("document.querySelectorAll('main section').length > 4")


def text(browser: Browser) -> str:
    return str(browser.evaluate("document.body.innerText"))


def seen(browser: Browser, name: str) -> None:
    if folder := os.environ.get("PAGE_PICTURES"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        browser.picture(Path(folder, f"{name}.png"))


def faults_for_readers(browser: Browser) -> list[dict[str, Any]]:
    """axe-core: what keeps somebody from reading the page."""
    rules = importlib.resources.files("axe_core_python").joinpath("axe.min.js").read_text()
    browser.evaluate(rules)
    found = browser.evaluate(
        "axe.run().then(r => r.violations.map(v => ({id: v.id, nodes: v.nodes.map(n => n.html)})))"
    )
    assert browser.evaluate("axe.run().then(r => r.passes.length)") > 10
    return list(found)


@pytest.mark.parametrize(("dark", "width"), LOOKS)
def test_everybody_can_read_it(browser: Browser, kept: Watchdog, dark: bool, width: int) -> None:
    browser.look(dark=dark, width=width)
    opened(browser, kept)
    seen(browser, f"active-{'dark' if dark else 'light'}-{width}")
    assert "VPN is active" in text(browser)
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert faults_for_readers(browser) == []
    ground = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(17, 22, 28)") == dark


def test_the_picture_of_the_demo_fits_its_paper(browser: Browser) -> None:
    """To somebody who wants no motion it shows the last screen."""
    still = {"name": "prefers-reduced-motion", "value": "reduce"}
    browser.command("Emulation.setEmulatedMedia", features=[still])
    browser.open(PICTURE.as_uri())
    browser.until("document.querySelectorAll('text').length > 40")
    box = "(e => { const b = e.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; })"
    left, top, right, bottom = browser.evaluate(f"{box}(document.querySelector('.paper'))")
    lines = browser.evaluate(f"[...document.querySelectorAll('text')].map({box})")
    assert all(left < line[0] and line[2] < right for line in lines)
    assert top < lines[-1][1] and lines[-1][3] < bottom
    assert lines[0][3] < top, "it did not roll"


def test_words_of_others_are_only_shown(browser: Browser, kept: Watchdog) -> None:
    opened(browser, kept)
    first = kept.lab.config_folder / "1-provider.conf"
    hostile = first.rename(first.with_name(f"1{HOSTILE}.conf"))
    try:
        wait_until(lambda: json.loads(kept.ask("/status"))["server"] == hostile.stem, "the new name")
        browser.until("document.querySelector('dd').textContent.startsWith('1<')")
        assert hostile.stem in text(browser)
        assert browser.evaluate("document.images.length") == 0
        assert browser.evaluate("document.title").startswith("active")
        assert browser.complaints == []
    finally:
        hostile.rename(first)
    wait_until(lambda: json.loads(kept.ask("/status"))["server"] == first.stem, "the old name")


def test_its_policy_runs_nothing_else(browser: Browser, kept: Watchdog) -> None:
    """Even if somebody got a script into the page."""
    opened(browser, kept)
    insert = "const s = document.createElement('script'); s.textContent = 'window.hit = 1'; document.body.append(s)"
    browser.evaluate(insert)
    assert browser.evaluate("window.hit === undefined")
    browser.until("true")
    assert any("Content Security Policy" in complaint for complaint in browser.complaints)


def test_it_follows_what_happens_by_itself(browser: Browser, kept: Watchdog) -> None:
    lab = kept.lab
    browser.look(dark=False, width=1200)
    opened(browser, kept)
    kept.settle()
    lab.pod.run(["ip", "link", "delete", "wg0"])
    browser.until("document.body.innerText.includes('repaired in')")
    assert "links" in text(browser)
    browser.until("document.querySelectorAll('svg polyline').length === 2")
    for provider in (lab.provider, lab.provider2):
        provider.silence()
    try:
        browser.until("document.getElementById('words').textContent.startsWith('VPN is not active: nothing heard')")
        assert browser.evaluate("document.getElementById('state').className") == "bad"
        assert faults_for_readers(browser) == []
        seen(browser, "silent-light-1200")
    finally:
        for provider in (lab.provider, lab.provider2):
            provider.speak()
    browser.until("document.getElementById('state').className === 'good'")


def test_a_watchdog_that_has_gone_is_told(browser: Browser, kept: Watchdog) -> None:
    opened(browser, kept)
    kept.end()
    try:
        browser.until("document.getElementById('words').textContent === 'The watchdog does not answer'")
        seen(browser, "gone-light-1200")
    finally:
        kept.start()
    browser.until("document.getElementById('state').className === 'good'")


def test_programs_get_the_exact_words(kept: Watchdog) -> None:
    wait_until(kept.active, "the words that a kubelet reads")


def read_by_everybody(browser: Browser, url: str, name: str, words: str) -> None:
    for dark, width in LOOKS:
        browser.look(dark=dark, width=width)
        browser.open(url)
        browser.until(f"document.body?.innerText.includes({json.dumps(words)})")
        seen(browser, f"{name}-{'dark' if dark else 'light'}-{width}")
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert faults_for_readers(browser) == []
    assert browser.complaints == []


def test_a_server_shows_its_peers(tmp_path: Path) -> None:
    with ServerLab() as lab, Watchdog(lab, env=lab.server_env) as watchdog:
        watchdog.settle()
        lab.join(lab.roadwarrior, lab.client_file("roadwarrior"))
        lab.roadwarrior.run(["ping", "-c", "1", lab.web.addresses[4]])
        wait_until(lambda: "1 of 2 peers seen" in watchdog.ask(), "the peer")
        with Browser(lab.node.popen, tmp_path) as browser:
            url = f"http://{lab.pod.addresses[4]}:9999/"
            read_by_everybody(browser, url, "server", f"from {lab.roadwarrior.addresses[4]}")
            lines = browser.evaluate("[...document.querySelectorAll('li')].map(e => e.innerText.replace(/\\s+/g, ' '))")
            assert lines[0].startswith("roadwarrior 10.13.13.2, fd13:13::2; handshake ")
            assert lines[1] == "lan 10.13.13.3, fd13:13::3; never seen; 0 B received, 0 B sent"
            lab.pod.run(["nft", "flush", "ruleset"])
            browser.until("document.body.innerText.includes('repaired in')")
            assert "server is ready: 1 of 2 peers" in text(browser)


def test_a_machine_shows_what_passes_beside_the_vpn(tmp_path: Path) -> None:
    with MachineLab() as lab:
        lab.vpn("connected")
        with Watchdog(lab, env={"WG_MODE": "node", "NODE_INBOUND": INBOUND}, member=lab.node):
            wait_until(lambda: fetch(lab.node, "127.0.0.1", "/") == "node is ready: VPN connected", "its start")
            with Browser(lab.node.popen, tmp_path) as browser:
                read_by_everybody(browser, "http://127.0.0.1:9999/", "node", "Beside the VPN")
                ip_batch(
                    f"link add name {HOSTILE_LINK} type veth peer name other",
                    f"link set {HOSTILE_LINK} up",
                    "link set other up",
                    f"address add 192.168.9.2/24 dev {HOSTILE_LINK}",
                    f"route add default via 192.168.9.1 dev {HOSTILE_LINK} metric 900",
                    netns=lab.node.netns,
                )
                browser.until(f"document.body.innerText.includes({json.dumps(HOSTILE_LINK)})")
                for words in (
                    "node is ready: VPN connected",
                    "10.244.0.0/24",
                    "tcp/30000-32767",
                    "switch on the app's",
                ):
                    assert words in text(browser)
                assert browser.evaluate("document.images.length") == 0
                lab.vpn("blocked")
                browser.until("document.getElementById('words').textContent === 'node is ready: VPN blocked'")
