"""k8s/: what it renders to, that ours come first, and that every Kubernetes we name takes it."""

from __future__ import annotations

import copy
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from init_wg import __version__
from init_wg.config import node_settings, server_settings
from tests.containers import manifests
from tests.containers.manifests import K8S, ROOT, build, load, parse, pod_spec, problems, render
from tests.golden import assert_golden
from tests.lab.needs import demand

GOLDEN = Path(__file__).with_name("golden")
WORKLOADS = GOLDEN / "workloads.yaml"
VARIANTS = {
    "component": ("component",),
    "userspace": ("component", "component-userspace"),
    "before-1.29": ("component", "component-before-1.29"),
    "userspace-before-1.29": ("component", "component-userspace", "component-before-1.29"),
}
# The oldest and the newest that we claim; for the variant with a plain container also the one it ends with.
VERSIONS = {
    "component": ("1.29", "1.37"),
    "userspace": ("1.29", "1.37"),
    "before-1.29": ("1.25", "1.28", "1.37"),
    "userspace-before-1.29": ("1.25", "1.28", "1.37"),
}
EXAMPLES = ("example", "example-replicas")
SERVERS = ("server", "server-userspace")
NODE = "node"
ALONE = (*EXAMPLES, *SERVERS, NODE)
KINDS = {"Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job", "CronJob", "Pod"}
WITH_SHELL = ("example/deployment", "example/statefulset", "example-replicas/statefulset")
INIT, WATCHDOG = "init-wg", "init-wg-watchdog"
INJECT = "init-wg.io/inject"


@pytest.fixture(scope="module", autouse=True)
def tools() -> None:
    demand("the suite of the manifests", manifests.NEEDS)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Every variant applied to every kind of workload, and the example as it is."""
    texts = {}
    for name, components in VARIANTS.items():
        built = render(tmp_path_factory.mktemp(name), *components, resources=WORKLOADS)
        assert built.returncode == 0, built.stderr
        texts[name] = built.stdout
    for name in ALONE:
        built = build(K8S / name)
        assert built.returncode == 0, built.stderr
        texts[name] = built.stdout
    return texts


def names(containers: list[Any]) -> list[str]:
    return [each["name"] for each in containers]


@pytest.mark.parametrize("name", [*VARIANTS, *ALONE])
def test_golden(rendered: dict[str, str], name: str) -> None:
    """WRITE_GOLDEN=1 writes what is there now: then read the difference."""
    assert_golden(rendered[name], GOLDEN / f"{name}.yaml")


@pytest.mark.parametrize("name", VARIANTS)
def test_ours_come_first(rendered: dict[str, str], name: str) -> None:
    before = {each["metadata"]["name"]: each for each in parse(WORKLOADS.read_text())}
    after = {each["metadata"]["name"]: each for each in parse(rendered[name])}
    assert {each["kind"] for each in after.values()} == KINDS
    assert set(before) == set(after)
    for workload, made in after.items():
        original, spec = pod_spec(before[workload]), pod_spec(made)
        if INJECT not in made["metadata"].get("labels", {}):
            assert made == before[workload], f"{workload} has no label and was changed"
            continue
        own = original.get("initContainers", [])
        plain = "before-1.29" in name
        to_the_end = made["kind"] in ("Job", "CronJob")
        ours = [INIT] if plain else [INIT, WATCHDOG]
        beside = [WATCHDOG] if plain and not to_the_end else []
        assert names(spec["initContainers"]) == [*ours, *names(own)], workload
        assert names(spec["containers"]) == [*names(original["containers"]), *beside], workload
        # The application's containers are what they were.
        assert spec["initContainers"][len(ours) :] == own
        assert spec["containers"][: len(original["containers"])] == original["containers"]
        every = [*spec["initContainers"], *spec["containers"]]
        sidecars = [each["name"] for each in every if each.get("restartPolicy")]
        assert sidecars == ([] if plain else [WATCHDOG]), "a native sidecar, where there are any"


def test_one_key_one_pod(rendered: dict[str, str]) -> None:
    """The example's workloads have a Secret each, one replica, and no second one beside it."""
    workloads = [each for each in parse(rendered["example"]) if each["kind"] not in ("Namespace", "ConfigMap")]
    secrets = [volume["secret"]["secretName"] for each in workloads for volume in pod_spec(each)["volumes"][:1]]
    assert len(secrets) == len(set(secrets)) == 3
    assert {each["spec"].get("replicas", 1) for each in workloads} == {1}
    alone = {"Deployment": ("strategy", {"type": "Recreate"}), "CronJob": ("concurrencyPolicy", "Forbid")}
    for each in workloads:
        field, value = alone.get(each["kind"], ("replicas", 1))
        assert each["spec"][field] == value


def test_each_replica_has_its_own_files(rendered: dict[str, str]) -> None:
    """Kubernetes replaces $(POD_NAME) only in what comes after it, in both of our containers."""
    (pool,) = parse(rendered["example-replicas"])
    spec = pod_spec(pool)
    for container in spec["initContainers"]:
        name, config = container["env"]
        assert name == {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
        assert config == {"name": "WG_CONFIG", "value": "/etc/wireguard/$(POD_NAME).*.conf"}
    assert spec["volumes"][0]["secret"] == {"secretName": "init-wg-pool", "defaultMode": 256}
    assert pool["spec"]["replicas"] == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="a process namespace needs root")
