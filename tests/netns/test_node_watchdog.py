"""The watchdog of a machine with a VPN: it keeps the table, whatever anybody does to it or to the network, and tells of
it on the loopback alone."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests import documents
from tests.lab.lab import HTTP, ip_batch, wait_until
from tests.lab.machine import INBOUND, LOCAL, OF_A_POD, PUBLIC, MachineLab
from tests.netns.chaos import Watchdog, fetch


class Kept(NamedTuple):
    """A machine that a watchdog keeps."""

    lab: MachineLab
    watchdog: Watchdog


@pytest.fixture(scope="module")
def kept() -> Iterator[Kept]:
    with MachineLab() as lab:
        lab.vpn("connected")
        env = {"WG_MODE": "node", "NODE_INBOUND": INBOUND}
        with Watchdog(lab, env=env, member=lab.node) as watchdog:
            made = Kept(lab, watchdog)
            wait_until(lambda: said(made) == "node is ready: VPN connected", "its start")
            yield made
            assert "a mistake in the watchdog" not in watchdog.log()


def said(kept: Kept, path: str = "/") -> str:
    return fetch(kept.lab.node, "127.0.0.1", path)


def works(lab: MachineLab) -> bool:
    """For pods, and for who comes from outside."""
    return lab.request(lab.a, OF_A_POD[4], HTTP) == lab.a.addresses[4] and (
        lab.request(lab.ext, PUBLIC[4], LOCAL) == lab.ext.addresses[4]
    )


def in_place(kept: Kept) -> bool:
    return kept.lab.init_node("check", check=False).returncode == 0


def test_it_sets_up_and_tells_on_the_loopback_alone(kept: Kept) -> None:
    assert works(kept.lab)
    assert fetch(kept.lab.lan, kept.lab.node.addresses[4], "/", 1.0) == ""
    told = json.loads(said(kept, "/status"))
    assert (told["mode"], told["up"], told["reason"], told["machine"]["vpn"]) == ("node", True, "", "connected")
    whole = {"machine", "repairs"}
    assert documents.fields(told, whole) == documents.named_fields("with `WG_MODE=node`")
    page = said(kept, "/metrics")
    assert "init_wg_node_up 1\n" in page
    assert 'init_wg_node_vpn_state{state="connected"} 1\n' in page
    assert 'init_wg_node_vpn_state{state="blocked"} 0\n' in page


FAULTS = {
    "a flush of everything": ["nft", "flush", "ruleset"],
    "the table deleted": ["nft", "delete", "table", "inet", "init_wg_node"],
    "a rule added": ["nft", "insert", "rule", "inet", "init_wg_node", "licence", "drop"],
    "a chain emptied": ["nft", "flush", "chain", "inet", "init_wg_node", "forward_after"],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_somebody_does_to_it_is_put_right(kept: Kept, fault: str) -> None:
    kept.lab.node.run(FAULTS[fault])
    wait_until(lambda: in_place(kept), "the table is put right")
    if fault.startswith("a flush"):  # of the cluster's rules and the VPN's, too, which are not ours to put back
        kept.lab._cluster()  # noqa: SLF001
        kept.lab.vpn("connected")
    wait_until(lambda: works(kept.lab), "all works again")


def test_another_address_of_the_machine_is_noticed(kept: Kept) -> None:
    node = kept.lab.node.netns
    ip_batch("address add 192.168.1.101/24 dev eth0", netns=node)
    try:
        wait_until(lambda: "192.168.1.101" in said(kept, "/status"), "the address is known")
        assert in_place(kept)
    finally:
        ip_batch("address delete 192.168.1.101/24 dev eth0", netns=node)
    wait_until(lambda: "192.168.1.101" not in said(kept, "/status"), "it is gone")


def test_a_new_network_of_pods_is_noticed(kept: Kept) -> None:
    node = kept.lab.node.netns
    ip_batch("link add docker0 type bridge", "address add 172.17.0.1/16 dev docker0", "link set docker0 up", netns=node)
    try:
        wait_until(lambda: "172.17.0.0/16" in said(kept, "/status"), "the network is known")
        assert in_place(kept)
    finally:
        ip_batch("link delete docker0", netns=node)
    wait_until(lambda: "172.17.0.0/16" not in said(kept, "/status"), "it is gone")


def test_the_vpns_states_are_told(kept: Kept) -> None:
    for state, word in (("blocked", "blocked"), ("off", "absent"), ("connected", "connected")):
        kept.lab.vpn(state)  # type: ignore[arg-type]
        wait_until(lambda word=word: said(kept) == f"node is ready: VPN {word}", word)  # type: ignore[misc]


def test_others_rules_are_no_change(kept: Kept) -> None:
    """kube-proxy writes its own all the time."""
    wait_until(lambda: in_place(kept), "calm")
    runs = kept.watchdog.log().count("repaired")
    for number in range(20):
        kept.lab.node.run(["nft", "add", "table", "ip", f"foreign{number}"])
    for number in range(20):
        kept.lab.node.run(["nft", "delete", "table", "ip", f"foreign{number}"])
    assert works(kept.lab)
    assert kept.watchdog.log().count("repaired") == runs


def test_its_end_changes_nothing(kept: Kept) -> None:
    assert kept.watchdog.end(signal.SIGTERM) < 5
    assert works(kept.lab)
    kept.watchdog.start()
    wait_until(lambda: said(kept) == "node is ready: VPN connected", "its start")


def test_a_refused_network_is_told(kept: Kept) -> None:
    env = {"WG_MODE": "node", "NODE_PODS": "8.8.8.0/24", "HEALTH_PORT": "9998"}
    with Watchdog(kept.lab, env=env, member=kept.lab.node):
        told = wait_until(lambda: fetch(kept.lab.node, "127.0.0.1", "/", port=9998), "an answer")
        assert told.startswith("node is not ready")
        wait_until(lambda: "8.8.8.0/24 is public" in fetch(kept.lab.node, "127.0.0.1", "/", port=9998), "the reason")
    assert in_place(kept)
