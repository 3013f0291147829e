"""One pod's life under noise, judged on the node: start, kills, restarts, a silent provider, changed Secrets, end."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from .capture import Capture
from .cluster import Cluster, is_ready, restarts, wait_until
from .workloads import INJECT, NOISE, noise, noisy, pod, tunnelled

NAMESPACE, POD = "leaks", "noise"


class Noisy:
    """The pod, the capture that is older than it, and what a test may do to them."""

    def __init__(self, cluster: Cluster, capture: Capture) -> None:
        self.cluster = cluster
        self.capture = capture

    def ready(self) -> bool:
        found = self.cluster.get("pod", POD, "--namespace", NAMESPACE)
        return bool(found) and is_ready(found)

    def wait(self, *, ready: bool, timeout: float) -> float:
        """Until the pod is (not) ready; seconds it took."""
        began = time.monotonic()
        wait_until(lambda: self.ready() is ready, f"ready: {ready}", timeout)
        return time.monotonic() - began

    def restarts(self, container: str = "init-wg-watchdog") -> int:
        return restarts(self.cluster.get("pod", POD, "--namespace", NAMESPACE), container)

    def source(self) -> str:
        """The address from which the web is asked; "" when it is not."""
        ask = (
            "exec",
            "--namespace",
            NAMESPACE,
            POD,
            "-c",
            "app",
            "--",
            "curl",
            "-s",
            "-m",
            "2",
            "http://203.0.113.80/",
        )
        return self.cluster.run("kubectl", *ask).stdout

    def arrives_from(self, provider: str, timeout: float) -> float:
        """Until the application's packets come from there; seconds it took, as the application has seen it."""
        began = time.time()

        def moment() -> float | None:
            for line in self.cluster.logs(NAMESPACE, POD, "app", "--tail=200").splitlines():
                when, what, *answer = line.split()
                if what == "udp4" and answer == [f"203.0.113.{provider}"] and float(when) > began:
                    return float(when)
            return None

        return (wait_until(moment, f"packets come from {provider}", timeout) or began) - began


@pytest.fixture(scope="module")
def life(cluster: Cluster) -> Iterator[Noisy]:
    cluster.namespace(NAMESPACE)
    noise(cluster, NAMESPACE)
    cluster.secret(NAMESPACE, "init-wg", {"1.conf": cluster.config(5), "2.conf": cluster.config(5, "52")})
    document = pod(POD, NAMESPACE, noisy("app"), initContainers=[noisy("own", "2")], volumes=[NOISE])
    document["metadata"]["labels"] = INJECT
    with Capture(cluster, "leaks") as capture:
        cluster.apply(tunnelled(cluster, document))
        cluster.wait_ready(NAMESPACE, POD)
        yield Noisy(cluster, capture)
        cluster.kubectl("delete", "pod", POD, "--namespace", NAMESPACE, "--ignore-not-found")
        verdict = capture.judged()
    assert not verdict.leaked, str(verdict)


@pytest.fixture
def healthy(life: Noisy) -> Iterator[Noisy]:
    """Ready and through a tunnel; and after the test, nothing has leaked since the pod was made."""
    life.wait(ready=True, timeout=90)
    yield life
    verdict = life.capture.judged()
    assert not verdict.leaked, str(verdict)
    assert verdict.allowed["wireguard"]


def test_the_control_the_same_pod_without_a_label(cluster: Cluster, life: Noisy) -> None:
    began = time.time()
    cluster.apply(pod("open", NAMESPACE, noisy("app"), volumes=[NOISE]))
    cluster.wait_ready(NAMESPACE, "open")
    address = [each["ip"] for each in cluster.get("pod", "open", "--namespace", NAMESPACE)["status"]["podIPs"]]
    wait_until(lambda: life.capture.judged(since=began).leaked > 100, "its leaks are seen", 20)
    cluster.kubectl("delete", "pod", "open", "--namespace", NAMESPACE)
    # From here on its packets are not judged: the pod's own are.
    life.capture.lenient = address


def test_from_the_first_packet_on(healthy: Noisy) -> None:
    """Before this test the pod has started: the links, our containers, its own init container, the application."""
    assert healthy.source() in ("203.0.113.51", "203.0.113.52")
    status = healthy.cluster.kubectl(
        "exec", "--namespace", NAMESPACE, POD, "-c", "init-wg-watchdog", "--", "init-wg", "status"
    )
    assert "wg0" in status


def test_the_watchdog_is_killed(healthy: Noisy) -> None:
    before = healthy.restarts()
    healthy.cluster.kill(POD, "init-wg-watchdog")
    wait_until(lambda: healthy.restarts() > before, "the kubelet starts it again", 60)
    healthy.wait(ready=True, timeout=60)
    assert healthy.source().startswith("203.0.113.")


def test_the_node_programs_restart(healthy: Noisy) -> None:
    """kubelet and containerd: pods go on, and probes come back."""
    cluster = healthy.cluster
    cluster.stop("kubelet")
    cluster.start_kubelet()
    cluster.stop("containerd")
    cluster.start_containerd()
    time.sleep(5)
    healthy.wait(ready=True, timeout=90)
    assert healthy.source().startswith("203.0.113.")


def test_the_provider_is_silent(healthy: Noisy) -> None:
    """The next server of the Secret within 20 seconds, and not ready meanwhile."""
    old = healthy.source().rpartition(".")[2]
    other = {"51": "52", "52": "51"}[old]
    healthy.cluster.silence(old)
    try:
        took = healthy.arrives_from(other, 45)
    finally:
        healthy.cluster.unsilence(old)
    assert took <= 20, f"{took:.1f} s"


def test_the_secret_is_changed(healthy: Noisy) -> None:
    """The watchdog sets up what is new without a restart."""
    cluster = healthy.cluster
    before = healthy.restarts()
    cluster.secret(NAMESPACE, "init-wg", {"1.conf": cluster.config(5, "53"), "2.conf": cluster.config(5, "53")})
    healthy.arrives_from("53", 150)
    assert healthy.restarts() == before
    healthy.wait(ready=True, timeout=30)


def test_the_secret_is_broken(healthy: Noisy) -> None:
    """What is wrong is not applied: the tunnel stays, the log says what and where."""
    cluster = healthy.cluster
    cluster.secret(NAMESPACE, "init-wg", {"1.conf": "[Interface]\nPrivateKey = nonsense\n", "2.conf": "nothing\n"})
    log = ("logs", POD, "--namespace", NAMESPACE, "-c", "init-wg-watchdog", "--tail=40")
    told = "the new configuration is not applied"
    wait_until(lambda: told in (cluster.try_kubectl(*log) or ""), "the watchdog refuses it", 150)
    assert healthy.ready()
    assert healthy.source() == "203.0.113.53"
    # Both: whichever of them is in use by now, it stays.
    cluster.secret(NAMESPACE, "init-wg", {"1.conf": cluster.config(5), "2.conf": cluster.config(5)})
    healthy.arrives_from("51", 150)


def test_the_sandbox_is_killed(healthy: Noisy) -> None:
    """A new network: the init containers run again before anything else."""
    before = healthy.restarts("app")
    healthy.cluster.kill(POD, "")
    wait_until(lambda: healthy.restarts("app") > before, "the pod starts again", 120)
    healthy.wait(ready=True, timeout=120)
    assert healthy.source().startswith("203.0.113.")


def test_the_end(life: Noisy) -> None:
    life.cluster.kubectl("delete", "pod", POD, "--namespace", NAMESPACE)
    verdict = life.capture.judged()
    assert not verdict.leaked, str(verdict)
