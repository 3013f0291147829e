"""The first handshake: begun when it can leave the pod, and begun again soon when it is lost on the way.

WireGuard itself tries again only after REKEY_TIMEOUT, 5 s: whatever takes so long here had a handshake refused or lost.
"""

from __future__ import annotations

import contextlib
import heapq
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest

from tests.lab.lab import TUNNEL_DNS, WIREGUARD_PORT, Endpoint, Lab, Provider, wait_until
from tests.netns.chaos import Watchdog

REKEY_TIMEOUT = 5.0
PORT = 51900
INITIATION = 1  # type of message (whitepaper, section 5.4.2)


class Road:
    """A way to a provider, from a port of the node: it loses the first handshakes, and takes its time both ways."""

    def __init__(self, lab: Lab, *, lost: int = 0, delay: float = 0.0) -> None:
        self.endpoint = Endpoint(lab.node.addresses[4], PORT)
        self.lost, self.delay = lost, delay
        self.initiations: list[float] = []  # when they arrived here
        self.server = lab.provider.endpoint
        self.near, self.far = (lab.node.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
        self.near.bind(self.endpoint)
        self.client: Endpoint | None = None
        self.ended = False
        self.thread = threading.Thread(target=self._carry)

    def _carry(self) -> None:
        under_way: list[tuple[float, int, bytes]] = []
        while not self.ended:
            wait = under_way[0][0] - time.monotonic() if under_way else 0.05
            ready, _, _ = select.select([self.near, self.far], [], [], max(0.0, min(wait, 0.05)))
            now = time.monotonic()
            for each in ready:
                data, sender = each.recvfrom(65535)
                if each is self.near:
                    self.client = Endpoint(*sender)
                    if data[0] == INITIATION:
                        self.initiations.append(now)
                        if len(self.initiations) <= self.lost:
                            continue
                heapq.heappush(under_way, (now + self.delay, each is self.near, data))
            while under_way and under_way[0][0] <= now:
                _, forth, data = heapq.heappop(under_way)
                out, to = (self.far, self.server) if forth else (self.near, self.client)
                if to:
                    out.sendto(data, to)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended = True
        self.thread.join()
        self.near.close()
        self.far.close()


@pytest.fixture(scope="module")
def machines() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture
def lab(machines: Lab) -> Lab:
    """A pod that nobody has set up."""
    machines.init_wg("down", check=False)
    machines.config()
    return machines


def up(lab: Lab, **env: str) -> float:
    """Seconds until the tunnel was up."""
    started = time.monotonic()
    lab.init_wg("up", env=env)
    took = time.monotonic() - started
    assert lab.flows(timeout=5)
    return took


@contextlib.contextmanager
def attempts(lab: Lab) -> Iterator[Callable[[], int]]:
    """How many handshakes the pod's WireGuard has begun so far, refused or not."""
    count = "meta mark 51820 meta l4proto udp @th,64,32 0x01000000 counter"
    hook = "type filter hook output priority -400; policy accept;"
    lab.pod.run(["nft", "-f", "-"], stdin=f"table inet attempts {{ chain out {{ {hook} {count}; }}; }}\n")
    try:
        yield lambda: int(
            lab.pod.run(["nft", "list", "table", "inet", "attempts"]).stdout.split("packets ")[1].split()[0]
        )
    finally:
        lab.pod.run(["nft", "delete", "table", "inet", "attempts"])


# --- begun when it can leave -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("keepalive", [None, 25])
def test_the_first_one_is_not_refused(lab: Lab, keepalive: int | None) -> None:
    lab.config(keepalive=keepalive)
    with attempts(lab) as begun:
        assert up(lab) < REKEY_TIMEOUT
        assert begun() == 1


@pytest.mark.parametrize("switch", ["true", "false"])
@pytest.mark.parametrize("sealed_before", [False, True])
def test_nor_after_wg0_was_deleted_with_the_ruleset_or_without(lab: Lab, switch: str, *, sealed_before: bool) -> None:
    up(lab)
    lab.pod.run(["ip", "link", "delete", "wg0"])
    lab.pod.run(["nft", "flush", "ruleset"])
    if sealed_before:
        lab.init_wg("lockdown")
    with attempts(lab) as begun:
        assert up(lab, ENABLE_KILL_SWITCH=switch) < REKEY_TIMEOUT
        assert begun() == 1


def test_nor_where_a_device_waited_under_the_seal(lab: Lab) -> None:
    """A wg0 with a peer, keepalive and no session, under a lockdown: what it began was refused."""
    up(lab)
    lab.pod.run(["nft", "delete", "table", "inet", "init_wg"])
    lab.init_wg("lockdown")
    peer, settings = lab.provider.public_key, ["allowed-ips", "0.0.0.0/0,::/0", "persistent-keepalive", "25"]
    lab.pod.run(["wg", "set", "wg0", "peer", peer, "remove"])
    lab.pod.run(["wg", "set", "wg0", "peer", peer, "endpoint", "203.0.113.51:51820", *settings])
    time.sleep(0.3)
    assert up(lab) < REKEY_TIMEOUT


@pytest.fixture
def port_443(lab: Lab) -> Iterator[Endpoint]:
    """The provider hears on port 443, too."""
    rules = (
        "table ip alt { chain pre { type nat hook prerouting priority dstnat; udp dport 443 redirect to :51820; }; }\n"
    )
    lab.provider.run(["nft", "-f", "-"], stdin=rules)
    yield lab.provider.endpoint._replace(port=443)
    lab.provider.run(["nft", "delete", "table", "ip", "alt"])


@pytest.fixture
def twin(lab: Lab) -> Iterator[Provider]:
    """A second server with the first one's key."""
    own, key = lab.provider2.public_key, lab.provider.public_key
    lab.provider2.run(["wg", "set", "wg0", "private-key", lab.provider.secret])
    lab.provider2.public_key = key
    yield lab.provider2
    lab.provider2.run(["wg", "set", "wg0", "private-key", lab.provider2.secret])
    lab.provider2.public_key = own


def change_of_server(lab: Lab, config: Path, source: str) -> None:
    with attempts(lab) as begun:
        assert up(lab, WG_CONFIG=str(config)) < REKEY_TIMEOUT
        assert begun() == 1
    assert lab.traffic_source(4) == source


def test_nor_does_another_port_of_the_same_server_inherit_a_session(lab: Lab, port_443: Endpoint) -> None:
    up(lab)
    change_of_server(lab, lab.config(endpoint=f"{port_443.address}:443"), lab.provider.addresses[4])


def test_nor_does_another_server_with_the_same_key(lab: Lab, twin: Provider) -> None:
    """It has never heard of the session, and would say nothing to it for 15 s."""
    up(lab)
    change_of_server(lab, lab.config(provider=twin), twin.addresses[4])
    change_of_server(lab, lab.config(), lab.provider.addresses[4])


#: Among WireGuard's packets that are about to leave, counts those to an address that is not the provider's.
STRAYS = """
table inet strays {{
	chain output {{
		type filter hook output priority -300
		meta mark 51820 ip6 daddr != {address} counter
	}}
}}
"""


def test_a_peer_that_moves_to_ipv6_is_written_to_at_its_whole_address(lab: Lab) -> None:
    """A wireguard-go that has used a buffer for an IPv4 address wrote 4 bytes of the next IPv6 address into it."""
    lab.pod.run(["nft", "-f", "-"], stdin=STRAYS.format(address=lab.provider.addresses[6]))
    try:
        up(lab)
        lab.pod.run(["ping", "-q", "-i", "0.002", "-c", "100", TUNNEL_DNS[4]])
        lab.config(endpoint=f"[{lab.provider.addresses[6]}]:{WIREGUARD_PORT}")
        up(lab)
        assert lab.flows()
        assert "counter packets 0 " in lab.pod.run(["nft", "list", "table", "inet", "strays"]).stdout
    finally:
        lab.pod.run(["nft", "delete", "table", "inet", "strays"])


# --- lost on the way -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keepalive", [None, 25])
@pytest.mark.parametrize("lost", [1, 2])
def test_one_that_is_lost_is_begun_again_within_a_second(lab: Lab, keepalive: int | None, lost: int) -> None:
    with Road(lab, lost=lost) as road:
        lab.config(endpoint=f"{road.endpoint.address}:{PORT}", keepalive=keepalive)
        assert up(lab) < REKEY_TIMEOUT
    first, second = road.initiations[:2]
    assert second - first < REKEY_TIMEOUT / 2  # 0.8 s, and a busy machine takes its time
    assert len(road.initiations) == lost + 1


def test_one_that_is_lost_on_its_way_to_the_second_server_too(lab: Lab) -> None:
    """Fail-over: the device is there, and changes in place."""
    up(lab)
    with Road(lab, lost=1) as road:
        lab.provider.silence()
        with contextlib.ExitStack() as after:
            after.callback(lab.provider.speak)
            path = lab.config(endpoint=f"{road.endpoint.address}:{PORT}")
            after.pop_all().close()
            assert up(lab, WG_CONFIG=str(path)) < REKEY_TIMEOUT


@pytest.mark.parametrize("delay", [0.2, 0.5])
def test_a_slow_link_has_its_time(lab: Lab, delay: float) -> None:
    """Round trips of 0.4 s and 1 s. What is under way is not given up over and over again."""
    with Road(lab, delay=delay) as road:
        lab.config(endpoint=f"{road.endpoint.address}:{PORT}")
        assert up(lab, HANDSHAKE_TIMEOUT="5") < REKEY_TIMEOUT
        assert len(road.initiations) <= 2


def test_a_session_that_lives_is_not_begun_anew(lab: Lab) -> None:
    """Whatever is repaired, and however often `up` runs."""
    with Road(lab) as road:
        lab.config(endpoint=f"{road.endpoint.address}:{PORT}")
        up(lab)
        for damage in (["ip", "link", "set", "wg0", "mtu", "1300"], ["wg", "set", "wg0", "fwmark", "0"], ["true"]):
            lab.pod.run(damage)
            lab.init_wg("up")
            assert lab.flows()
        assert len(road.initiations) == 1


# --- a peer that comes back ------------------------------------------------------------------------------------------

BACK = 1.0 + 1.0  # seconds: the promise, and a busy machine's


def returns(lab: Lab, back: Callable[[], None]) -> float:
    """Seconds from a server's return until the pod's traffic flows."""
    back()
    started = time.monotonic()
    while not lab.flows(timeout=0.3):
        assert time.monotonic() - started < 20
    return time.monotonic() - started


def test_one_that_comes_back_serves_its_old_session_at_once(lab: Lab) -> None:
    """With one server there is nobody else to try, so the session is kept as long as it may be good."""
    latest = ["wg", "show", "wg0", "latest-handshakes"]
    with Watchdog(lab) as watchdog:
        wait_until(watchdog.active, "that all is well", 20)
        before = lab.pod.run(latest).stdout
        lab.provider.silence()
        try:
            wait_until(lambda: "the peer is dead" in watchdog.log(), "the watchdog's notice", 30)
            time.sleep(6)
            assert lab.pod.run(latest).stdout == before
        finally:
            lab.provider.speak()
        assert returns(lab, lambda: None) < BACK
        wait_until(watchdog.active, "that all is well again", 5)


def test_one_that_was_away_from_the_start_is_found_within_a_second(lab: Lab) -> None:
    """No session at all, and the runs of the setup have become seldom."""
    lab.provider.silence()
    with Watchdog(lab, env={"HANDSHAKE_TIMEOUT": "1"}) as watchdog:
        try:
            wait_until(lambda: watchdog.log().count("no handshake") >= 3, "failed runs", 30)
            time.sleep(2)
        except BaseException:
            lab.provider.speak()
            raise
        assert returns(lab, lab.provider.speak) < BACK + 1.5  # it may come while slow links have their time
        wait_until(watchdog.active, "that all is well", 5)


def test_one_that_has_forgotten_the_session_is_found_too(lab: Lab) -> None:
    """A server that was started anew: WireGuard itself asks it every 5 s."""
    with Watchdog(lab) as watchdog:
        wait_until(watchdog.active, "that all is well", 20)
        lab.provider.silence()
        try:
            lab.provider.run(["wg", "set", "wg0", "peer", lab.pod_key, "remove"])
            lab.provider.admit()
            wait_until(lambda: "the peer is dead" in watchdog.log(), "the watchdog's notice", 30)
        finally:
            lab.provider.speak()
        assert returns(lab, lambda: None) < REKEY_TIMEOUT + BACK
        wait_until(watchdog.active, "that all is well again", 5)
