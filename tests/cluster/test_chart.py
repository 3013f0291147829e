"""charts/init-wg by a real Helm, 3 and 4, as its NOTES say: install, test, upgrade, roll back, uninstall.

The application's pods are judged from before the installation until after the end. This node has no WireGuard in its
kernel, so `implementation` is userspace everywhere.
"""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tests.chart.helm import CHART
from tests.helm import build
from tests.lab.needs import demand
from tests.lab.patience import LabError

from .build import CURL
from .capture import Capture
from .cluster import Cluster, is_ready, wait_until
from .workloads import INJECT, NOISE, asking, container, noise, noisy, pod, tunnelled

NAMESPACE, RELEASE = "charted", "demo"
#: The key of these pods among the cluster's clients.
CLIENT = 9


class Helm(NamedTuple):
    """One of the two, in the test's namespace."""

    cluster: Cluster
    major: int

    def __call__(self, *argv: str, values: Any = None) -> str:
        ended = self.run(*argv, values=values)
        assert ended.returncode == 0, f"{argv}: {ended.stderr}\n{ended.stdout}"
        return ended.stdout

    def run(self, *argv: str, values: Any = None) -> subprocess.CompletedProcess[str]:
        more = ("--values", "-") if values is not None else ()
        stdin = json.dumps(values) if values is not None else None
        # What it keeps in somebody's home goes away with the cluster.
        program = ("env", f"HOME={self.cluster.folder}", str(build.program(self.major)))
        return self.cluster.run(*program, *argv, "--namespace", NAMESPACE, *more, stdin=stdin)


@pytest.fixture(scope="module", params=[3, 4], ids=["helm3", "helm4"])
def helm(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[Helm]:
    demand("the chart on the cluster", build.NEEDS)
    cluster.namespace(NAMESPACE)
    noise(cluster, NAMESPACE)
    yield Helm(cluster, request.param)
    cluster.kubectl("delete", "namespace", NAMESPACE, timeout=180)


@pytest.fixture(scope="module")
def capture(helm: Helm) -> Iterator[Capture]:
    with Capture(helm.cluster, f"chart-{helm.major}") as capture:
        yield capture
        verdict = capture.judged()
    assert not verdict.leaked, str(verdict)


def workload(**values: Any) -> dict[str, Any]:
    """An application that asks every second. It is the chart's own default, sooner."""
    own = {"image": CURL, "imagePullPolicy": "Never", "command": asking(1), "terminationGracePeriodSeconds": 2}
    return {"implementation": "userspace", "workload": {"enabled": True, **own, **values}}


def made(cluster: Cluster) -> list[Any]:
    """The release's pods that are not about to end."""
    found = cluster.pods(NAMESPACE, "--selector", f"app.kubernetes.io/instance={RELEASE}")
    return [each for each in found if "deletionTimestamp" not in each["metadata"]]


def asks_by(cluster: Cluster, provider: str) -> bool:
    """Is there one pod, ready, whose application saw this provider's address last?"""
    pods = made(cluster)
    if len(pods) != 1 or not is_ready(pods[0]):
        return False
    return last_said(cluster, pods[0]["metadata"]["name"]) == f"203.0.113.{provider}"


def last_said(cluster: Cluster, name: str) -> str:
    """Which address the web saw last, by the application's own words."""
    said = ("logs", name, "--namespace", NAMESPACE, "--container", "app", "--tail=1")
    return (cluster.try_kubectl(*said) or "").strip()


def by_helm_test(helm: Helm, capture: Capture, release: str, pod: str = "") -> subprocess.CompletedProcess[str]:
    """`helm test`. Its own pod is open: what it asks for is in the cluster."""
    ended = helm.run("test", release, "--logs", "--timeout", "3m")
    asker = helm.cluster.get("pod", pod or f"{release}-test", "--namespace", NAMESPACE)
    capture.lenient = [*capture.lenient, *(each["ip"] for each in asker["status"]["podIPs"])]
    return ended


def test_the_control_an_open_pod_is_seen(helm: Helm, capture: Capture) -> None:
    cluster = helm.cluster
    with Capture(cluster, "chart-control", control=True) as seen:
        cluster.apply(pod("open", NAMESPACE, noisy("app", "3"), volumes=[NOISE], restartPolicy="Never"))
        wait_until(lambda: seen.judged().leaked > 100, "leaks are seen", 30)
        found = cluster.get("pod", "open", "--namespace", NAMESPACE)
        capture.lenient = [*capture.lenient, *(each["ip"] for each in found["status"]["podIPs"])]
        cluster.kubectl("delete", "pod", "open", "--namespace", NAMESPACE)


def test_one_command_after_the_secret(helm: Helm, capture: Capture) -> None:
    """The acceptance of the chart; then `helm test`, as the NOTES say."""
    helm.cluster.secret(NAMESPACE, "init-wg", {"wg0.conf": helm.cluster.config(CLIENT)})
    notes = helm("install", RELEASE, str(CHART), values=workload())
    assert f"helm test {RELEASE} --namespace {NAMESPACE}" in notes
    wait_until(lambda: asks_by(helm.cluster, "51"), "it asks through the tunnel", 90)
    assert "VPN is active" in by_helm_test(helm, capture, RELEASE).stdout


def test_an_upgrade_and_back(helm: Helm, capture: Capture) -> None:
    """To another server's Secret and another setting: a new pod, never two at once. Then the first revision again."""
    cluster = helm.cluster
    cluster.secret(NAMESPACE, "another", {"wg0.conf": cluster.config(CLIENT, "52")})
    (before,) = made(cluster)
    values = {**workload(), "config": {"secretName": "another"}, "env": {"LOG_LEVEL": "debug"}}
    helm("upgrade", RELEASE, str(CHART), values=values)
    wait_until(lambda: asks_by(cluster, "52"), "it asks through the other server", 90)
    (after,) = made(cluster)
    assert after["metadata"]["name"] != before["metadata"]["name"]
    helm("rollback", RELEASE, "1")
    wait_until(lambda: asks_by(cluster, "51"), "it asks through the first one", 90)
    assert "VPN is active" in by_helm_test(helm, capture, RELEASE).stdout


def test_wrong_values_change_nothing(helm: Helm, capture: Capture) -> None:
    (before,) = made(helm.cluster)
    ended = helm.run("upgrade", RELEASE, str(CHART), values={"env": {"DNSMODE": "split"}})
    assert ended.returncode != 0
    assert "additional properties 'DNSMODE' not allowed" in ended.stderr
    (after,) = made(helm.cluster)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]


