"""k8s/pod.yaml, played by podman on the node of a lab: real containers, a real provider, a judge on the node's side."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.containers import manifests, podman
from tests.containers.engine import IMAGE, Engine
from tests.containers.podman import PYTHON, PodJudge, Podman, for_podman
from tests.lab import lab as labs
from tests.lab.lab import CLUSTER_DNS, PUBLIC_DNS, Lab, wait_until
from tests.lab.needs import demand

SERVICE_ADDRESS = "10.43.0.80"
INIT, WATCHDOG, APP = (f"tunnelled-{name}" for name in ("init-wg", "init-wg-watchdog", "app"))

# The application: asks the web host by both families, and resolvers in and beside the tunnel, without a pause.
_TRAFFIC = """
import socket, sys, time
def ask(family, address):
    with socket.create_connection((address, 80), 0.5) as asker:
        asker.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
        answer = b"".join(iter(lambda: asker.recv(4096), b"")).decode()
    print(family, answer.strip().rpartition("\\n")[2].strip(), flush=True)
while True:
    for family, address in ((4, WEB4), (6, WEB6)):
        try:
            ask(family, address)
        except OSError as error:
            print(family, "nothing", error, flush=True)
    for resolver in RESOLVERS:
        with socket.socket(socket.AF_INET6 if ":" in resolver else socket.AF_INET, socket.SOCK_DGRAM) as query:
            try:
                query.settimeout(0.2)
                query.sendto(b"\\0\\1\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\3web\\7example\\0\\0\\1\\0\\1", (resolver, 53))
                print("dns", resolver, len(query.recv(512)), flush=True)
            except OSError as error:
                print("dns", "nothing", error, flush=True)
    time.sleep(0.02)
"""


@pytest.fixture(scope="module")
def podman_is_here() -> None:
    demand("the pod's suite", podman.NEEDS, labs.NEEDS)


@pytest.fixture(scope="module")
def node(podman_is_here: None, engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    """Podman on a lab's node, with the image under test."""
    archive = tmp_path_factory.mktemp("image") / "image.tar"
    engine.docker("save", "--output", str(archive), IMAGE)
    with Lab() as lab, Podman(lab) as runtime:
        runtime.load(archive)
        archive.unlink()
        yield runtime


@pytest.fixture
def judge(node: Podman) -> Iterator[PodJudge]:
    with node.judge() as judge:
        yield judge
        node.remove_pods()


@pytest.fixture(scope="module")
def manifest(node: Podman) -> dict[str, Any]:
    """pod.yaml for this podman, with an application that makes traffic."""
    pod = for_podman(manifests.load("pod-userspace.yaml"))
    web = node.lab.web.addresses
    resolvers = [*PUBLIC_DNS.values(), *CLUSTER_DNS.values()]
    script = f"WEB4, WEB6, RESOLVERS = {web[4]!r}, {web[6]!r}, {resolvers!r}\n{_TRAFFIC}"
    container(pod, "app")["command"] = [PYTHON, "-I", "-c", script]
    return pod


def container(pod: dict[str, Any], name: str) -> dict[str, Any]:
    every = [*pod["spec"]["initContainers"], *pod["spec"]["containers"]]
    return next(each for each in every if each["name"] == name)


def give_config(node: Podman) -> None:
    node.secret("init-wg", {"wg0.conf": node.lab.config_path.read_text()})


def arrivals(node: Podman, family: int) -> list[str]:
    """The addresses from which the application's requests arrived, as the web host told it."""
    lines = node.podman("logs", APP).splitlines()
    return [line.split()[1] for line in lines if line.startswith(f"{family} ")]


def tunnelled(node: Podman, since: int = 0) -> Callable[[], bool]:
    """Have requests of both families arrived from the provider, of those after the first `since`?"""
    exits = node.lab.provider.addresses
    return lambda: all(exits[family] in arrivals(node, family)[since:] for family in labs.FAMILIES)


def process_status(node: Podman, name: str) -> dict[str, str]:
    """/proc/1/status of a container's first process."""
    text = node.podman("exec", name, PYTHON, "-I", "-c", "print(open('/proc/1/status').read())")
    return {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}


def test_without_init_wg_the_judge_sees_leaks(node: Podman, judge: PodJudge, manifest: dict[str, Any]) -> None:
    """The positive control: the same application in the same pod, without our containers."""
    open_pod = copy.deepcopy(manifest)
    open_pod["spec"]["initContainers"] = open_pod["spec"]["volumes"] = []
    open_pod["spec"]["containers"] = [container(manifest, "app")]
    assert node.play(open_pod).returncode == 0
    wait_until(lambda: len(arrivals(node, 4)) > 5 and len(arrivals(node, 6)) > 5, "the application's traffic")
    assert node.lab.provider.addresses[4] not in arrivals(node, 4)
    verdict = judge.verdict()
    assert {leak.family for leak in verdict.leaks} == {4, 6}, verdict
    print(f"control: {verdict.leaked} packets leaked")


