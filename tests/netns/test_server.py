"""A server in the pod: what its peers reach, what they do not, and what is forwarded while something is wrong."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.lab.lab import CLUSTER_DNS, FAMILIES, HTTP, Family, wait_until
from tests.lab.served import CONFINED, OWN, PROGRAM, ServerLab


@pytest.fixture(scope="module")
def lab() -> Iterator[ServerLab]:
    """A server with two peers that have joined."""
    with ServerLab() as made:
        made.run_server("up")
        for member in (made.roadwarrior, made.lan):
            made.join(member, made.client_file(member.name))
        for member in (made.roadwarrior, made.lan):
            wait_until(lambda member=member: reaches(made, member), f"{member.name} reaches the web")  # type: ignore[misc]
        yield made


def reaches(lab: ServerLab, member: object, family: Family = 4, timeout: float = 2.0) -> bool:
    """Does the web see this peer with the server's address?"""
    seen = lab.request(member, lab.web.addresses[family], HTTP, timeout=timeout)  # type: ignore[arg-type]
    return seen == lab.pod.addresses[family]


def ping(lab: ServerLab, address: str) -> bool:
    return lab.roadwarrior.ok(["ping", "-n", "-c", "1", "-W", "3", address])


def test_a_second_run_changes_nothing(lab: ServerLab) -> None:
    before = lab.register()
    assert lab.run_server("up").stderr == ""
    assert lab.register() == before
    assert "everything is as it should be" in lab.run_server("check").stdout


def test_status_knows_the_peers_by_name_and_no_private_key(lab: ServerLab) -> None:
    told = lab.run_server("status", "--json").stdout
    facts = json.loads(told)
    assert (facts["mode"], facts["up"], facts["sealed"], facts["drift"]) == ("server", True, True, [])
    assert facts["forwarding"] == ["eth0", "wg0"]
    peers = {peer["name"]: peer for peer in facts["peers"]}
    assert list(peers) == ["roadwarrior", "lan"]
    assert peers["lan"]["endpoint"].startswith(f"{lab.lan.addresses[4]}:")
    assert peers["lan"]["latest_handshake"] > time.time() - 180
    text = lab.run_server("status").stdout
    assert "peer:        roadwarrior, 10.13.13.2" in text
    register = lab.register()
    secrets = [register["key"], *(peer[key] for peer in register["peers"].values() for key in ("key", "preshared_key"))]
    assert not [secret for secret in secrets if secret in told or secret in text]


def test_looking_writes_nothing_to_the_volume(lab: ServerLab) -> None:
    """A peer that is new in the list is a difference, and `up` makes its keys."""
    before = lab.register()
    told = lab.run_server("check", env={"PEERS": "roadwarrior,lan,new"}, check=False)
    assert told.returncode == 5
    assert "peer" in told.stdout
    assert not json.loads(lab.run_server("status", "--json", env={"PEERS": "roadwarrior,lan,new"}).stdout)["up"]
    assert lab.register() == before


def test_there_is_no_other_server_to_choose(lab: ServerLab) -> None:
    told = lab.run_server("up", "--server", "other", check=False)
    assert (told.returncode, told.stderr.count("\n")) == (2, 1)
    assert "WG_MODE=server makes it a server itself" in told.stderr


def test_forwarding_is_on_for_two_links_and_no_more(lab: ServerLab) -> None:
    told = lab.pod.run(["sysctl", "-n", *(f"net.ipv4.conf.{name}.forwarding" for name in ("all", "eth0", "wg0"))])
    assert told.stdout.split() == ["0", "1", "1"]


def test_peers_reach_the_web_with_the_servers_address(lab: ServerLab) -> None:
    assert reaches(lab, lab.roadwarrior)
    assert reaches(lab, lab.lan)


@pytest.mark.parametrize(
    ("address", "port"),
    [
        ("10.43.0.80", HTTP),
        ("10.42.1.1", 10250),
        ("169.254.169.254", 80),
        ("192.168.7.1", 53),
        (OWN[4], 9999),
    ],
    ids=["service", "kubelet", "metadata", "node", "health"],
)
def test_where_nobody_named_a_network_peers_are_refused(lab: ServerLab, address: str, port: int) -> None:
    assert lab.refusal(lab.roadwarrior, address, port) == "refused"


def test_a_named_network_is_reached(lab: ServerLab) -> None:
    """The positive control of the one before; and what is not named any more ends at once."""
    lab.run_server("up", env={"ALLOWEDIPS": "0.0.0.0/0,10.43.0.0/16"})
    try:
        assert lab.refusal(lab.roadwarrior, "10.43.0.80", HTTP) == "answered"
        assert lab.refusal(lab.roadwarrior, "10.42.1.1", 10250) == "refused"
    finally:
        lab.run_server("up")
    assert lab.refusal(lab.roadwarrior, "10.43.0.80", HTTP) == "refused"


def test_peers_are_isolated_unless_they_are_not(lab: ServerLab) -> None:
    other = lab.register()["peers"]["lan"]["number"]
    assert not ping(lab, f"10.13.13.{other}")
    lab.run_server("up", env={"PEER_TO_PEER": "true"})
    try:
        assert ping(lab, f"10.13.13.{other}")
    finally:
        lab.run_server("up")