def test_helm_test_tells_why_it_is_not_active(helm: Helm, capture: Capture) -> None:
    """The control of `helm test`: without its provider the workload fails it, in the watchdog's words."""
    helm.cluster.silence("51")
    try:
        wait_until(lambda: not is_ready(made(helm.cluster)[0]), "the tunnel is in doubt", 90)
        ended = by_helm_test(helm, capture, RELEASE)
        assert ended.returncode != 0
        assert "VPN is not active" in ended.stdout + ended.stderr
    finally:
        helm.cluster.unsilence("51")
    wait_until(lambda: asks_by(helm.cluster, "51"), "it is back by itself", 120)


def test_uninstalled_nothing_is_left(helm: Helm, capture: Capture) -> None:
    """But the pod of `helm test`, whose words may be wanted."""
    helm("uninstall", RELEASE, "--wait")
    selector = ("--selector", f"app.kubernetes.io/instance={RELEASE}")
    wait_until(lambda: not helm.cluster.pods(NAMESPACE, *selector), "its pods have ended", 60)
    left = helm.cluster.kubectl("get", "all,networkpolicy", "--namespace", NAMESPACE, "--output", "name").split()
    assert {each for each in left if RELEASE in each} <= {f"pod/{RELEASE}-test"}


def test_injection(helm: Helm, capture: Capture) -> None:
    """Installed, a label is enough; uninstalled, pods with the label are refused and not open; and the way out."""
    cluster = helm.cluster
    document = pod("labelled", NAMESPACE, container(command=asking(1)))
    document["metadata"]["labels"] = INJECT
    ask = ("create", "--dry-run=server", "--output", "json", "-f", "-")

    def injected() -> str:
        """The names of the init containers that are added; why the pod is refused."""
        ended = cluster.run("kubectl", *ask, stdin=json.dumps(document))
        if ended.returncode:
            return f"refused: {ended.stderr}"
        return " ".join(each["name"] for each in json.loads(ended.stdout)["spec"].get("initContainers", []))

    def becomes(answer: str) -> None:
        """The API server learns of policies, bindings and parameters one by one."""
        try:
            wait_until(lambda: injected().startswith(answer) and (answer or not injected()), answer or "nothing", 60)
        except LabError:
            pytest.fail(f"{answer or 'nothing'}: {injected()}")

    assert injected() == "", "the control"
    values = {"implementation": "userspace", "injection": {"enabled": True}}
    notes = helm("install", "inject", str(CHART), values=values)
    try:
        becomes("init-wg init-wg-watchdog")
        cluster.apply(document)
        cluster.wait_ready(NAMESPACE, "labelled")
        wait_until(lambda: last_said(cluster, "labelled") == "203.0.113.51", "it asks through the tunnel", 30)
        cluster.kubectl("delete", "pod", "labelled", "--namespace", NAMESPACE)
        helm("upgrade", "inject", str(CHART), values={"injection": {"enabled": True}})
        helm("rollback", "inject", "1")
        becomes("init-wg init-wg-watchdog")
    finally:
        helm("uninstall", "inject")
        (way_out,) = [line for line in map(str.strip, notes.splitlines()) if line.startswith("kubectl delete valid")]
        becomes("refused: ")  # and not open
        cluster.kubectl(*way_out.split()[1:])
        becomes("")
        # An API server that has lost its last policy of a kind finds no parameters for a new one (kubernetes#130887).
        cluster.stop("apiserver", signal.SIGKILL)  # it would wait a minute for those who watch
        cluster.start_apiserver()


