"""k8s/network-policy, enforced by kube-router: the second lock holds when the first one is gone."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.containers.manifests import K8S

from .build import BIN
from .capture import Capture
from .cluster import Cluster, wait_until
from .workloads import INJECT, NOISE, container, noise, noisy, pod, tunnelled

NAMESPACE = "locked"


@pytest.fixture(scope="module")
def engine(cluster: Cluster) -> Iterator[Cluster]:
    """kube-router, for policies only."""
    flags = ["--run-firewall=true", "--run-router=false", "--run-service-proxy=false", "--hostname-override=node1"]
    flags += [f"--kubeconfig={cluster.pki('admin.conf')}", "--iptables-sync-period=5s", "--enable-ipv6=true"]
    flags += ["--service-cluster-ip-range=10.43.0.0/16", "--service-cluster-ip-range=fd43::/112", "--health-port=0"]
    cluster.daemon("kube-router", BIN / "kube-router", *flags)
    cluster.namespace(NAMESPACE)
    noise(cluster, NAMESPACE)
    policy = (K8S / "network-policy/network-policy.yaml").read_text()
    policy = policy.replace("namespace: tunnelled", f"namespace: {NAMESPACE}").replace(
        "198.51.100.1/32", "203.0.113.51/32"
    )
    cluster.apply(policy)
    yield cluster
    cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=false")
    cluster.stop("kube-router")


def uplink(cluster: Cluster) -> int:
    """The number of the link to the internet."""
    return int(cluster.node("ip", "-oneline", "link", "show", "inet0").split(":")[0])


def in_clear(cluster: Cluster, capture: Capture) -> list[str]:
    """Packets with a pod's source that left the node for the internet and were not WireGuard to the endpoint.

    Nor the kernel's answer to WireGuard's packets for a socket that went with wg0: it quotes what the endpoint sent.
    """
    to_endpoint = "dst host 203.0.113.51 and (udp port 51820 or icmp[icmptype] == icmp-unreach)"
    wrong = f"(src net 10.42.0.0/24 or src net fd42::/64) and not ({to_endpoint})"
    return cluster.node("tcpdump", "-r", str(capture.file), "-n", f"ifindex {uplink(cluster)} and {wrong}").splitlines()


def test_a_pod_without_a_tunnel_gets_no_way_out(engine: Cluster) -> None:
    """A forgotten label. The control is the same pod in a namespace without the policy."""
    ask = ["curl", "-s", "-m", "3", "http://203.0.113.80/"]
    engine.namespace("unlocked")
    engine.apply(pod("open", "unlocked", container()), pod("forgotten", NAMESPACE, container()))
    engine.wait_ready("unlocked", "open")
    engine.wait_ready(NAMESPACE, "forgotten")

    def source(namespace: str, name: str) -> str:
        return engine.run("kubectl", "exec", name, "--namespace", namespace, "--", *ask).stdout

    assert source("unlocked", "open").startswith("10.42.0."), "the control"
    wait_until(lambda: source(NAMESPACE, "forgotten") == "", "the policy is enforced", 60)
    for namespace, name in (("unlocked", "open"), (NAMESPACE, "forgotten")):
        engine.kubectl("delete", "pod", name, "--namespace", namespace, "--wait=false")


def test_it_holds_when_the_kill_switch_is_gone(engine: Cluster) -> None:
    """The pod's own ruleset flushed, wg0 gone and the watchdog stopped: nothing in clear leaves the node."""
    engine.secret(NAMESPACE, "init-wg", {"wg0.conf": engine.config(10)})
    document = pod("flushed", NAMESPACE, noisy("app"), volumes=[NOISE])
    document["metadata"]["labels"] = INJECT
    engine.apply(tunnelled(engine, document))
    engine.wait_ready(NAMESPACE, "flushed")
    time.sleep(8)  # the engine knows the pod by now
    pid = engine.process("flushed", "init-wg-watchdog")
    with Capture(engine, "policies", also=[uplink(engine)], control=True) as capture:
        engine.node("kill", "-STOP", str(pid))
        try:
            inside = ("nsenter", f"--net=/proc/{pid}/ns/net", "--")
            engine.node(*inside, "nft", "flush", "ruleset")
            engine.node(*inside, "ip", "link", "del", "wg0")
            engine.node(*inside, "ip", "route", "flush", "table", "51820", check=False)
            time.sleep(4)
            assert capture.judged().leaked > 100, "the control: on the pod's link it is seen in clear"
            assert in_clear(engine, capture) == []
        finally:
            engine.node("kill", "-CONT", str(pid), check=False)
            engine.kubectl("delete", "pod", "flushed", "--namespace", NAMESPACE)
