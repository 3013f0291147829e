"""The watchdog of a server: it heals what decides where peers' packets go, follows the list of peers, and says who was
seen. It runs with NET_ADMIN alone and a /proc/sys that cannot be written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.lab.lab import HTTP, Member, wait_until
from tests.lab.served import CONFINED, ServerLab
from tests.netns.chaos import Watchdog


class Served(NamedTuple):
    """A server that a watchdog keeps, with a file of peers."""

    lab: ServerLab
    watchdog: Watchdog
    peers: Path


class Confined(Watchdog):
    """With what an orchestrator leaves to a container."""

    def __init__(self, lab: ServerLab, env: Mapping[str, str]) -> None:
        super().__init__(lab, env=env, prefix=CONFINED)

    @property
    def pid(self) -> int:
        assert self.process
        return self.process.pid  # all of the prefix becomes it


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """Set up by the watchdog itself; both clients have joined."""
    with ServerLab() as lab:
        peers = lab.folder / "peers"
        peers.write_text("roadwarrior\nlan\n")
        env = {**lab.server_env, "PEERS": "", "PEERS_FILE": str(peers)}
        with Confined(lab, env) as watchdog:
            watchdog.settle()
            for member in (lab.roadwarrior, lab.lan):
                lab.join(member, lab.client_file(member.name))
            comes(lab, lab.roadwarrior, lab.lan)
            yield Served(lab, watchdog, peers)
            assert "a mistake in the watchdog" not in watchdog.log()


def reaches(lab: ServerLab, member: Member, timeout: float = 0.7) -> bool:
    return lab.request(member, lab.web.addresses[4], HTTP, timeout=timeout) == lab.pod.addresses[4]


def comes(lab: ServerLab, *members: Member) -> None:
    """By themselves: a client begins a new session when it has heard nothing for 15 s."""
    for other in members[1:]:
        reaches(lab, other)  # its 15 s begin with what it sends
    wait_until(lambda: all(reaches(lab, member) for member in members), "the peers reach the web")


def told(served: Served) -> dict[str, object]:
    facts: dict[str, object] = json.loads(served.watchdog.ask("/status"))
    return facts


def write(served: Served, *names: str) -> None:
    """As an editor does it, and the kubelet: the file is another one."""
    new = served.peers.with_suffix(".new")
    new.write_text("".join(f"{name}\n" for name in names))
    new.rename(served.peers)


def test_it_says_who_was_seen(served: Served) -> None:
    words = "server is ready: 2 of 2 peers seen in the last 3 min"
    wait_until(lambda: served.watchdog.ask() == words, words)
    facts = told(served)
    assert (facts["mode"], facts["words"], facts["up"], facts["sealed"]) == ("server", words, True, True)
    assert facts["served"] == {"active": 2, "seen": 2, "inactive": 0}
    assert {(peer["name"], *peer["addresses"]) for peer in facts["peers"]} == {  # type: ignore[attr-defined]
        ("roadwarrior", "10.13.13.2", "fd13:13::2"),
        ("lan", "10.13.13.3", "fd13:13::3"),
    }


def test_its_metrics_name_the_peers_and_no_secret(served: Served) -> None:
    page = served.watchdog.ask("/metrics")
    register = served.lab.register()
    for name, address in (("roadwarrior", "10.13.13.2, fd13:13::2"), ("lan", "10.13.13.3, fd13:13::3")):
        key = register["peers"][name]["public_key"]
        assert f'init_wg_peer_info{{name="{name}",public_key="{key}",address="{address}"}} 1\n' in page
    assert 'init_wg_peers{state="seen"} 2\n' in page
    everything = page + served.watchdog.ask("/status") + served.watchdog.log()
    secrets = [
        register["key"],
        *(peer[kind] for peer in register["peers"].values() for kind in ("key", "preshared_key")),
    ]
    assert not [secret for secret in secrets if secret in everything]


FAULTS = {
    "the interface": ["ip", "link", "delete", "wg0"],
    "the ruleset": ["nft", "flush", "ruleset"],
    "the gate": ["nft", "delete", "table", "netdev", "init_wg"],
    "a rule of the routing policy": ["ip", "rule", "delete", "iif", "wg0", "prohibit"],
    "an address": ["ip", "address", "delete", "10.13.13.1/24", "dev", "wg0"],
    "the port": ["wg", "set", "wg0", "listen-port", "4444"],
    "forwarding, by a sysctl": [
        "sh",
        "-c",
        "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 0 >/proc/sys/net/ipv4/ip_forward",
    ],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_somebody_changes_is_put_right(served: Served, fault: str) -> None:
    lab, watchdog, _ = served
    watchdog.settle()
    runs = watchdog.runs()
    lab.pod.run(FAULTS[fault])
    wait_until(lambda: watchdog.runs() > runs, "a repair")
    watchdog.settle()
    assert lab.run_server("check", env=watchdog.env).returncode == 0
    comes(lab, lab.roadwarrior, lab.lan)


def test_a_client_that_roams_is_no_drift(served: Served) -> None:
    lab, watchdog, _ = served
    watchdog.settle()
    runs = watchdog.runs()
    lab.roadwarrior.run(["wg", "set", "wg0", "listen-port", "40404"])
    comes(lab, lab.roadwarrior)
    key = lab.register()["peers"]["roadwarrior"]["public_key"]
    wait_until(lambda: any(peer["public_key"] == key and peer["endpoint"].endswith(":40404")
                           for peer in told(served)["peers"]), "the new endpoint is told")  # type: ignore[attr-defined]  # fmt: skip
    before = watchdog.metrics()
    lab.pod.run(["ip", "link", "set", "lo", "mtu", "65535"])
    try:
        wait_until(lambda: watchdog.runs() > runs, "a look after an event")
        watchdog.settle()
    finally:
        lab.pod.run(["ip", "link", "set", "lo", "mtu", "65536"])
    changed = watchdog.metrics() - before
    assert not [name for name in changed if name.startswith("init_wg_repairs_total") and "device" in name]


def test_the_list_of_peers_is_followed_and_nobody_else_notices(served: Served) -> None:
    lab, watchdog, _ = served
    watchdog.settle()
    argv = ["ping", "-n", "-q", "-i", "0.05", "-c", "100", lab.web.addresses[4]]
    pinging = lab.lan.popen(argv, stdout=subprocess.PIPE)
    write(served, "lan", "third")
    wait_until(lambda: watchdog.ask() == "server is ready: 1 of 2 peers seen in the last 3 min", "the new list")
    assert not reaches(lab, lab.roadwarrior)
    assert told(served)["served"] == {"active": 2, "seen": 1, "inactive": 1}
    write(served, "roadwarrior", "lan")
    wait_until(lambda: "of 2 peers" in watchdog.ask() and "roadwarrior" in watchdog.ask("/metrics"), "the old list")
    assert " 100 received" in pinging.communicate()[0].decode()
    lab.leave(lab.roadwarrior)
    lab.join(lab.roadwarrior, lab.client_file("roadwarrior"))
    comes(lab, lab.roadwarrior)


def test_with_a_wrong_list_the_server_goes_on_and_says_so(served: Served) -> None:
    lab, watchdog, peers = served
    watchdog.settle()
    write(served, "lan", "no/name")
    wait_until(lambda: told(served)["bad_configuration"], "the list is refused")
    assert str(peers) in str(told(served)["bad_configuration"])
    assert watchdog.ask().startswith("server is ready: ")
    assert reaches(lab, lab.roadwarrior)
    lab.pod.run(["nft", "flush", "ruleset"])
    wait_until(lambda: lab.pod.ok(["nft", "list", "table", "inet", "init_wg"]), "repairs go on")
    comes(lab, lab.roadwarrior)
    watchdog.settle()
    assert watchdog.log().count("no/name") == 1
    write(served, "roadwarrior", "lan")
    wait_until(lambda: not told(served)["bad_configuration"], "the right list is taken")


def test_a_damaged_volume_is_told_and_makes_no_new_keys(served: Served) -> None:
    lab, watchdog, _ = served
    watchdog.settle()
    register = lab.data / "server.json"
    kept = lab.folder / "kept.json"
    shutil.copy2(register, kept)
    register.write_text("{")
    try:
        os.kill(watchdog.pid, signal.SIGHUP)
        wait_until(lambda: "damaged" in watchdog.ask(), "the damage is told")
        assert watchdog.ask().startswith("server is not ready: ")
        assert register.read_text() == "{"
        assert reaches(lab, lab.roadwarrior)
    finally:
        kept.replace(register)
    os.kill(watchdog.pid, signal.SIGHUP)
    watchdog.settle()


def test_the_forwarder_that_is_killed_is_started_again(served: Served) -> None:
    watchdog = served.watchdog
    watchdog.settle()
    (forwarder,) = [pid for pid in watchdog.children() if b"dnsmasq" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(forwarder, signal.SIGKILL)
    wait_until(lambda: "the DNS forwarder ended" in watchdog.log(), "its end is noticed")
    watchdog.settle()
    assert told(served)["dns"]["forwarder"]  # type: ignore[index]


def test_its_end_changes_nothing_for_the_peers(served: Served) -> None:
    lab, watchdog, _ = served
    watchdog.end(signal.SIGKILL)
    assert reaches(lab, lab.roadwarrior)
    watchdog.start()
    watchdog.settle()
    assert reaches(lab, lab.lan)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [("PEERS", "", "PEERS is not set"), ("INTERNAL_SUBNET", "x", "INTERNAL_SUBNET=x is not understood")],
)
def test_wrong_settings_end_it(served: Served, name: str, value: str, words: str) -> None:
    wrong = Watchdog(served.lab, env={**served.lab.server_env, name: value})
    with wrong:
        assert wrong.process
        assert wrong.process.wait(10) == 2
    assert words in wrong.log()