def test_the_pod(node: Podman, judge: PodJudge, manifest: dict[str, Any]) -> None:
    """From nothing to a tunnelled application; then the watchdog hangs, is found out, and is restarted alone."""
    give_config(node)
    played = node.play(manifest)
    assert played.returncode == 0, played.stderr + node.run("logs", INIT).stderr
    wait_until(tunnelled(node), "traffic through the tunnel")

    # Whatever resolver is asked, the tunnel's answers.
    elsewhere = {each.name: len(node.lab.queries(each)) for each in (node.lab.web, node.lab.service, node.lab.node)}
    asked = len(node.lab.queries(node.lab.provider))
    wait_until(lambda: len(node.lab.queries(node.lab.provider)) > asked + 4, "queries through the tunnel")
    answered = {line.split()[1] for line in node.podman("logs", APP).splitlines() if line.startswith("dns")}
    assert {*PUBLIC_DNS.values(), *CLUSTER_DNS.values()} <= answered
    for each in (node.lab.web, node.lab.service, node.lab.node):
        assert len(node.lab.queries(each)) == elsewhere[each.name], f"{each.name}'s resolver was asked"

    # In this order, and the application not before init-wg was done.
    first, app, watchdog = (node.inspect(name) for name in (INIT, APP, WATCHDOG))
    assert first["State"]["ExitCode"] == 0
    assert "wg0 is up" in node.run("logs", INIT).stderr
    assert first["State"]["FinishedAt"] <= min(app["State"]["StartedAt"], watchdog["State"]["StartedAt"])

    # The Secret is there, for our containers only.
    read = "import sys; print(open('/etc/wireguard/wg0.conf').read(), end='')"
    assert node.podman("exec", WATCHDOG, PYTHON, "-I", "-c", read) == node.lab.config_path.read_text().strip()
    assert node.run("exec", APP, PYTHON, "-I", "-c", read).returncode != 0

    # One capability, nothing that could get another one, a filter on system calls, nothing to write to.
    for name, capabilities in ((WATCHDOG, 1 << 12), (APP, 0)):
        status = process_status(node, name)
        assert {int(status[each], 16) for each in ("CapPrm", "CapEff", "CapBnd")} == {capabilities}, name
        assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2"), name
    assert process_status(node, APP)["Uid"].split() == ["65532"] * 4
    for path in ("/x", "/etc/x", "/etc/wireguard/x", "/opt/init-wg/x"):
        write = f"open({path!r}, 'w')"
        if path != "/etc/wireguard/x":  # podman mounts a Secret writable
            assert "Read-only file system" in node.run("exec", WATCHDOG, PYTHON, "-I", "-c", write).stderr, path

    # The probes, as the manifest has them.
    wait_until(lambda: node.run("healthcheck", "run", WATCHDOG).returncode == 0, "the watchdog lives")
    assert node.inspect(WATCHDOG)["Config"]["Healthcheck"]["Test"][1:4] == ["curl", "-f", "http://localhost:9999/livez"]
    wait_until(lambda: "VPN is active" in ask(node, "readyz"), "the watchdog is ready")
    assert judge.verdict().leaked == 0

    # It hangs. A kubelet asks by itself, and acts when failureThreshold is reached; this podman has to be told.
    threshold = container(manifest, "init-wg-watchdog")["livenessProbe"]["failureThreshold"]
    node.podman("kill", "--signal=STOP", WATCHDOG)
    failed = 0
    while failed < threshold:
        assert node.run("healthcheck", "run", WATCHDOG).returncode != 0
        failed += 1
    assert node.inspect(WATCHDOG)["State"]["Health"]["Status"] == "unhealthy"
    seen = min(len(arrivals(node, family)) for family in labs.FAMILIES)
    node.podman("restart", "--time=0", WATCHDOG)
    wait_until(tunnelled(node, since=seen), "traffic through the tunnel again")
    wait_until(lambda: "VPN is active" in ask(node, "readyz"), "the watchdog is ready again")
    assert node.inspect(APP)["State"]["StartedAt"] == app["State"]["StartedAt"], "the application was touched"
    verdict = judge.verdict()
    assert verdict.leaked == 0, verdict
    assert verdict.allowed["wireguard"] > 10

    # The provider falls silent: the pod gets unready, the watchdog stays alive, nothing leaks.
    node.lab.provider.silence()
    try:
        wait_until(lambda: ask(node, "readyz").startswith("error"), "the watchdog notices", 60)
        assert node.run("healthcheck", "run", WATCHDOG).returncode == 0
    finally:
        node.lab.provider.speak()
    wait_until(lambda: "VPN is active" in ask(node, "readyz"), "it notices that, too", 60)
    verdict = judge.verdict()
    assert verdict.leaked == 0, verdict
    for family in labs.FAMILIES:
        assert set(arrivals(node, family)) <= {node.lab.provider.addresses[family], "nothing"}


