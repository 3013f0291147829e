"""k8s/server as its README says, on a node without WireGuard in its kernel; a pod of ours is its peer.

The node has no provisioner of volumes: a volume of its own disk is there before.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.containers.manifests import K8S

from .capture import Capture
from .cluster import Cluster, commands, wait_until
from .workloads import INJECT, asking, container, pod, tunnelled, typed

SERVER, PEER = "init-wg-server", "server-peer"
POD = f"{SERVER}-0"
URL = f"{SERVER}.{SERVER}.svc.cluster.local"


@pytest.fixture(scope="module")
def user(cluster: Cluster) -> Iterator[list[str]]:
    """The commands of the README, with a Service's name for the server's own."""
    spec = {
        "capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteOncePod"],
        "hostPath": {"path": "/var/lib/init-wg-server", "type": "DirectoryOrCreate"},
        "persistentVolumeReclaimPolicy": "Retain",
    }
    cluster.apply({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": SERVER}, "spec": spec})
    lines = commands((K8S / "README.md").read_text(), "## A server")
    yield [
        line.partition("    #")[0].replace("-k server ", "-k server-userspace ").replace("vpn.example.org", URL)
        for line in lines
    ]
    cluster.kubectl("delete", "namespace", SERVER, PEER, "--ignore-not-found", timeout=180)
    cluster.kubectl("delete", "persistentvolume", SERVER)


def asked(cluster: Cluster, *argv: str) -> str:
    """A command in the server's container."""
    return cluster.kubectl("exec", POD, "--namespace", SERVER, "--", *argv)


def peers(cluster: Cluster) -> list[Any]:
    found: list[Any] = json.loads(asked(cluster, "init-wg", "peer", "list", "--json"))["peers"]
    return found


def seen_as(cluster: Cluster) -> str:
    """The address that the web saw last, of the last two seconds; "" for none."""
    told = cluster.try_kubectl("logs", "peer", "--namespace", PEER, "--container", "app", "--since=2s") or ""
    return (told.split() or [""])[-1]


def address(cluster: Cluster) -> str:
    found = cluster.get("pod", POD, "--namespace", SERVER)
    return str(found["status"].get("podIP", "")) if found else ""


def test_three_commands(cluster: Cluster, user: list[str]) -> None:
    """The second one is what the pod waits for. The code is drawn for a terminal."""
    apply, create, show = user
    for line in (apply, create):
        typed(cluster, line)
    cluster.wait_ready(SERVER, POD)
    shown = cluster.run("script", "--quiet", "--return", "--command", show, "/dev/null")
    assert shown.returncode == 0, shown.stdout
    assert shown.stdout.count("\u2588") > 100
    told = asked(cluster, "init-wg", "peer", "show", "phone")
    assert f"Endpoint = {URL}:51820\n" in told


def test_a_pod_is_its_peer(cluster: Cluster, user: list[str]) -> None:
    """`peer secret` gives it its file; the web sees it come from the server's pod, and nothing of it is in clear."""
    cluster.namespace(PEER)
    cluster.kubectl("apply", "--namespace", PEER, "-f", "-", stdin=asked(cluster, "init-wg", "peer", "secret", "phone"))
    document = pod("peer", PEER, container(command=asking(1)))
    document["metadata"]["labels"] = dict(INJECT)
    with Capture(cluster, "server-peer") as capture:
        capture.lenient = [address(cluster)]  # the server sends in clear what its peers ask for
        domains = ("", f".{PEER}.svc.cluster.local", ".svc.cluster.local", ".cluster.local")
        capture.lookups = [URL + domain for domain in domains]
        cluster.apply(tunnelled(cluster, document))
        cluster.wait_ready(PEER, "peer")
        wait_until(lambda: seen_as(cluster) == address(cluster), "the web sees the server's pod", 40)
        assert {each["name"]: bool(each["latest_handshake"]) for each in peers(cluster)} == {
            "phone": True,
            "laptop": False,
        }
        verdict = capture.judged()
    assert not verdict.leaked, str(verdict)
    assert verdict.allowed["bypass"]  # the tunnel's messages to the Service


def test_a_new_pod_is_the_same_server(cluster: Cluster, user: list[str]) -> None:
    """With another address behind the same Service, and the keys of the volume: the peer comes back by itself."""
    before, key = address(cluster), asked(cluster, "init-wg", "peer", "show", "phone")
    cluster.kubectl("delete", "pod", POD, "--namespace", SERVER)
    wait_until(lambda: address(cluster) not in ("", before), "the pod is made anew", 60)
    cluster.wait_ready(SERVER, POD)
    assert asked(cluster, "init-wg", "peer", "show", "phone") == key
    wait_until(lambda: seen_as(cluster) == address(cluster), "the peer is back", 90)


def test_an_edit_of_the_list_needs_no_restart(cluster: Cluster, user: list[str]) -> None:
    change = {"data": {"PEERS": "laptop,tablet"}}
    started = cluster.get("pod", POD, "--namespace", SERVER)["status"]["startTime"]
    cluster.kubectl("patch", "configmap", SERVER, "--namespace", SERVER, "--patch", json.dumps(change))

    def names() -> set[str]:
        return {each["name"] for each in peers(cluster) if each["active"]}

    wait_until(lambda: names() == {"laptop", "tablet"}, "the list is followed", 90)
    wait_until(lambda: seen_as(cluster) == "", "the peer that left is refused", 30)
    assert cluster.get("pod", POD, "--namespace", SERVER)["status"]["startTime"] == started