@pytest.fixture(scope="module")
def volume(helm: Helm) -> Iterator[None]:
    """This node has no provisioner."""
    name = f"chart-{helm.major}"
    spec = {
        "capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteOncePod"],
        "hostPath": {"path": f"/var/lib/{name}", "type": "DirectoryOrCreate"},
        "persistentVolumeReclaimPolicy": "Retain",
    }
    helm.cluster.apply({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec})
    yield
    helm.cluster.kubectl("delete", "persistentvolume", name, "--wait=false")


def test_a_server(helm: Helm, capture: Capture, volume: None) -> None:
    """Its peers come and go without a restart; its keys outlive the release; a pod of ours is a peer."""
    cluster = helm.cluster
    url = f"vpn-server.{NAMESPACE}.svc.cluster.local"

    def values(*peers: str) -> Any:
        serves = {"enabled": True, "serverURL": url, "peers": list(peers)}
        return {"implementation": "userspace", "server": serves}

    def asked(*argv: str) -> str:
        return cluster.kubectl("exec", "vpn-server-0", "--namespace", NAMESPACE, "--", "init-wg", "peer", *argv)

    def active() -> set[str]:
        return {each["name"] for each in json.loads(asked("list", "--json"))["peers"] if each["active"]}

    def serving() -> Any:
        return cluster.get("pod", "vpn-server-0", "--namespace", NAMESPACE)

    def uid() -> str:
        return str(serving()["metadata"]["uid"])

    def address() -> list[str]:
        return [each["ip"] for each in serving()["status"]["podIPs"]]

    notes = helm("install", "vpn", str(CHART), values=values("phone"))
    assert f"kubectl --namespace {NAMESPACE} exec -it vpn-server-0 -- init-wg peer show phone --qr" in notes
    cluster.wait_ready(NAMESPACE, "vpn-server-0")
    capture.lenient = [*capture.lenient, *address()]  # in clear it sends what its peers ask for
    assert "server is ready: 0 of 1 peers seen" in by_helm_test(helm, capture, "vpn", "vpn-server-test").stdout
    file, started = asked("show", "phone"), uid()
    helm("upgrade", "vpn", str(CHART), values=values("phone", "tablet"))
    wait_until(lambda: active() == {"phone", "tablet"}, "the new list", 120)
    helm("rollback", "vpn", "1")
    wait_until(lambda: active() == {"phone"}, "the old list", 120)
    assert uid() == started
    cluster.kubectl("apply", "--namespace", NAMESPACE, "-f", "-", stdin=asked("secret", "phone"))
    document = pod("peer", NAMESPACE, container(command=asking(1)))
    document["metadata"]["labels"] = INJECT
    domains = ("", f".{NAMESPACE}.svc.cluster.local", ".svc.cluster.local", ".cluster.local")
    capture.lookups = [url + domain for domain in domains]
    cluster.apply(tunnelled(cluster, document))
    cluster.wait_ready(NAMESPACE, "peer")
    wait_until(lambda: last_said(cluster, "peer") == address()[0], "the web sees the server's pod", 40)
    cluster.kubectl("delete", "pod", "peer", "--namespace", NAMESPACE)
    helm("uninstall", "vpn", "--wait")
    cluster.kubectl("wait", "--for=delete", "pod/vpn-server-0", "--namespace", NAMESPACE, "--timeout=60s")
    helm("install", "vpn", str(CHART), values=values("phone"))
    cluster.wait_ready(NAMESPACE, "vpn-server-0")
    capture.lenient = [*capture.lenient, *address()]
    assert asked("show", "phone") == file
    helm("uninstall", "vpn", "--wait")
