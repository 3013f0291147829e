"""k8s/README.md as a new user follows it: command by command, on a node without WireGuard in its kernel."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.containers.manifests import K8S

from .capture import Capture
from .cluster import Cluster, commands, wait_until
from .workloads import container, noise, noisy, pod, typed

NAMESPACE = "tunnelled"


@pytest.fixture
def user(cluster: Cluster, tmp_path: Path) -> list[str]:
    """The five-minute path's commands, with a real file for the provider's."""
    file = tmp_path / "provider.conf"
    file.touch(mode=0o600)
    file.write_text(cluster.config(1))
    lines = commands((K8S / "README.md").read_text(), "## In five minutes")
    return [line.replace("/path/to/provider.conf", str(file)) for line in lines]


def test_the_control_an_untunnelled_pod_is_seen(cluster: Cluster) -> None:
    """What is counted below is seen, where nothing of ours is: the same noise, from a pod without a label."""
    cluster.namespace("open")
    noise(cluster, "open")
    with Capture(cluster, "control", control=True) as capture:
        cluster.apply(pod("open", "open", noisy("app"), volumes=[{"name": "noise", "configMap": {"name": "noise"}}]))
        cluster.wait_ready("open", "open")
        wait_until(lambda: capture.judged().leaked > 100, "leaks are seen", 20)
        cluster.kubectl("delete", "pod", "open", "--namespace", "open")
        kinds = set(capture.judged().kinds)
    assert {"noise/4", "noise/6", "other-tcp/4", "other-tcp/6", "dns-node/4", "other-udp/4"} <= kinds


def test_five_minutes(cluster: Cluster, user: list[str]) -> None:
    """The first pod needs WireGuard in the kernel; without, the message names the other file, and that one works."""
    kernel = Path("/sys/module/wireguard").exists()
    apply = next(line for line in user if "pod.yaml" in line)
    with Capture(cluster, "five-minutes") as capture:
        for line in user[: user.index(apply) + 1]:
            typed(cluster, line)
        if not kernel:
            failed = wait_until(lambda: ended(cluster), "the init container says what is missing", 60)
            assert re.search(r"neither kernel WireGuard nor /dev/net/tun is here: .*pod-userspace\.yaml", failed)
            typed(cluster, f"kubectl --namespace {NAMESPACE} delete pod tunnelled")
            typed(cluster, apply.replace("pod.yaml", "pod-userspace.yaml"))
        for line in user[user.index(apply) + 1 :]:
            wait_until(lambda line=line: cluster.run("sh", "-euc", line, cwd=K8S).returncode == 0, line, 60)  # type: ignore[misc]
        assert typed(cluster, user[-1]).split()[-1] == "203.0.113.51", "the provider's address"
        typed(cluster, f"kubectl --namespace {NAMESPACE} delete pod tunnelled")
        verdict = capture.judged()
    assert not verdict.leaked, str(verdict)
    assert verdict.allowed["wireguard"]


def ended(cluster: Cluster) -> str:
    """The last words of the first container, as `kubectl describe` shows them; "" while it runs."""
    found = cluster.get("pod", "tunnelled", "--namespace", NAMESPACE)
    for status in found["status"].get("initContainerStatuses", []):
        for state in ("state", "lastState"):
            if message := status.get(state, {}).get("terminated", {}).get("message"):
                return str(message)
    return ""


def test_the_example(cluster: Cluster, tmp_path: Path) -> None:
    """With the userspace component where its comment says so. Deleting it keeps the Secrets."""
    overlay = tmp_path / "k8s"
    cluster.run("cp", "-a", str(K8S), str(overlay))
    kustomization = overlay / "example/kustomization.yaml"
    kustomization.write_text(
        kustomization.read_text().replace("# - ../component-userspace", "- ../component-userspace")
    )
    cluster.kubectl("apply", "-k", str(overlay / "namespace"))
    for number, secret in enumerate(("init-wg", "init-wg-crawler", "init-wg-report")):
        cluster.secret(NAMESPACE, secret, {"wg0.conf": cluster.config(2 + number)})
    with Capture(cluster, "example") as capture:
        cluster.kubectl("apply", "-k", str(overlay / "example"))
        for what in ("deployment/web", "statefulset/crawler"):
            cluster.kubectl("--namespace", NAMESPACE, "rollout", "status", what, "--timeout=90s")
        cluster.kubectl("--namespace", NAMESPACE, "create", "job", "report", "--from=cronjob/report")
        cluster.kubectl("--namespace", NAMESPACE, "wait", "--for=condition=Complete", "job/report", "--timeout=90s")
        said = cluster.kubectl("--namespace", NAMESPACE, "logs", "job/report", "-c", "app")
        cluster.kubectl("delete", "-k", str(overlay / "example"))
        verdict = capture.judged()
    assert said == "203.0.113.51"
    assert not verdict.leaked, str(verdict)
    assert cluster.get("secret", "init-wg", "--namespace", NAMESPACE)


def test_pod_security(cluster: Cluster) -> None:
    """baseline refuses NET_ADMIN by name, the namespace's labels admit it, and an application may be restricted."""
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "strict"}})
    level = ("label", "namespace", "strict", "--overwrite")
    cluster.kubectl(*level, "pod-security.kubernetes.io/enforce=baseline")
    refused = cluster.run("kubectl", "apply", "--namespace", "strict", "-f", "-", stdin=in_namespace("strict"))
    assert 'violates PodSecurity "baseline:latest"' in refused.stderr
    assert "NET_ADMIN" in refused.stderr
    cluster.kubectl(*level, "pod-security.kubernetes.io/enforce=privileged")
    cluster.kubectl("apply", "--dry-run=server", "-f", "-", stdin=in_namespace("strict"))
    cluster.kubectl(*level, "pod-security.kubernetes.io/enforce=restricted")
    cluster.apply(pod("restricted", "strict", container()))
    cluster.kubectl("delete", "namespace", "strict", "--wait=false")


def in_namespace(name: str) -> str:
    return (K8S / "pod.yaml").read_text().replace("namespace: tunnelled", f"namespace: {name}")
