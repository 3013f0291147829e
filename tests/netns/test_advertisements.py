"""A neighbour that advertises itself as a router, or prefixes as the link's: nothing opens, nothing is slow.

Without router advertisements at the beginning the pod does not hear them at all. A pod whose network plugin leaves
IPv6 to the link's router goes on hearing them, and keeps what it had then; what is advertised later is nobody's.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import pytest

from tests.lab.judge import Judge
from tests.lab.lab import Lab, wait_until
from tests.netns.chaos import Watchdog

ROGUE = {"fd00:1234:5678:1::": "fd00:1234:5678:ffff::80", "fc00:bbbb:bbbb:bb01::": "fc00:bbbb:bbbb:bb01::5"}


def advertise(lab: Lab, prefix: str, *, lifetime: int = 3600, route: str = "", router: int = 0) -> None:
    """One router advertisement of `prefix`/64, on the link and for addresses (RFC 4861, RFC 4191)."""
    body = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, router, 0, 0)
    body += struct.pack("!BB", 1, 1) + lab.node.link_address("pod0")
    body += struct.pack("!BBBBIII", 3, 4, 64, 0xC0, lifetime, lifetime, 0) + ip_address(prefix).packed
    if route:
        body += struct.pack("!BBBBI", 24, 3, 48, 0, lifetime) + ip_address(route).packed
    with lab.node.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sender:
        with lab.node.inside():
            index = socket.if_nametoindex("pod0")
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        sender.bind(("fe80::1", 0, 0, index))
        sender.sendto(body, ("ff02::1", 0, 0, index))


@contextmanager
def advertising(lab: Lab, *prefixes: str) -> Iterator[None]:
    """Three times a second, each time with other lifetimes, so that each is news."""
    end = threading.Event()

    def go() -> None:
        number = 0
        while not end.wait(0.33):
            number += 1
            for prefix in prefixes:
                advertise(lab, prefix, lifetime=3600 + number)

    thread = threading.Thread(target=go)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def send(lab: Lab, target: str) -> None:
    with lab.pod.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        for _ in range(3):
            try:
                sender.sendto(b"for the tunnel", (target, 7777))
            except OSError:
                continue


def in_clear(judge: Judge) -> list[str]:
    return [str(leak) for leak in judge.verdict().leaks if "7777" in str(leak)]


def ruleset(lab: Lab) -> str:
    return lab.pod.run(["nft", "--stateless", "list", "ruleset"]).stdout


@pytest.mark.parametrize("by_router", [False, True], ids=["a pod without a router", "a pod that has its IPv6 from one"])
def test_a_neighbours_advertisements_open_nothing(by_router: bool) -> None:
    with Lab() as lab, Judge(lab) as judge:
        if by_router:
            advertise(lab, "fd42:7::")
            wait_until(lambda: "fd42:7:" in lab.pod.run(["ip", "-6", "address"]).stdout, "an address by SLAAC", 10)
            time.sleep(2)  # until it is no longer tentative
        lab.init_wg("up")
        before = ruleset(lab)
        assert ("fd42:7::/64" in before) is by_router
        for prefix, target in ROGUE.items():
            lab.node.run(["ip", "-6", "address", "add", target, "dev", "pod0", "nodad"])
            advertise(lab, prefix, route="fd00:9999::")
        time.sleep(1)
        seen = lab.pod.run(["ip", "-6", "route"]).stdout
        assert ("fd00:1234:5678:1::/64" in seen) is by_router
        lab.init_wg("up")
        assert ruleset(lab) == before
        assert lab.init_wg("check").returncode == 0
        judge.mark()
        for target in ROGUE.values():
            send(lab, target)
        assert in_clear(judge) == []
        assert lab.flows()


@pytest.mark.parametrize("by_router", [False, True], ids=["a pod without a router", "a pod that has its IPv6 from one"])
def test_repairs_are_not_slowed(by_router: bool) -> None:
    with Lab() as lab:
        if by_router:
            advertise(lab, "fd42:7::")
            wait_until(lambda: "fd42:7:" in lab.pod.run(["ip", "-6", "address"]).stdout, "an address by SLAAC", 10)
        with Watchdog(lab) as watchdog, advertising(lab, "fd42:7::" if by_router else "fd66::", "fd67::"):
            wait_until(watchdog.active, "the tunnel", 30)
            time.sleep(3)
            runs = watchdog.runs()
            time.sleep(3)
            assert watchdog.runs() == runs, watchdog.log()
            began = time.monotonic()
            lab.pod.run(["nft", "flush", "ruleset"])
            wait_until(lambda: "table inet init_wg" in ruleset(lab), "the kill-switch", 10)
            assert time.monotonic() - began < 3
            wait_until(watchdog.active, "the tunnel again", 10)
