"""Every kind of workload with the component, Services and probes, and replicas that have a key each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.containers.manifests import K8S

from .build import BUSYBOX
from .capture import Capture
from .cluster import CLIENTS, Cluster, is_ready, wait_until
from .workloads import ASK, INJECT, LEAST, asking, container, noise, noisy, pod, tunnelled, workload

NAMESPACE = "workloads"
SAYS = asking(3)


@pytest.fixture(scope="module")
def capture(cluster: Cluster) -> Iterator[Capture]:
    cluster.namespace(NAMESPACE)
    noise(cluster, NAMESPACE)
    for client in range(CLIENTS):
        cluster.secret(NAMESPACE, f"key-{client}", {"wg0.conf": cluster.config(client)})
    with Capture(cluster, "workloads") as capture:
        yield capture
        cluster.kubectl("delete", "namespace", NAMESPACE, timeout=180)
        verdict = capture.judged()
    assert not verdict.leaked, str(verdict)


@pytest.fixture(autouse=True)
def clean(capture: Capture) -> Iterator[None]:
    """Not one packet in clear since the module began."""
    yield
    verdict = capture.judged()
    assert not verdict.leaked, str(verdict)


def test_the_control_an_open_pod_is_seen(cluster: Cluster) -> None:
    volumes = [{"name": "noise", "configMap": {"name": "noise"}}]
    cluster.namespace("workloads-open")
    noise(cluster, "workloads-open")
    with Capture(cluster, "workloads-control", control=True) as seen:
        cluster.apply(pod("open", "workloads-open", noisy("app", "3"), volumes=volumes, restartPolicy="Never"))
        wait_until(lambda: seen.judged().leaked > 100, "leaks are seen", 30)
        found = cluster.get("pod", "open", "--namespace", "workloads-open")
        OPEN.extend(each["ip"] for each in found["status"]["podIPs"])
        cluster.kubectl("delete", "namespace", "workloads-open", "--wait=false")


OPEN: list[str] = []  # the control's addresses, which the module's own capture saw, too


@pytest.fixture(autouse=True)
def leave_the_control_out(capture: Capture) -> None:
    capture.lenient = OPEN


def named(cluster: Cluster, app: str) -> list[Any]:
    return cluster.pods(NAMESPACE, "--selector", f"app={app}")


def said(cluster: Cluster, name: str) -> str:
    return cluster.try_kubectl("logs", name, "--namespace", NAMESPACE, "--container", "app") or ""


@pytest.mark.parametrize(("kind", "key"), [("Deployment", 0), ("StatefulSet", 1), ("DaemonSet", 2), ("ReplicaSet", 3)])
def test_long_lived(cluster: Cluster, kind: str, key: int) -> None:
    name = kind.lower()
    more = {"serviceName": name} if kind == "StatefulSet" else {}
    document = workload(kind, name, NAMESPACE, {"containers": [container(command=SAYS)]}, **more)
    cluster.apply(tunnelled(cluster, document, f"key-{key}"))
    wait_until(lambda: any(map(is_ready, named(cluster, name))), f"{name} is ready", 90)
    (made,) = named(cluster, name)
    wait_until(lambda: "203.0.113.51" in said(cluster, made["metadata"]["name"]), "it asks through the tunnel", 20)
    cluster.kubectl("delete", kind, name, "--namespace", NAMESPACE)


def test_a_bare_pod(cluster: Cluster) -> None:
    document = pod("bare", NAMESPACE, container(command=SAYS))
    document["metadata"]["labels"] = INJECT
    cluster.apply(tunnelled(cluster, document, "key-4"))
    cluster.wait_ready(NAMESPACE, "bare")
    wait_until(lambda: "203.0.113.51" in said(cluster, "bare"), "it asks through the tunnel", 20)
    cluster.kubectl("delete", "pod", "bare", "--namespace", NAMESPACE)


@pytest.mark.parametrize(("kind", "key"), [("Job", 5), ("CronJob", 6)])
def test_completes_with_a_watchdog_beside_it(cluster: Cluster, kind: str, key: int) -> None:
    name = kind.lower()
    spec = {"containers": [container(command=ASK)], "restartPolicy": "Never"}
    cluster.apply(tunnelled(cluster, workload(kind, name, NAMESPACE, spec), f"key-{key}"))
    job = name
    if kind == "CronJob":
        job = "once"
        cluster.kubectl("create", "job", job, f"--from=cronjob/{name}", "--namespace", NAMESPACE)
    cluster.kubectl("wait", "--for=condition=Complete", f"job/{job}", "--namespace", NAMESPACE, "--timeout=90s")
    assert cluster.kubectl("logs", f"job/{job}", "--namespace", NAMESPACE, "-c", "app") == "203.0.113.51"


def test_reached_from_everywhere_and_unready_without_a_tunnel(cluster: Cluster) -> None:
    """A Service, a NodePort, a host port, the kubelet's own probes; and no traffic while the tunnel is in doubt."""
    serve = [
        "sh",
        "-c",
        "trap exit TERM; mkdir -p /tmp/w; echo served >/tmp/w/index.html; httpd -f -p 8080 -h /tmp/w & wait",
    ]
    probe = {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1}
    ports = [{"containerPort": 8080, "hostPort": 18080}]
    app = {
        **container(command=serve, ports=ports, readinessProbe=probe, livenessProbe=probe),
        "image": BUSYBOX,
        "securityContext": LEAST,
    }
    document = pod("server", NAMESPACE, app)
    document["metadata"]["labels"] = {**INJECT, "app": "server"}
    cluster.apply(tunnelled(cluster, document, "key-7"))
    service = {
        "selector": {"app": "server"},
        "type": "NodePort",
        "ports": [{"port": 80, "targetPort": 8080, "nodePort": 30080}],
    }
    cluster.apply(
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "server", "namespace": NAMESPACE}, "spec": service}
    )
    cluster.wait_ready(NAMESPACE, "server")
    found = cluster.get("pod", "server", "--namespace", NAMESPACE)
    address = cluster.get("service", "server", "--namespace", NAMESPACE)["spec"]["clusterIP"]
    client = pod("client", NAMESPACE, container())
    cluster.apply(tunnelled(cluster, {**client, "metadata": {**client["metadata"], "labels": INJECT}}, "key-8"))
    cluster.wait_ready(NAMESPACE, "client")

    node = {
        "the pod": f"http://{found['status']['podIP']}:8080/",
        "the Service": f"http://{address}/",
        "the NodePort": "http://192.168.7.1:30080/",
        "the host port": "http://192.168.7.1:18080/",
    }
    for what, url in node.items():
        wait_until(lambda url=url: ask_node(cluster, url) == "served\n", f"from the node: {what}", 15)  # type: ignore[misc]
    wait_until(lambda: ask_web(cluster, "http://203.0.113.1:30080/") == "served\n", "from outside: the NodePort", 15)
    for url in (node["the pod"], node["the Service"]):
        inside = ("exec", "client", "--namespace", NAMESPACE, "-c", "app", "--", "curl", "-s", "-m", "3", url)
        wait_until(lambda inside=inside: cluster.try_kubectl(*inside) == "served\n", f"from a pod: {url}", 15)  # type: ignore[misc]

    cluster.silence("51")
    try:
        wait_until(lambda: not cluster.ready(NAMESPACE, "server"), "not ready while the provider is silent", 45)
        slices = ("endpointslices", "--namespace", NAMESPACE, "--selector", "kubernetes.io/service-name=server")

        def serving() -> list[bool]:
            items = cluster.get(*slices)["items"]
            return [end["conditions"]["ready"] for each in items for end in each.get("endpoints") or []]

        wait_until(lambda: not any(serving()), "out of the Service", 15)
    finally:
        cluster.unsilence("51")
    cluster.wait_ready(NAMESPACE, "server", 60)
    for name in ("server", "client"):
        cluster.kubectl("delete", "pod", name, "--namespace", NAMESPACE, "--wait=false")


