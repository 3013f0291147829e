"""k8s/node as its README says: with a VPN that blocks everything, and the real kube-proxy, the cluster works.

The VPN's rules are those of the lab of `init-wg node`, written after the app's source. This node has no tunnel of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.containers.manifests import K8S
from tests.lab.machine import mullvad

from .build import BUSYBOX
from .cluster import NODE, WEB, Cluster, commands, restarts, wait_until
from .workloads import LEAST, container, pod, typed

OURS, SPACE = "init-wg-node", "beside-a-vpn"
NODE_PORT, KUBELET = 30082, 10250
TABLES = "".join(f"table inet {name}\ndelete table inet {name}\n" for name in ("mullvad", "init_wg_node"))


@pytest.fixture(scope="module")
def user(cluster: Cluster) -> Iterator[list[str]]:
    """The commands of the README; two pods and a Service are there."""
    cluster.namespace(SPACE)
    serve = "trap exit TERM; mkdir -p /tmp/w; echo served >/tmp/w/index.html; httpd -f -p 8080 -h /tmp/w & wait"
    app = {**container(command=["sh", "-c", serve]), "image": BUSYBOX, "securityContext": LEAST}
    server = pod("server", SPACE, app)
    server["metadata"]["labels"] = {"app": "server"}
    ports = [{"port": 80, "targetPort": 8080, "nodePort": NODE_PORT}]
    service = {"selector": {"app": "server"}, "type": "NodePort", "ports": ports}
    metadata = {"name": "server", "namespace": SPACE}
    cluster.apply(server, pod("client", SPACE, container()))
    cluster.apply({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": service})
    for name in ("server", "client"):
        cluster.wait_ready(SPACE, name)
    yield commands((K8S / "README.md").read_text(), "## Beside the Mullvad app")
    cluster.kubectl("delete", "namespace", OURS, SPACE, "--ignore-not-found", timeout=180)
    cluster.node("nft", "-f", "-", stdin=TABLES)


def from_pod(cluster: Cluster, url: str) -> bool:
    """Does the client's pod get an answer from there?"""
    argv = ("exec", "client", "--namespace", SPACE, "--", "curl", "--silent", "--max-time", "2", url)
    return cluster.try_kubectl(*argv) is not None


def from_outside(cluster: Cluster, port: int) -> bool:
    """Does the internet reach this port of the node?"""
    ask = f"import socket; socket.create_connection(('203.0.113.1', {port}), 2); print('open')"
    return cluster.node("ip", "netns", "exec", "web", "python3", "-I", "-c", ask, check=False) == "open\n"


def service(cluster: Cluster) -> str:
    return f"http://{cluster.get('service', 'server', '--namespace', SPACE)['spec']['clusterIP']}/"


def vpn(cluster: Cluster) -> None:
    """It has lost its server, and lets nothing pass."""
    cluster.node("nft", "-f", "-", stdin=mullvad("blocked", lan=False))


def table(cluster: Cluster) -> bool:
    return "table inet init_wg_node" in cluster.node("nft", "list", "tables")


def test_without_it_the_cluster_is_dead(cluster: Cluster, user: list[str]) -> None:
    """The control: all of it works before, the app's rules alone stop it."""
    url = service(cluster)
    wait_until(lambda: from_pod(cluster, url), "a Service, without a VPN", 15)
    assert from_pod(cluster, f"http://{WEB}/")
    for port in (NODE_PORT, KUBELET):
        wait_until(lambda port=port: from_outside(cluster, port), f"port {port}, without a VPN", 15)  # type: ignore[misc]
    vpn(cluster)
    assert not from_pod(cluster, url)
    assert not from_outside(cluster, NODE_PORT)


def test_the_commands(cluster: Cluster, user: list[str]) -> None:
    """The cluster works, named ports are open, and nothing else is, neither in nor out."""
    for line in user:
        typed(cluster, line)
    wait_until(lambda: from_pod(cluster, service(cluster)), "a Service beside the VPN", 15)
    assert from_outside(cluster, NODE_PORT)
    assert not from_outside(cluster, KUBELET)
    assert not from_pod(cluster, f"http://{WEB}/")
    assert cluster.node("curl", "--silent", "http://127.0.0.1:9999/").strip() == "node is ready: VPN blocked"
    assert not cluster.node("curl", "--silent", "--max-time", "2", f"http://{NODE}:9999/", check=False)
    checked = cluster.kubectl("exec", "daemonset/init-wg-node", "--namespace", OURS, "--", "init-wg", "node", "check")
    assert checked.endswith("everything is as it should be\n")


def test_it_heals(cluster: Cluster, user: list[str]) -> None:
    """Its own table; and the container: the table stays while it is gone."""
    cluster.node("nft", "delete", "table", "inet", "init_wg_node")
    wait_until(lambda: table(cluster), "the table is there again", 10)
    assert from_pod(cluster, service(cluster))
    (ours,) = cluster.pods(OURS)
    name = ours["metadata"]["name"]
    cluster.kill(name, "node")
    assert from_pod(cluster, service(cluster))
    wait_until(lambda: sum(map(restarts, cluster.pods(OURS), ["node"])) == 1, "the kubelet starts it again", 30)
    cluster.wait_ready(OURS, name)


def test_deleted_it_leaves_the_table(cluster: Cluster, user: list[str]) -> None:
    """As the README says; what it says takes it away."""
    cluster.kubectl("delete", "-k", str(K8S / "node"), timeout=120)
    assert table(cluster)
    assert from_pod(cluster, service(cluster))
    (command,) = re.findall("`(nft delete table [^`]+)`", (K8S / "README.md").read_text())
    cluster.node(*command.split())
    assert not from_pod(cluster, service(cluster))