def test_the_server_answers_pings(lab: ServerLab) -> None:
    assert ping(lab, OWN[4])
    assert ping(lab, OWN[6])


def test_ipv6_is_refused_at_once_until_the_kernel_forwards_it(lab: ServerLab) -> None:
    assert lab.refusal(lab.roadwarrior, lab.web.addresses[6], HTTP) == "refused"
    lab.pod.sysctl(ipv6__conf__all__forwarding=1)
    try:
        lab.run_server("up")
        wait_until(lambda: reaches(lab, lab.roadwarrior, 6), "IPv6 is forwarded")
    finally:
        lab.pod.sysctl(ipv6__conf__all__forwarding=0)
        lab.run_server("up")


def test_the_server_itself_reaches_nothing(lab: ServerLab) -> None:
    for address in (lab.web.addresses[4], lab.service.addresses[4], lab.web.addresses[6]):
        assert lab.refusal(lab.pod, address, HTTP) == "refused"


def test_forwarding_that_is_switched_off_is_switched_on_again(lab: ServerLab) -> None:
    lab.pod.sysctl(ipv4__ip_forward=1)
    lab.pod.sysctl(ipv4__ip_forward=0)
    assert not reaches(lab, lab.roadwarrior, timeout=0.5)
    lab.run_server("up")
    assert reaches(lab, lab.roadwarrior)


@pytest.mark.parametrize("flushed", ["table inet init_wg", "table netdev init_wg", "ruleset"])
def test_without_its_rules_nothing_is_forwarded(lab: ServerLab, flushed: str) -> None:
    lab.pod.run(["nft", *(("flush", "ruleset") if flushed == "ruleset" else ("delete", *flushed.split()))])
    gone = flushed != "table netdev init_wg"
    assert reaches(lab, lab.roadwarrior, timeout=0.7) != gone
    for family in FAMILIES:
        seen = lab.request(lab.roadwarrior, lab.web.addresses[family], HTTP, timeout=0.5)
        assert seen in (None, lab.pod.addresses[4])
    lab.run_server("up")
    assert reaches(lab, lab.roadwarrior)


def test_a_peer_that_leaves_the_list_is_refused_and_others_lose_nothing(lab: ServerLab) -> None:
    argv = ["ping", "-n", "-q", "-i", "0.05", "-c", "60", lab.web.addresses[4]]
    pinging = lab.lan.popen(argv, stdout=subprocess.PIPE)
    before = lab.register()["peers"]["roadwarrior"]
    lab.run_server("up", env={"PEERS": "lan"})
    assert not reaches(lab, lab.roadwarrior, timeout=0.7)
    lab.run_server("up", env={"PEERS": "lan,roadwarrior,third"})
    told = pinging.communicate()[0].decode()
    assert " 60 received" in told
    assert lab.register()["peers"]["roadwarrior"] == before
    # It begins a new session when it has heard nothing for 15 s: a new client need not wait for that.
    lab.leave(lab.roadwarrior)
    lab.join(lab.roadwarrior, lab.client_file("roadwarrior"))
    wait_until(lambda: reaches(lab, lab.roadwarrior), "the peer is back")


def test_names_are_answered_by_the_pods_resolvers(lab: ServerLab) -> None:
    forwarder = lab.pod.popen([*CONFINED, *PROGRAM, "names"], env=lab.server_env)
    try:
        lab.zone({"db.default.svc.cluster.local": ["10.43.0.80"]})
        query = ["python3", "-c", QUERY, OWN[4]]
        wait_until(lambda: lab.roadwarrior.run(query, check=False).stdout == "10.43.0.80\n", "the name is answered")
        assert lab.queries(lab.service)[-1].split()[0] == CLUSTER_DNS[4]
    finally:
        forwarder.terminate()
        forwarder.wait()


QUERY = """
import socket, struct, sys
name = b"".join(bytes([len(label)]) + label.encode() for label in "db.default.svc.cluster.local".split("."))
asker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
asker.settimeout(1)
asker.sendto(struct.pack("!6H", 7, 256, 1, 0, 0, 0) + name + b"\\0\\0\\1\\0\\1", (sys.argv[1], 53))
print(socket.inet_ntoa(asker.recv(512)[-4:]))
"""


def test_a_client_with_a_larger_mtu_reaches_the_web() -> None:
    with ServerLab() as lab:
        lab.run_server("up")
        lab.join(lab.roadwarrior, lab.client_file("roadwarrior"), mtu=1420)
        wait_until(lambda: reaches(lab, lab.roadwarrior), "a client with a larger MTU reaches the web")


def test_the_volume_decides_who_the_server_is() -> None:
    with ServerLab() as lab:
        lab.run_server("up")
        before = lab.register()
        lab.run_server("down")
        lab.run_server("up")
        assert lab.register() == before
        (lab.data / "server.json").rename(lab.data / "elsewhere")
        told = lab.run_server("up", check=False)
        assert told.returncode == 2
        assert "but no server.json" in told.stderr
        assert not (lab.data / "server.json").exists()
