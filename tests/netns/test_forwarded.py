"""A server's peer that never rests, judged at the pod's uplink: what is forwarded at each moment, and what never is.

The peer asks the web, which it may reach, and networks that nobody named. The second kind must never be seen, whatever
is broken meanwhile; the first kind not while the rules are away.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterator

import pytest

from tests.lab.lab import Member, wait_until
from tests.lab.served import CONFINED, Forwarded, ServerLab
from tests.netns.chaos import Watchdog

#: Of the cluster, the node, the LAN behind it, and a cloud's metadata.
DENIED = ("10.43.0.80", "10.42.1.1", "192.168.7.1", "169.254.169.254", "10.99.99.99")
#: By UDP and by TCP, and echo requests where the kernel lets anybody send them.
HAMMER = """
import socket, sys, time
kinds = [(socket.SOCK_DGRAM, 0), (socket.SOCK_STREAM, 0), (socket.SOCK_DGRAM, socket.IPPROTO_ICMP)]
while True:
    for address in sys.argv[1:]:
        for kind, protocol in kinds:
            try:
                with socket.socket(socket.AF_INET, kind, protocol) as asker:
                    asker.setblocking(False)
                    asker.connect((address, 9))
                    asker.send(b"\\x08" + bytes(15))
            except OSError:
                pass
    time.sleep(0.002)
"""
#: Seconds in which an unhindered peer is seen hundreds of times.
WHILE = 0.5
INTERRUPTED = (sys.executable, "-m", "tests.lab.interrupted")


@contextlib.contextmanager
def restless(lab: ServerLab, member: Member) -> Iterator[None]:
    process = member.popen([sys.executable, "-c", HAMMER, lab.web.addresses[4], *DENIED])
    try:
        yield
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def joined() -> Iterator[ServerLab]:
    """Both clients have a session."""
    with ServerLab() as lab:
        lab.run_server("up")
        for member in (lab.roadwarrior, lab.lan):
            lab.join(member, lab.client_file(member.name))
            member.popen(["ping", "-n", "-q", "-i", "0.2", "-c", "5", lab.web.addresses[4]]).wait(30)
        assert all(lab.handshakes().values())
        yield lab


def to_the_web(lab: ServerLab, seen: list[Forwarded], since: float = 0.0) -> list[Forwarded]:
    return [each for each in seen if each.destination == lab.web.addresses[4] and each.moment >= since]


def wrong(lab: ServerLab, seen: list[Forwarded]) -> list[Forwarded]:
    """Whatever is not for the web, or does not bear the server's own address."""
    return [each for each in seen if each.destination != lab.web.addresses[4] or each.source != lab.pod.addresses[4]]


def without_rules(lab: ServerLab) -> None:
    """What a server is that has a tunnel and the kernel's forwarding, and nothing else."""
    lab.pod.run(["nft", "flush", "ruleset"])
    for rule in lab.pod.run(["ip", "rule"]).stdout.splitlines():
        if "lookup local" not in rule and "lookup main" not in rule and "lookup default" not in rule:
            lab.pod.run(["ip", "rule", "delete", "preference", rule.partition(":")[0]])
    lab.pod.sysctl(ipv4__ip_forward=1)


def test_the_control_without_rules_all_of_it_is_seen(joined: ServerLab) -> None:
    with joined.forwarded() as seen, restless(joined, joined.roadwarrior):
        wait_until(lambda: to_the_web(joined, seen), "the peer is forwarded")
        assert not wrong(joined, seen)
        without_rules(joined)
        wait_until(lambda: {each.destination for each in seen} >= set(DENIED), "denied networks are seen")
    assert {each.source for each in wrong(joined, seen)} == {"10.13.13.2"}
    assert {each.protocol for each in wrong(joined, seen)} >= {6, 17}


def test_nothing_is_forwarded_before_the_rules_stand_however_the_setup_is_killed() -> None:
    """The kernel forwards by itself, the peer asks all the time, and `up` dies after each of its steps."""
    with ServerLab() as lab:
        for command in ("up", "down"):  # which makes the peers' keys
            lab.run_server(command)
        lab.pod.sysctl(ipv4__ip_forward=1)
        lab.join(lab.roadwarrior, lab.client_file("roadwarrior"))
        with lab.forwarded() as seen, restless(lab, lab.roadwarrior):
            for steps in range(100):
                env = {**lab.server_env, "INIT_WG_STOP_AFTER": str(steps)}
                ended = lab.pod.run([*CONFINED, *INTERRUPTED, "up"], env=env, check=False)
                if ended.returncode == 0:
                    break
                assert ended.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), ended.stderr
                # The rules come last but one: with them the web may be seen.
                if "chain granted" not in lab.pod.run(["nft", "list", "ruleset"]).stdout:
                    assert not seen, steps
            assert steps > 5
            wait_until(lambda: to_the_web(lab, seen), "the peer is forwarded")
        assert not wrong(lab, seen)


@pytest.mark.parametrize("flushed", ["flush ruleset", "delete table inet init_wg"])
def test_after_a_flush_nothing_is_forwarded_until_the_repair(joined: ServerLab, flushed: str) -> None:
    with joined.forwarded() as seen, restless(joined, joined.roadwarrior):
        wait_until(lambda: to_the_web(joined, seen), "the peer is forwarded")
        joined.pod.run(["nft", *flushed.split()])
        gone = time.time()
        time.sleep(WHILE)
        assert not to_the_web(joined, seen, since=gone + 0.05)
        joined.run_server("up")
        wait_until(lambda: to_the_web(joined, seen, since=gone + 0.05), "the peer is forwarded again")
    assert not wrong(joined, seen)


def test_a_removed_peer_is_forwarded_no_more_and_others_are(joined: ServerLab) -> None:
    with joined.forwarded() as seen, restless(joined, joined.roadwarrior):
        wait_until(lambda: to_the_web(joined, seen), "the peer is forwarded")
        joined.run_server("up", env={"PEERS": "lan"})
        gone = time.time()
        time.sleep(WHILE)
        assert not to_the_web(joined, seen, since=gone)
        with restless(joined, joined.lan):
            wait_until(lambda: to_the_web(joined, seen, since=gone), "the control: the other one is")
    assert not wrong(joined, seen)


def test_while_the_watchdog_repairs_denied_networks_are_never_seen(joined: ServerLab) -> None:
    """Each fault in turn, with the kernel forwarding by itself, and peers that go and come."""
    faults = (
        ["nft", "flush", "ruleset"],
        ["nft", "delete", "table", "inet", "init_wg"],
        ["nft", "delete", "table", "netdev", "init_wg"],
        ["ip", "rule", "delete", "iif", "wg0", "prohibit"],
        ["ip", "link", "delete", "wg0"],
    )
    joined.pod.sysctl(ipv4__ip_forward=1)
    with Watchdog(joined, env=joined.server_env) as watchdog:
        watchdog.settle()
        with joined.forwarded() as seen, restless(joined, joined.roadwarrior):
            for _ in range(2):
                for fault in faults:
                    runs = watchdog.runs()
                    joined.pod.run(fault)
                    wait_until(lambda runs=runs: watchdog.runs() > runs, "a repair")  # type: ignore[misc]
                    watchdog.settle()
            repaired = time.time()
            wait_until(lambda: to_the_web(joined, seen, since=repaired), "the peer is forwarded again", 40)
    assert not wrong(joined, seen)
