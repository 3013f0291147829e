"""From 0.1.0 to the next image: the watchdog alone, in place, and a whole workload by its rollout. Nothing leaks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.needs import give_up

from .build import OLDER, OLDER_COMMIT, PRODUCT, image_file
from .capture import Capture
from .cluster import Cluster, is_ready, restarts, wait_until
from .workloads import INJECT, NOISE, noise, noisy, pod, tunnelled, workload

NAMESPACE = "upgrade"
ASK = ("-c", "app", "--", "curl", "-s", "-m", "2", "http://203.0.113.80/")


@pytest.fixture(scope="module")
def capture(cluster: Cluster) -> Iterator[Capture]:
    if not image_file(OLDER).exists():
        give_up(f"the history has no {OLDER_COMMIT[:12]}: a shallow clone")
    cluster.namespace(NAMESPACE)
    noise(cluster, NAMESPACE)
    for number, name in enumerate(("one", "two")):
        cluster.secret(NAMESPACE, name, {"wg0.conf": cluster.config(8 + number)})
    with Capture(cluster, "upgrade") as capture:
        yield capture
        cluster.kubectl("delete", "namespace", NAMESPACE, timeout=180)
        verdict = capture.judged()
    assert not verdict.leaked, str(verdict)


@pytest.fixture(autouse=True)
def clean(capture: Capture) -> Iterator[None]:
    yield
    verdict = capture.judged()
    assert not verdict.leaked, str(verdict)


def older(cluster: Cluster, document: dict[str, Any], secret: str) -> str:
    text = tunnelled(cluster, document, secret)
    assert PRODUCT in text
    return text.replace(PRODUCT, OLDER)


def image(made: Any, container: str) -> str:
    """Of a running container; "" while it does not run."""
    for status in made["status"].get("initContainerStatuses", []):
        if status["name"] == container and "running" in status["state"]:
            return str(status["image"])
    return ""


def ruleset(cluster: Cluster, name: str) -> str:
    """What the pod's kernel has, without counters."""
    pid = wait_until(lambda: cluster.process(name, "app"), f"{name} runs", 30)
    return cluster.node("nsenter", f"--net=/proc/{pid}/ns/net", "--", "nft", "--stateless", "list", "ruleset")


def test_the_control_an_open_pod_is_seen(cluster: Cluster, capture: Capture) -> None:
    with Capture(cluster, "upgrade-control", control=True) as seen:
        cluster.apply(pod("open", NAMESPACE, noisy("app", "3"), volumes=[NOISE], restartPolicy="Never"))
        wait_until(lambda: seen.judged().leaked > 100, "leaks are seen", 30)
        found = cluster.get("pod", "open", "--namespace", NAMESPACE)
        capture.lenient = [each["ip"] for each in found["status"]["podIPs"]]
        cluster.kubectl("delete", "pod", "open", "--namespace", NAMESPACE)


def test_the_watchdog_alone_in_a_pod_that_goes_on(cluster: Cluster) -> None:
    """The new watchdog finds the older ruleset, and replaces it in place; the application is not restarted."""
    document = pod("kept", NAMESPACE, noisy("app"), volumes=[NOISE])
    document["metadata"]["labels"] = INJECT
    cluster.apply(older(cluster, document, "one"))
    cluster.wait_ready(NAMESPACE, "kept")
    before = ruleset(cluster, "kept")
    assert "table inet init_wg" in before
    assert image(cluster.get("pod", "kept", "--namespace", NAMESPACE), "init-wg-watchdog") == OLDER
    cluster.kubectl("set", "image", "pod/kept", f"init-wg-watchdog={PRODUCT}", "--namespace", NAMESPACE)

    def replaced() -> bool:
        made = cluster.get("pod", "kept", "--namespace", NAMESPACE)
        return image(made, "init-wg-watchdog") == PRODUCT and is_ready(made)

    wait_until(replaced, "the new watchdog keeps the pod", 90)
    check = ("exec", "kept", "--namespace", NAMESPACE, "-c", "init-wg-watchdog", "--", "init-wg", "check")
    wait_until(lambda: cluster.try_kubectl(*check) is not None, "everything is as the new one wants it", 30)
    assert ruleset(cluster, "kept") != before
    source = ("exec", "kept", "--namespace", NAMESPACE, *ASK)
    wait_until(lambda: cluster.try_kubectl(*source) == "203.0.113.51", "it asks through the tunnel", 30)
    assert restarts(cluster.get("pod", "kept", "--namespace", NAMESPACE), "app") == 0
    cluster.kubectl("delete", "pod", "kept", "--namespace", NAMESPACE)


def test_a_rollout(cluster: Cluster) -> None:
    """As a Deployment is upgraded: a new pod in place of the old one, which had the key."""
    spec = {"containers": [noisy("app")], "volumes": [NOISE]}
    document = workload("Deployment", "rolled", NAMESPACE, spec, strategy={"type": "Recreate"})
    cluster.apply(older(cluster, document, "two"))
    status = ("rollout", "status", "deployment/rolled", "--namespace", NAMESPACE, "--timeout=90s")
    cluster.kubectl(*status)
    time.sleep(1)  # noise through the older tunnel
    new = [f"{name}={PRODUCT}" for name in ("init-wg", "init-wg-watchdog")]
    cluster.kubectl("set", "image", "deployment/rolled", *new, "--namespace", NAMESPACE)
    cluster.kubectl(*status)
    made = [each for each in cluster.pods(NAMESPACE, "--selector", "app=rolled") if is_ready(each)]
    assert [image(each, "init-wg-watchdog") for each in made] == [PRODUCT]
    source = ("exec", "deployment/rolled", "--namespace", NAMESPACE, *ASK)
    wait_until(lambda: cluster.try_kubectl(*source) == "203.0.113.51", "it asks through the tunnel", 30)