def ask(node: Podman, page: str) -> str:
    """What a page of the watchdog's endpoint says, asked from the application's container."""
    asked = node.run("exec", APP, "curl", "-f", f"http://127.0.0.1:9999/{page}")
    return asked.stdout if asked.returncode == 0 else f"error {asked.returncode}: {asked.stdout}{asked.stderr}"


def test_names_of_the_cluster(node: Podman, manifest: dict[str, Any]) -> None:
    """DNS_MODE=split, with the resolv.conf that a kubelet writes: the cluster is asked for its own names only."""
    domain, name = "default.svc.cluster.local", "www.example.com"
    searched = [domain, "svc.cluster.local", "cluster.local"]
    own = {f"web.{domain}", *(f"{name}.{each}" for each in searched)}
    pod = copy.deepcopy(manifest)
    pod["spec"]["dnsConfig"] = {
        "nameservers": [CLUSTER_DNS[4]],
        "searches": searched,
        "options": [{"name": "ndots", "value": "5"}],
    }
    for each in ("init-wg", "init-wg-watchdog"):
        container(pod, each)["env"].append({"name": "DNS_MODE", "value": "split"})
    give_config(node)
    lab = node.lab
    web = [lab.web.addresses[family] for family in labs.FAMILIES]
    lab.zone({f"web.{domain}": [SERVICE_ADDRESS], name: web[:1], "*": []})
    with node.judge(lookups=own) as judge:
        asked = {each.name: len(lab.queries(each)) for each in lab.members}
        try:
            played = node.play(pod)
            assert played.returncode == 0, played.stderr + node.run("logs", INIT).stderr
            wait_until(lambda: resolve(node, "web") == SERVICE_ADDRESS, "the cluster's name resolves")
            assert resolve(node, name) == web[0]
            assert resolve(node, "localhost") == "127.0.0.1"
            (status,) = forwarders(node)
            wait_until(lambda: "VPN is active" in ask(node, "readyz"), "the watchdog is ready")
        finally:
            node.remove_pods()
            lab.zone({"*": web})
        verdict = judge.verdict()
        assert verdict.leaked == 0, verdict
        told = {each.name: {line.split()[2] for line in lab.queries(each)[asked[each.name] :]} for each in lab.members}
    assert told["service"] == own
    assert {name, "web.example"} <= told["provider"]
    assert not own & told["provider"]
    assert not told["web"] | told["node"]
    assert (int(status["CapEff"], 16), status["NoNewPrivs"], status["Seccomp"]) == (1 << 12, "1", "2")


def resolve(node: Podman, name: str) -> str:
    """What the C library of the application is told, by way of its resolv.conf."""
    code = f"import socket; print(socket.gethostbyname({name!r}))"
    return node.run("exec", APP, PYTHON, "-I", "-c", code).stdout.strip()


def forwarders(node: Podman) -> list[dict[str, str]]:
    """/proc/PID/status of every dnsmasq beside the watchdog."""
    code = "import glob; print(*(open(each).read() for each in glob.glob('/proc/[0-9]*/status')), sep='\\0')"
    texts = node.podman("exec", WATCHDOG, PYTHON, "-I", "-c", code).split("\0")
    every = [
        {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())} for text in texts
    ]
    return [each for each in every if each["Name"] == "dnsmasq"]


@pytest.mark.parametrize(
    ("break_it", "code", "says"),
    [
        pytest.param("placeholder", 2, "is all zeroes, which is a placeholder", id="the Secret of the example"),
        pytest.param("capability", 3, "the container needs the capability NET_ADMIN", id="without NET_ADMIN"),
        pytest.param("silence", 4, "no handshake with", id="the provider is away"),
    ],
)
def test_a_failure_stops_the_pod(
    node: Podman, judge: PodJudge, manifest: dict[str, Any], break_it: str, code: int, says: str
) -> None:
    """The application never starts, and the last line says why."""
    pod = copy.deepcopy(manifest)
    give_config(node)
    if break_it == "placeholder":
        node.secret("init-wg", manifests.load("secret.yaml")["stringData"])
    elif break_it == "capability":
        del container(pod, "init-wg")["securityContext"]["capabilities"]["add"]
    else:
        container(pod, "init-wg")["env"].append({"name": "HANDSHAKE_TIMEOUT", "value": "1"})
        node.lab.provider.silence()
    try:
        played = node.play(pod)
    finally:
        if break_it == "silence":
            node.lab.provider.speak()
    assert played.returncode != 0
    assert node.inspect(INIT)["State"]["ExitCode"] == code
    assert says in node.run("logs", INIT).stderr.strip().splitlines()[-1]
    for name in (APP, WATCHDOG):
        assert node.inspect(name)["State"]["StartedAt"].startswith("0001"), f"{name} was started"
    verdict = judge.verdict()
    assert verdict.leaked == 0, verdict