def test_the_examples_end_at_once(tmp_path: Path) -> None:
    """As the first process of a container, which the kernel spares every signal that it does not handle.

    A kubelet waits for 30 s before it kills: that long every update would take, with nobody there to answer.
    """
    for program in ("curl", "httpd"):
        (tmp_path / program).write_text("#!/bin/sh\nexec sleep 60\n" if program == "httpd" else "#!/bin/sh\n")
        (tmp_path / program).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def ends(command: list[str]) -> bool:
        with subprocess.Popen(
            ["unshare", "--pid", "--fork", "--kill-child=SIGKILL", "--", *command], env=environment
        ) as unshare:
            try:
                time.sleep(0.5)  # it has begun
                first = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children").read_text().split()[0]
                os.kill(int(first), signal.SIGTERM)
                unshare.wait(2)
            except subprocess.TimeoutExpired:
                return False
            finally:
                unshare.kill()
        return True

    for file in (
        "pod.yaml",
        "example/deployment.yaml",
        "example/statefulset.yaml",
        "example-replicas/statefulset.yaml",
    ):
        (app,) = pod_spec(load(file))["containers"]
        assert ends(app["command"]), file
        *shell, script = app["command"]
        assert not ends([*shell, script.replace("trap exit TERM; ", "")]), "the control"


def test_least_privilege(rendered: dict[str, str]) -> None:
    """Of the whole output: one capability, for our containers only, and nothing of the node's but /dev/net/tun; its
    network for k8s/node alone."""
    for name, text in rendered.items():
        for workload in parse(text):
            if workload["kind"] not in KINDS:
                continue
            spec = pod_spec(workload)
            shared = {"hostNetwork", "hostPID", "hostIPC", "securityContext"} & set(spec)
            assert shared == ({"hostNetwork"} if name == NODE else set())
            paths = {volume["hostPath"]["path"] for volume in spec.get("volumes", []) if "hostPath" in volume}
            assert paths <= {"/dev/net/tun"}
            for container in [*spec.get("initContainers", []), *spec["containers"]]:
                context = container.get("securityContext", {})
                if container["name"] not in (INIT, WATCHDOG, "server", NODE):
                    assert "add" not in context.get("capabilities", {})
                    continue
                assert context == {
                    "runAsUser": 0,
                    "runAsNonRoot": False,
                    "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]},
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "seccompProfile": {"type": "RuntimeDefault"},
                }
                assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"


@pytest.mark.parametrize(
    ("name", "version"), [(name, each) for name, versions in VERSIONS.items() for each in versions]
)
def test_schemas(rendered: dict[str, str], name: str, version: str) -> None:
    assert problems(parse(rendered[name]), version) == []


@pytest.mark.parametrize("version", ["1.29", "1.37"])
def test_schemas_of_everything_else(rendered: dict[str, str], version: str) -> None:
    files = [
        "pod.yaml",
        "pod-userspace.yaml",
        "secret.yaml",
        "namespace/namespace.yaml",
        "network-policy/network-policy.yaml",
    ]
    examples = [document for name in ALONE for document in parse(rendered[name])]
    assert problems([*examples, *map(load, files)], version) == []


def test_schemas_find_mistakes() -> None:
    """The control: a field with a typing mistake, a value of the wrong type, a field that is missing."""
    for path, wrong in (("restartPolcy", "Always"), ("terminationGracePeriodSeconds", "30s"), ("containers", None)):
        pod = copy.deepcopy(load("pod.yaml"))
        pod["spec"][path] = wrong
        assert len(problems([pod], "1.37")) == 1, path


@pytest.mark.parametrize(
    "order", [("component-userspace", "component"), ("component", "component-before-1.29", "component-userspace")]
)
def test_the_wrong_order_fails(tmp_path: Path, order: tuple[str, ...]) -> None:
    """Better no manifest than one whose containers are not what they seem."""
    built = render(tmp_path, *order, resources=WORKLOADS)
    assert built.returncode != 0
    assert "test failed" in built.stderr or "initContainers" in built.stderr