def ask_node(cluster: Cluster, url: str) -> str:
    return cluster.node("curl", "--silent", "--max-time", "3", url, check=False)


def ask_web(cluster: Cluster, url: str) -> str:
    return cluster.node("ip", "netns", "exec", "web", "curl", "--silent", "--max-time", "3", url, check=False)


def test_replicas_with_a_key_each(cluster: Cluster, tmp_path: Path) -> None:
    """k8s/example-replicas: three, then five of which two have no file, then two; each with two servers of its own."""
    files = {
        f"pool-{replica}.{letter}.conf": cluster.config(9 + replica, provider)
        for replica in range(3)
        for letter, provider in (("a", "51"), ("b", "52"))
    }
    cluster.secret(NAMESPACE, "init-wg-pool", files)
    overlay = tmp_path / "k8s"
    cluster.run("cp", "-a", str(K8S), str(overlay))
    file = overlay / "example-replicas/kustomization.yaml"
    text = file.read_text().replace("# - ../component-userspace", "- ../component-userspace")
    file.write_text(text.replace("namespace: tunnelled", f"namespace: {NAMESPACE}"))
    cluster.kubectl("apply", "-k", str(overlay / "example-replicas"))

    def pool() -> dict[str, Any]:
        return {each["metadata"]["name"]: each for each in named(cluster, "pool")}

    def ready() -> set[str]:
        return {name for name, each in pool().items() if is_ready(each)}

    def source(name: str) -> str:
        ask = (
            "exec",
            name,
            "--namespace",
            NAMESPACE,
            "-c",
            "app",
            "--",
            "curl",
            "-s",
            "-m",
            "2",
            "http://203.0.113.80/",
        )
        return cluster.run("kubectl", *ask).stdout

    three = {"pool-0", "pool-1", "pool-2"}
    wait_until(lambda: ready() == three, "three are ready", 120)
    assert {source(name) for name in three} == {"203.0.113.51"}
    cluster.silence("51")
    try:
        wait_until(
            lambda: {source(name) for name in three} == {"203.0.113.52"}, "each leaves for its second server", 60
        )
    finally:
        cluster.unsilence("51")
    scale = ("scale", "statefulset/pool", "--namespace", NAMESPACE)
    cluster.kubectl(*scale, "--replicas=5")

    def without_file() -> set[str]:
        told = set()
        for name, each in pool().items():
            for status in each["status"].get("initContainerStatuses", []):
                state = {**status.get("lastState", {}), **status["state"]}.get("terminated", {})
                if state.get(
                    "exitCode"
                ) == 2 and f"{name}.*.conf: no file matches: there is pool-0.a.conf" in json.dumps(state):
                    told.add(name)
        return told

    wait_until(lambda: without_file() == {"pool-3", "pool-4"}, "two say that they have no file", 90)
    wait_until(lambda: ready() == three, "the others go on", 60)
    cluster.kubectl(*scale, "--replicas=2")
    wait_until(lambda: set(pool()) == {"pool-0", "pool-1"}, "two are left", 60)
    wait_until(lambda: ready() == {"pool-0", "pool-1"}, "and ready", 30)
    cluster.kubectl("delete", "statefulset", "pool", "--namespace", NAMESPACE)
