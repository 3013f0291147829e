"""DNS_MODE beside a real CoreDNS: in `split` it answers the names of Services, and the tunnel's resolver all others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .cluster import API, Cluster, wait_until
from .workloads import INJECT, container, pod, tunnelled

NAMESPACE = "names"
SECRET_NAME = "web.example"  # a name that must not be seen outside the tunnel


@pytest.fixture(scope="module", autouse=True)
def namespace(cluster: Cluster) -> Iterator[None]:
    cluster.namespace(NAMESPACE)
    yield
    cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def start(cluster: Cluster, mode: str, client: int) -> str:
    settings = {"name": "init-wg", "namespace": NAMESPACE}
    cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": settings, "data": {"DNS_MODE": mode}})
    cluster.secret(NAMESPACE, mode, {"wg0.conf": cluster.config(client)})
    document = pod(mode, NAMESPACE, container())
    document["metadata"]["labels"] = INJECT
    cluster.apply(tunnelled(cluster, document, mode))
    cluster.wait_ready(NAMESPACE, mode)
    return mode


def look_up(cluster: Cluster, name: str, what: str) -> str:
    """The addresses by the C library; "" when there are none."""
    return cluster.run(
        "kubectl", "exec", name, "--namespace", NAMESPACE, "-c", "app", "--", "getent", "hosts", what
    ).stdout


def asked(cluster: Cluster, resolver: str) -> str:
    return (cluster.folder / f"log/{resolver}.log").read_text(errors="replace")


def test_the_control_without_a_tunnel_the_node_is_asked(cluster: Cluster) -> None:
    cluster.apply(pod("open", NAMESPACE, container()))
    cluster.wait_ready(NAMESPACE, "open")
    wait_until(lambda: API in look_up(cluster, "open", "kubernetes.default.svc.cluster.local"), "CoreDNS answers", 30)
    assert "203.0.113.80" in look_up(cluster, "open", "api.ipify.org")
    assert "api.ipify.org from" in asked(cluster, "node-dns"), "CoreDNS asks on to the node's resolver"
    cluster.kubectl("delete", "pod", "open", "--namespace", NAMESPACE)


def test_split(cluster: Cluster) -> None:
    name = start(cluster, "split", 3)
    wait_until(lambda: API in look_up(cluster, name, "kubernetes.default.svc.cluster.local"), "a Service's name", 20)
    assert API in look_up(cluster, name, "kubernetes.default"), "by the search list, too"
    assert "203.0.113.80" in look_up(cluster, name, SECRET_NAME)
    assert f"{SECRET_NAME} from 10.64." in asked(cluster, "dns-p51"), "the tunnel's resolver is asked"
    assert f"]: query[A] {SECRET_NAME} " not in asked(cluster, "node-dns"), "the node's is not"
    assert f" {SECRET_NAME}. " not in asked(cluster, "coredns"), "nor the cluster's"
    cluster.kubectl("delete", "pod", name, "--namespace", NAMESPACE)


def test_tunnel(cluster: Cluster) -> None:
    """The default: Services' names do not resolve, and all others are answered by the provider."""
    name = start(cluster, "tunnel", 4)
    assert "203.0.113.80" in look_up(cluster, name, SECRET_NAME)
    assert not look_up(cluster, name, "kubernetes.default.svc.cluster.local")
    assert f" {SECRET_NAME}. " not in asked(cluster, "coredns")
    cluster.kubectl("delete", "pod", name, "--namespace", NAMESPACE)