def test_copies_are_equal(rendered: dict[str, str]) -> None:
    """A YAML parser judges `make docs`: the patches are one; complete pods are what the components make; one version
    everywhere."""
    cronjob, workload = load("component/cronjob.yaml"), load("component/workload.yaml")
    assert cronjob["spec"]["jobTemplate"]["spec"] == workload["spec"]
    assert load("component/bare-pod.yaml")["spec"] == workload["spec"]["template"]["spec"]

    for variant, file in (("component", "pod.yaml"), ("userspace", "pod-userspace.yaml")):
        pod = load(file)
        made = next(each for each in parse(rendered[variant]) if each["metadata"]["name"] == "without-init")
        assert pod["spec"]["initContainers"] == pod_spec(made)["initContainers"]
        assert pod["spec"]["volumes"] == pod_spec(made)["volumes"]
        assert pod["spec"]["containers"] == load("pod.yaml")["spec"]["containers"]
        assert pod["metadata"]["labels"] == {INJECT: "true"}

    (image,) = load("component/kustomization.yaml")["images"]
    assert image["newTag"] == __version__
    assert {each["image"] for each in pod["spec"]["initContainers"]} == {f"{image['newName']}:{image['newTag']}"}
    elsewhere = {str(file.relative_to(K8S)) for file in K8S.rglob("*.yaml") if image["newName"] in file.read_text()}
    complete = {"pod.yaml", "pod-userspace.yaml"}
    whole = {"server/kustomization.yaml", "node/kustomization.yaml"}
    for file in whole:
        assert load(file)["images"] == [image]
    alone = {"component/kustomization.yaml", "injection/settings.yaml", *whole}
    assert elsewhere - complete <= alone, "one place each says it"


@pytest.mark.parametrize("name", SERVERS)
def test_the_server(rendered: dict[str, str], name: str) -> None:
    """One pod with the keys of a volume that outlives it, and a Service that shows it its peers' own addresses."""
    documents = {each["kind"]: each for each in parse(rendered[name])}
    assert set(documents) == {"Namespace", "StatefulSet", "Service"}
    assert {each["metadata"].get("namespace") for each in documents.values()} == {None, "init-wg-server"}
    spec = documents["StatefulSet"]["spec"]
    assert spec["replicas"] == 1
    (claim,) = spec["volumeClaimTemplates"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]
    assert spec["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}
    (container,) = spec["template"]["spec"]["containers"]
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    given = {each["name"]: each.get("value") for each in container["env"]}
    defaults = {each.name: each.default for each in server_settings.TABLE}
    assert mounts[claim["metadata"]["name"]] == defaults["SERVER_DATA"]
    assert set(given) - {"WG_MODE", "WG_IMPLEMENTATION"} <= set(defaults)
    assert str(given["PEERS_FILE"]).startswith(mounts["peers"] + "/")
    service = documents["Service"]["spec"]
    assert service["externalTrafficPolicy"] == "Local"
    assert service["selector"] == spec["template"]["metadata"]["labels"]
    assert [(each["port"], each["protocol"]) for each in service["ports"]] == [(int(defaults["SERVERPORT"]), "UDP")]


def test_the_node(rendered: dict[str, str]) -> None:
    """On each machine, in its network, without the cluster's DNS; probed at the loopback, where alone it answers."""
    documents = {each["kind"]: each for each in parse(rendered[NODE])}
    assert set(documents) == {"Namespace", "DaemonSet"}
    spec = pod_spec(documents["DaemonSet"])
    assert (spec["dnsPolicy"], spec["tolerations"]) == ("Default", [{"operator": "Exists"}])
    (container,) = spec["containers"]
    assert "ports" not in container
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["host"] == "127.0.0.1"
    names = {each["name"] for each in container["env"]} - {"WG_MODE"}
    assert names <= {each.name for each in node_settings.TABLE}


def test_deleting_the_example_keeps_the_secrets(rendered: dict[str, str]) -> None:
    """A namespace takes everything in it with it, the keys too, which are hard to come by."""
    assert "Namespace" not in {each["kind"] for each in parse(rendered["example"])}


def test_the_placeholder_is_refused(tmp_path: Path) -> None:
    ((file, text),) = load("secret.yaml")["stringData"].items()
    config = tmp_path / file
    config.touch(mode=0o600)
    config.write_text(text)
    checked = subprocess.run(
        [sys.executable, "-m", "init_wg", "check", str(config)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert checked.returncode == 2
    assert f"{config}:3: PrivateKey is all zeroes, which is a placeholder" in checked.stderr


def test_the_second_lock() -> None:
    """Nothing but the endpoint's UDP and private networks, for every pod of the namespace."""
    policy = load("network-policy/network-policy.yaml")["spec"]
    assert policy["podSelector"] == {}
    assert policy["policyTypes"] == ["Egress"]
    endpoint, cluster = policy["egress"]
    assert [each["ipBlock"]["cidr"].endswith("/32") for each in endpoint["to"]] == [True]
    assert endpoint["ports"] == [{"protocol": "UDP", "port": 51820}]
    assert all(each["ipBlock"]["cidr"].startswith("10.") for each in cluster["to"])


@pytest.mark.parametrize("file", sorted((ROOT / ".github/workflows").glob("*.y*ml")), ids=lambda file: file.name)
def test_workflows(file: Path) -> None:
    """No right that is not named, and no action that somebody could change under us."""
    (workflow,) = parse(file.read_text())
    assert workflow["permissions"] == {}
    for job in workflow["jobs"].values():
        assert "permissions" in job
        assert "timeout-minutes" in job
        for step in job["steps"]:
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", step.get("uses", "x@" + "0" * 40)), "pin it by hash"
            assert "${{ github.event" not in step.get("run", ""), "text of strangers in a shell"
