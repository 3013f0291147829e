"""charts/init-wg: it is what the component and the injection are, and takes only values that make sense."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from init_wg import __version__
from init_wg.config import server_settings
from init_wg.config import settings as program
from init_wg.errors import ConfigError
from tests import documents
from tests.chart.generate import accepted
from tests.chart.helm import CHART, VERSIONS, RefusedError, Rendered, ask, render
from tests.containers import manifests
from tests.containers.manifests import K8S, ROOT, parse, pod_spec
from tests.golden import assert_golden

HERE = Path(__file__).parent
APP = HERE / "app"
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
WORKLOAD = {"workload": {"enabled": True}}
SERVER = {"server": {"enabled": True, "serverURL": "vpn.example.org", "peers": ["phone", "laptop"]}}
POLICY = {"networkPolicy": {"enabled": True, "endpoints": [{"cidr": "198.51.100.1/32", "port": 51820}]}}
#: Read by the chart itself: `implementation`, and probes without which no pod starts. A workload is no server.
NOT_IN_ENV = {"WG_IMPLEMENTATION", "ENABLE_HEALTH_PROBE", "WG_MODE"}
INJECTED = "1.37"  # the kinds of injection are not in Kubernetes 1.29's schemas


#: What the chart says of a server otherwise than by `server.env`.
NOT_IN_SERVER_ENV = {"PEERS", "PEERS_FILE", "SERVERURL", "SERVERPORT", "SERVER_DATA", "LOG_CONFS"}


def workload(**values: Any) -> dict[str, Any]:
    return {"workload": {"enabled": True, **values}}


def server(**values: Any) -> dict[str, Any]:
    return {"server": {**SERVER["server"], **values}}


GOOD: dict[str, dict[str, Any]] = {
    "nothing": {},
    "workload": WORKLOAD,
    "userspace": {**WORKLOAD, "implementation": "userspace"},
    "digest": {**WORKLOAD, "image": {"digest": "sha256:" + "0" * 64, "pullPolicy": "Always"}},
    "registry with a port": {**WORKLOAD, "image": {"repository": "registry.example:5000/a/init-wg", "tag": "1"}},
    "pull secrets": {**WORKLOAD, "imagePullSecrets": ["registry", "another"]},
    "another secret": {**WORKLOAD, "config": {"secretName": "init-wg-demo"}},
    "settings": {**WORKLOAD, "env": {"DNS_MODE": "split", "ENABLE_KILL_SWITCH": True, "HANDSHAKE_TIMEOUT": 20}},
    "a port of ours": {**WORKLOAD, "env": {"HEALTH_PORT": 9998}},
    "a file for each pod": {**WORKLOAD, "env": {"WG_CONFIG": "/etc/wireguard/$(POD_NAME).*.conf"}},
    "yaml's words": {**WORKLOAD, "env": {"BYPASS_CIDRS": "none", "VERIFY_EXPECT": "no"}},
    "our resources": {**WORKLOAD, "resources": {"limits": {"memory": "300Mi"}}},
    "ports": workload(ports=[{"name": "http", "port": 8080, "servicePort": 80}, {"name": "dns", "port": 53}]),
    "udp on our port": workload(ports=[{"name": "dns", "port": 9999, "protocol": "UDP"}]),
    "node port": workload(ports=[{"name": "http", "port": 8080}], service={"type": "NodePort"}),
    "annotated service": workload(ports=[{"name": "http", "port": 8080}], service={"annotations": {"a.b/c": "d"}}),
    "args": workload(command=[], args=["--verbose", "no"]),
    "environment": workload(
        env={"A": 1, "B": True, "C": "on", "D": 1.5}, envFrom=[{"secret": "s"}, {"configMap": "c"}]
    ),
    "volumes": workload(
        volumes=[{"name": "a", "emptyDir": {}}, {"name": "b", "persistentVolumeClaim": {"claimName": "b"}}],
        volumeMounts=[{"name": "a", "mountPath": "/a"}, {"name": "b", "mountPath": "/b", "readOnly": True}],
    ),
    "root": workload(securityContext={"runAsUser": 0, "runAsNonRoot": False, "capabilities": {"add": ["CHOWN"]}}),
    "pod security": workload(podSecurityContext={"fsGroup": 1000, "fsGroupChangePolicy": "OnRootMismatch"}),
    "labels": workload(podLabels={"team": "a", "app.kubernetes.io/name": "ours"}, podAnnotations={"x/y": "z"}),
    "placement": workload(
        nodeSelector={"kubernetes.io/os": "linux"},
        tolerations=[{"operator": "Exists"}],
        priorityClassName="high",
        affinity={"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "zone"}]}},
    ),
    "patience": workload(terminationGracePeriodSeconds=3600),
    "server": SERVER,
    "server, userspace": {**SERVER, "implementation": "userspace"},
    "server by an address": server(serverURL="2001:db8::7", serverPort=30820),
    "server's settings": server(
        env={"ALLOWEDIPS": "0.0.0.0/0, 192.168.1.0/24", "PEER_TO_PEER": True, "PEER_KEEPALIVE": 0, "HEALTH_PORT": 9998},
        ipv6Forwarding=True,
    ),
    "server, site to site": server(env={"SERVER_ALLOWEDIPS_PEER_laptop": "192.168.7.0/24"}),
    "server, node port": server(service={"type": "NodePort", "nodePort": 30820, "externalTrafficPolicy": "Cluster"}),
    "server, load balancer": server(service={"loadBalancerIP": "198.51.100.9", "loadBalancerClass": "a.b/c"}),
    "server, claim of yours": server(persistence={"existingClaim": "keys"}),
    "server, older storage": server(persistence={"accessMode": "ReadWriteOnce", "storageClassName": "fast"}),
    "server, placement": server(
        nodeSelector={"a/b": "c"}, tolerations=[{"operator": "Exists"}], priorityClassName="high"
    ),
    "server beside a workload": {**WORKLOAD, **SERVER},
    "injection": {"injection": {"enabled": True}},
    "injection, userspace": {"injection": {"enabled": True}, "implementation": "userspace"},
    "network policy": POLICY,
    "no cluster": {"networkPolicy": {**POLICY["networkPolicy"], "cidrs": []}},
    "both families": {
        "networkPolicy": {
            "enabled": True,
            "endpoints": [{"cidr": "2001:db8::1/128", "port": 443}],
            "cidrs": ["fd42::/64"],
        }
    },
    "everything": {**WORKLOAD, **POLICY, "injection": {"enabled": True}},
    "monitoring": {"monitoring": {"enabled": True, "labels": {"release": "prometheus"}}},
    "bitnami": {"snippet": "bitnami"},
    "app-template": {"snippet": "app-template", "implementation": "userspace"},
    "as a dependency": {"global": {"anything": {"goes": 1}}},
}
# Values, and a part of the one sentence that refuses them.
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a part": ({"worklod": {"enabled": True}}, "additional properties 'worklod' not allowed"),
    "a switch": (workload(enabeld=True), "additional properties 'enabeld' not allowed"),
    "not a boolean": ({"workload": {"enabled": "yes"}}, "'/workload/enabled': got string, want boolean"),
    "a setting's name": ({"env": {"DNSMODE": "split"}}, "additional properties 'DNSMODE' not allowed"),
    "a setting's value": ({"env": {"DNS_MODE": "tunel"}}, "must be one of 'tunnel', 'split', 'cluster'"),
    "our probes": ({"env": {"ENABLE_HEALTH_PROBE": False}}, "additional properties 'ENABLE_HEALTH_PROBE' not allowed"),
    "the implementation": ({"implementation": "wireguard-go"}, "must be one of 'kernel', 'userspace'"),
    "a time": ({"env": {"HANDSHAKE_TIMEOUT": 0}}, "'/env/HANDSHAKE_TIMEOUT'"),
    "a port": ({"env": {"HEALTH_PORT": 70000}}, "'/env/HEALTH_PORT'"),
    "an interface": ({"env": {"WG_INTERFACE": "lo"}}, "'/env/WG_INTERFACE'"),
    "a digest": ({"image": {"digest": "sha256:abc"}}, "'/image/digest'"),
    "a tag in the name": ({"image": {"repository": "init-wg:1"}}, "'/image/repository'"),
    "a key": ({"config": {"privateKey": "x"}}, "additional properties 'privateKey' not allowed"),
    "privileged": (workload(securityContext={"privileged": True}), "additional properties 'privileged' not allowed"),
    "a capability": (
        workload(securityContext={"capabilities": {"add": ["NET_ADMIN"]}}),
        "'/workload/securityContext/capabilities/add/0'",
    ),
    "replicas": (workload(replicas=3), "additional properties 'replicas' not allowed"),
    "our label": (workload(podLabels={"init-wg.io/inject": "false"}), "invalid propertyName 'init-wg.io/inject'"),
    "our volume": (
        workload(volumeMounts=[{"name": "init-wg-config", "mountPath": "/keys"}]),
        "'/workload/volumeMounts/0/name'",
    ),
    "our port": (workload(ports=[{"name": "http", "port": 9999}]), "9999 is the watchdog's port"),
    "a policy without an endpoint": (
        {"networkPolicy": {"enabled": True}},
        "networkPolicy.endpoints: name the providers'",
    ),
    "an endpoint's name": (
        {"networkPolicy": {"enabled": True, "endpoints": [{"cidr": "vpn.example", "port": 1}]}},
        "'/networkPolicy/endpoints/0/cidr'",
    ),
    "a server without an address": (server(serverURL=""), "server.serverURL: write the name or the address"),
    "a server without peers": (server(peers=[]), "server.peers: name at least one peer"),
    "a server's port in its address": (server(serverURL="vpn.example.org:51820"), "'/server/serverURL'"),
    "a peer's name": (server(peers=["my phone"]), "'/server/peers/0'"),
    "a peer twice": (server(peers=["phone", "phone"]), "'/server/peers'"),
    "a server's keys": (server(privateKey="x"), "additional properties 'privateKey' not allowed"),
    "a server's setting": (server(env={"PEERS": "3"}), "additional properties 'PEERS' not allowed"),
    "a number of servers": (server(replicas=2), "additional properties 'replicas' not allowed"),
    "a snippet": ({"snippet": "helm"}, "must be one of '', 'bitnami', 'app-template'"),
    "a snippet and more": ({**WORKLOAD, "snippet": "bitnami"}, "snippet: it prints values for another chart"),
}


def injected(values: dict[str, Any]) -> Rendered:
    return render(values, versions=(INJECTED,))


def spec(rendered: Rendered) -> Any:
    return pod_spec(rendered.one("Deployment"))


@pytest.fixture(scope="module")
def component(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The pods that k8s/component makes of one that has nothing of its own."""
    made = {}
    variants = {"kernel": ("component",), "userspace": ("component", "component-userspace")}
    for name, components in variants.items():
        resources = ROOT / "tests/containers/golden/workloads.yaml"
        built = manifests.render(tmp_path_factory.mktemp(name), *components, resources=resources)
        assert built.returncode == 0, built.stderr
        every = {each["metadata"]["name"]: each for each in parse(built.stdout)}
        made[name] = pod_spec(every["without-init"])
    return made


# --- one truth --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["kernel", "userspace"])
def test_the_pod_is_the_components(component: dict[str, Any], implementation: str) -> None:
    made = spec(render({**WORKLOAD, "implementation": implementation}))
    assert made["initContainers"] == component[implementation]["initContainers"]
    assert made["volumes"] == component[implementation]["volumes"]


def test_the_pattern_for_replicas_is_the_examples() -> None:
    (pool,) = parse(manifests.build(K8S / "example-replicas").stdout)
    env = pod_spec(pool)["initContainers"][0]["env"]
    made = spec(render({**WORKLOAD, "env": {"WG_CONFIG": env[1]["value"]}}))
    assert [each["env"] for each in made["initContainers"]] == [env, env]


@pytest.mark.parametrize("implementation", ["kernel", "userspace"])
def test_the_server_is_that_of_k8s(implementation: str) -> None:
    """But for names, the labels that come of them, and where the server's address comes from."""
    folder = "server" if implementation == "kernel" else "server-userspace"
    source = {each["kind"]: each for each in parse(manifests.build(K8S / folder).stdout)}
    made = {each["kind"]: each for each in render({**SERVER, "implementation": implementation}).every
            if "helm.sh/hook" not in each["metadata"].get("annotations", {})}  # fmt: skip
    assert made.keys() == {"ConfigMap", "StatefulSet", "Service"}
    assert made["ConfigMap"]["data"]["PEERS"].split() == SERVER["server"]["peers"]
    for kind in ("StatefulSet", "Service"):
        one, other = json.dumps(made[kind]["spec"]), json.dumps(source[kind]["spec"])
        labels = {"app.kubernetes.io/name": "init-wg-server", "app.kubernetes.io/instance": "demo"}
        assert json.dumps(labels) in one, "the server's own selector"
        one = one.replace(json.dumps(labels), json.dumps({"app.kubernetes.io/name": "init-wg-server"}))
        one = one.replace('"demo-server"', '"init-wg-server"')
        spec, wanted = json.loads(one), json.loads(other)
        if kind == "StatefulSet":
            for each in (spec, wanted):
                each["volumeClaimTemplates"][0]["metadata"].pop("creationTimestamp", None)
            env = pod_spec({**made[kind], "spec": spec})["containers"][0]["env"]
            assert env.pop(2) == {"name": "SERVERURL", "value": "vpn.example.org"}
            theirs = pod_spec({**source[kind], "spec": wanted})["containers"][0]["env"]
            assert [theirs.pop(2)["name"], theirs.pop(2)["name"]] == ["SERVERURL", "SERVERPORT"]
        assert spec == wanted


@pytest.mark.parametrize("implementation", ["kernel", "userspace"])
def test_the_policies_are_those_of_injection(implementation: str) -> None:
    """But for the labels of the release, its namespace, and the one policy that Helm leaves behind."""
    made = injected({"injection": {"enabled": True}, "implementation": implementation}).every
    # The files, because kustomize adds empty lines to some expressions.
    files = [each for each in (K8S / "injection").glob("*.yaml") if each.name != "kustomization.yaml"]
    source = [each for file in files for each in parse(file.read_text()) if each["kind"] != "Namespace"]
    for each in [*made, *source]:
        each["metadata"].pop("labels", None)
        each["metadata"].pop("namespace", None)
        each["spec"] = each.get("spec", {})
        if each["spec"].get("paramRef", {}).get("namespace"):
            each["spec"]["paramRef"]["namespace"] = "any"
    kept = [each for each in made if each["metadata"].pop("annotations", None) == {"helm.sh/resource-policy": "keep"}]
    assert {(each["kind"], each["metadata"]["name"]) for each in kept} == {
        ("ValidatingAdmissionPolicy", "tunnelled.init-wg.io"),
        ("ValidatingAdmissionPolicyBinding", "tunnelled.init-wg.io"),
    }

    def key(each: Any) -> tuple[str, str]:
        return each["kind"], each["metadata"]["name"]

    (settings_,) = [each for each in source if each["kind"] == "ConfigMap"]
    settings_["data"]["userspace"] = str(implementation == "userspace").lower()
    assert sorted(made, key=key) == sorted(source, key=key)


def test_injection_reads_its_settings_where_the_release_is() -> None:
    made = injected({"injection": {"enabled": True}}).every
    namespaces = {
        each["spec"]["paramRef"]["namespace"] for each in made if each.get("spec", {}).get("paramRef", {}).get("name")
    }
    (settings_,) = [each for each in made if each["kind"] == "ConfigMap"]
    assert namespaces == {settings_["metadata"]["namespace"]} == {"tunnelled"}


def test_monitoring_is_that_of_k8s() -> None:
    made = render({"monitoring": {"enabled": True, "labels": {"release": "prometheus"}}}, versions=())
    for kind, file in (("PodMonitor", "podmonitor"), ("PrometheusRule", "rules")):
        assert made.one(kind)["spec"] == manifests.load(f"monitoring/{file}.yaml")["spec"]
        assert made.one(kind)["metadata"]["labels"]["release"] == "prometheus"


def test_the_copies_are_copies() -> None:
    """`make docs` writes them."""
    for source, copy in documents.COPIES.items():
        assert copy.read_text() == source.read_text()
    assert (CHART / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_the_network_policy_is_that_of_k8s() -> None:
    source = manifests.load("network-policy/network-policy.yaml")["spec"]
    assert render(POLICY).one("NetworkPolicy")["spec"] == source


def test_one_version_everywhere() -> None:
    (chart,) = parse((CHART / "Chart.yaml").read_text())
    (plugin,) = parse((ROOT / "contrib/helm-plugin/plugin.yaml").read_text())
    (defaults,) = parse((CHART / "values.yaml").read_text())
    said = {chart["version"], chart["appVersion"], plugin["version"], defaults["image"]["tag"]}
    image = f"{defaults['image']['repository']}:{__version__}"
    assert said == {__version__}
    assert parse(chart["annotations"]["artifacthub.io/images"])[0][0]["image"] == image
    examples = "".join(each.read_text() for each in (CHART / "examples").rglob("*.yaml"))
    assert set(re.findall(r"ref=v(\S+)", examples)) == {__version__}


# --- values -----------------------------------------------------------------------------------------------------------


def test_the_schema_knows_every_setting() -> None:
    named = SCHEMA["properties"]["env"]["properties"]
    table = {each.name: each for each in program.TABLE}
    assert set(named) == set(table) - NOT_IN_ENV
    for name, schema in named.items():
        if "enum" in schema:
            assert schema["enum"] == re.split(", | or ", table[name].may_be), name
        if schema.get("$ref", "").endswith("/switch"):
            assert table[name].parse is program.boolean, name


def test_the_schema_knows_every_setting_of_a_server() -> None:
    named = SCHEMA["properties"]["server"]["properties"]["env"]["properties"]
    table = {each.name: each for each in server_settings.TABLE}
    common = {"HEALTH_PORT", "LOG_LEVEL", "LOG_FORMAT"}
    assert set(named) - common == set(table) - NOT_IN_SERVER_ENV
    for name, schema in named.items():
        if schema.get("$ref", "").endswith("/switch"):
            assert table[name].parse is program.boolean, name
    for name in common:
        assert named[name] == SCHEMA["properties"]["env"]["properties"][name]


def test_no_object_of_the_schema_takes_anything() -> None:
    """But `global`, which is Helm's."""

    def objects(schema: Any, path: str) -> list[str]:
        if isinstance(schema, list):
            return [found for each in schema for found in objects(each, path)]
        if not isinstance(schema, dict):
            return []
        open_ = schema.get("type") == "object" and "additionalProperties" not in schema
        inner = [found for name, each in schema.items() for found in objects(each, f"{path}/{name}")]
        return [path] * open_ + inner

    assert objects(SCHEMA, "") == ["/properties/global"]


def test_the_schema_knows_every_value() -> None:
    """A value without a line in the schema, or a line without a value."""

    def names(values: Any, schema: Any) -> tuple[Any, Any]:
        if isinstance(values, dict) and "properties" in schema and values:
            inner = {key: names(each, schema["properties"][key]) for key, each in values.items()}
            return {key: each[0] for key, each in inner.items()}, {key: inner[key][1] for key in schema["properties"]}
        return None, None

    (defaults,) = parse((CHART / "values.yaml").read_text())
    schema = {**SCHEMA, "properties": {k: v for k, v in SCHEMA["properties"].items() if k != "global"}}
    defaults["workload"]["securityContext"] = {}
    left, right = names(defaults, schema)
    assert left == right


@pytest.mark.parametrize("name", GOOD)
def test_good_values(name: str) -> None:
    """Each renders, and Kubernetes takes it; without injection also the oldest one."""
    values = GOOD[name]
    # The operator's kinds are in no Kubernetes' schemas.
    versions = () if "monitoring" in values else (INJECTED,) if "injection" in values else VERSIONS
    made = render(values, versions=versions)
    assert made.problems == []
    # A value that does nothing would be a promise that is not kept.
    assert name in ("nothing", "as a dependency") or made.texts != render(versions=()).texts


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values_end_with_one_sentence(name: str) -> None:
    values, sentence = WRONG[name]
    with pytest.raises(RefusedError) as refused:
        render(values)
    said = str(refused.value).strip().removeprefix("init-wg:\n")
    assert len(re.findall("^- ", said, re.MULTILINE)) <= 1, said
    assert sentence in said


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(accepted(SCHEMA, SCHEMA["definitions"]))
def test_what_the_schema_accepts_renders(values: dict[str, Any]) -> None:
    """For the oldest and the newest Kubernetes; the few conditions that no schema can say end with their sentence."""
    workload_ = values.setdefault("workload", {})
    workload_["enabled"] = True
    values.setdefault("server", {})["enabled"] = True
    values["snippet"] = ""
    for cluster_wide in ("injection", "monitoring"):
        values.setdefault(cluster_wide, {})["enabled"] = False
    try:
        made = render(values)
    except RefusedError as refused:
        assert re.search(
            r"networkPolicy.endpoints: name|is the watchdog's port|server\.(serverURL|peers): ", str(refused)
        ), refused
        return
    assert made.problems == []
    ours, watchdog = spec(made)["initContainers"]
    assert (ours["name"], watchdog["name"]) == ("init-wg", "init-wg-watchdog")
    assert ours["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN"]}
    (app,) = spec(made)["containers"]
    assert "privileged" not in app["securityContext"]
    assert app["securityContext"]["capabilities"]["drop"] == ["ALL"]
    environment = {each["name"]: each.get("value", "") for each in ours["env"]} if "env" in ours else {}
    try:
        read = program.read(environment)
    except ConfigError as error:
        # Ports that are too large or the wrong way round: the program says so.
        assert "VPN_INPUT_PORTS" in str(error)
    else:
        assert watchdog["livenessProbe"]["httpGet"]["port"] == read.health_port
    (serves,) = pod_spec(made.one("StatefulSet"))["containers"]
    assert serves["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN"]}
    told = {each["name"]: each["value"] for each in serves["env"] if each["name"] not in ("PEERS_FILE", "WG_MODE")}
    try:
        server_settings.read({**told, "PEERS": ",".join(values["server"]["peers"])})
    except ConfigError as error:
        # Numbers that no schema can compare: the program says so.
        assert re.search("SERVERURL|INTERNAL_SUBNET|ALLOWEDIPS|PEERDNS", str(error)), error


def test_the_chart_never_makes_a_secret() -> None:
    for values in GOOD.values():
        assert "Secret" not in {each["kind"] for each in render(values, versions=()).every}


@pytest.mark.parametrize(
    "name", ["workload", "userspace", "server", "network policy", "injection", "bitnami", "app-template"]
)
def test_golden(name: str) -> None:
    """WRITE_GOLDEN=1 writes what is there now: then read the difference."""
    texts = render(GOOD[name], versions=()).texts
    made = "".join(f"# {file}\n{text.strip()}\n" for file, text in sorted(texts.items()) if text.strip())
    assert_golden(made, HERE / f"golden/{name.replace(' ', '-')}.txt")


def test_lint() -> None:
    for kubernetes in ("v1.29.0", "v1.37.0"):
        report = ask("lint", path=str(CHART), strict=True, kube_version=kubernetes, values={**WORKLOAD, **POLICY})
        assert report["messages"] == report["errors"] == []


def test_injection_before_1_36_is_refused_with_the_way_out() -> None:
    """The library renders for its own Kubernetes only; its lint takes another, and tells of `fail` on stderr."""
    lint = "import sys; from helm_python.chart import lint; lint(sys.argv[1], {'injection': {'enabled': True}}, "
    for kubernetes, refused in (("v1.35.0", True), ("v1.36.0", False)):
        argv = [str(manifests.python()), "-c", f"{lint} kube_version='{kubernetes}')", str(CHART)]
        said = subprocess.run(argv, capture_output=True, text=True, check=True).stderr
        assert ("MutatingAdmissionPolicy is stable from 1.36 on; use the kustomize component" in said) == refused


def test_the_package(tmp_path: Path) -> None:
    """What `make chart` makes renders the same."""
    made = Path(ask("package", path=str(CHART), destination=str(tmp_path)))
    assert made.name == f"init-wg-{__version__}.tgz"
    assert render(GOOD["workload"], chart=made).texts == render(GOOD["workload"]).texts


# --- words ------------------------------------------------------------------------------------------------------------


def test_the_notes_name_the_next_commands_with_the_namespace() -> None:
    notes = render(WORKLOAD, namespace="here").texts["NOTES.txt"]
    assert "kubectl --namespace here create secret generic init-wg --from-file=wg0.conf=" in notes
    assert "helm test demo --namespace here" in notes
    assert "kubectl label namespace here pod-security.kubernetes.io/enforce=privileged" in notes
    serving = render(SERVER, namespace="here").texts["NOTES.txt"]
    assert "kubectl --namespace here exec -it demo-server-0 -- init-wg peer show phone --qr" in serving
    assert "helm test demo --namespace here" in serving
    assert "kubectl label namespace here pod-security.kubernetes.io/enforce=privileged" in serving
    assert "Nothing was made" in render().texts["NOTES.txt"]
    assert "tunnelled.init-wg.io" in injected({"injection": {"enabled": True}}).texts["NOTES.txt"]


def test_the_readme_is_made_of_the_values() -> None:
    """`make docs` writes the table."""
    assert (CHART / "README.md").read_text() == documents.chart()
    (defaults,) = parse((CHART / "values.yaml").read_text())
    described = [name for name, *_ in documents.values((CHART / "values.yaml").read_text())]

    def leaves(values: Any, path: str = "") -> list[str]:
        if isinstance(values, dict) and values and path != "workload.securityContext.":
            return [leaf for name, each in values.items() for leaf in leaves(each, f"{path}{name}.")]
        return [path.rstrip(".")]

    assert described == leaves(defaults)


# --- charts of others -------------------------------------------------------------------------------------------------


def tunnel(rendered: list[Any]) -> Any:
    (deployment,) = [each for each in rendered if each["kind"] == "Deployment"]
    assert deployment["spec"]["replicas"] == 1
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}
    made = pod_spec(deployment)
    assert [each["name"] for each in made["initContainers"]] == ["init-wg", "init-wg-watchdog", "first"]
    assert deployment["spec"]["template"]["metadata"]["labels"] == {"app": "web", "init-wg.io/inject": "true"}
    return {"initContainers": made["initContainers"][:2], "volumes": made["volumes"][:-1]}


def ours(component: dict[str, Any], variant: str = "kernel") -> Any:
    return {name: component[variant][name] for name in ("initContainers", "volumes")}


def app_rendered(values: dict[str, Any] | None = None) -> str:
    return "---\n".join(render(values, chart=APP, name="app", versions=()).texts.values())


@pytest.mark.parametrize("name", ["bitnami", "app-template"])
def test_the_examples_of_values(name: str) -> None:
    """WRITE_GOLDEN=1 writes them."""
    made = render({"snippet": name}, versions=()).texts["snippet.yaml"].strip() + "\n"
    assert_golden(made, CHART / f"examples/values-{name}.yaml")


def test_values_for_bitnami(component: dict[str, Any]) -> None:
    (values,) = parse((CHART / "examples/values-bitnami.yaml").read_text())
    assert tunnel(render(values, chart=APP, name="app").every) == ours(component)


@pytest.mark.parametrize("variant", ["kernel", "userspace"])
def test_values_for_app_template(component: dict[str, Any], variant: str) -> None:
    """The library's shape, put together again as the library does it: probes, and mounts that are said by volume."""
    (values,) = render({"snippet": "app-template", "implementation": variant}).documents["snippet.yaml"]
    controller = values["controllers"]["main"]
    assert (controller["replicas"], controller["strategy"]) == (1, "Recreate")
    containers: dict[str, Any] = controller["initContainers"]
    assert containers["init-wg-watchdog"].pop("dependsOn") == "init-wg"
    for name, each in containers.items():
        for kind, probe in each.pop("probes", {}).items():
            assert probe.pop("enabled")
            assert probe.pop("custom")
            each[f"{kind}Probe"] = probe["spec"]
        each["name"] = name
        each["volumeMounts"] = [
            {"name": volume, "mountPath": mount["path"], **({"readOnly": True} if mount.get("readOnly") else {})}
            for volume, persistence in values["persistence"].items()
            for mount in persistence["advancedMounts"]["main"][name]
        ]
    assert [containers[name] for name in ("init-wg", "init-wg-watchdog")] == ours(component, variant)["initContainers"]
    types = [each["type"] for each in values["persistence"].values()]
    assert types == ["secret", "emptyDir", "hostPath"][: len(types)]


def test_as_a_dependency(component: dict[str, Any], tmp_path: Path) -> None:
    """The README's own lines, in a chart that has this one below it."""
    parent = tmp_path / "app"
    shutil.copytree(CHART, parent / "charts/init-wg")
    (parent / "Chart.yaml").write_text(
        "{apiVersion: v2, name: app, version: 0.1.0, dependencies: [{name: init-wg, version: 0.1.0}]}"
    )
    lines = (CHART / "README.md").read_text()
    (block,) = re.findall(r"```yaml\n# templates/deployment.yaml[^\n]*\n(.*?)```", lines, re.DOTALL)
    (parent / "templates").mkdir()
    (parent / "templates/deployment.yaml").write_text(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: app}\nspec:\n  replicas: 1\n"
        "  strategy: {type: Recreate}\n"
        "  selector: {matchLabels: {app: web}}\n  template:\n"
        + block.replace("      labels:\n", "      labels:\n        app: web\n").replace(
            "      volumes:\n",
            "        - {name: first, image: a}\n      containers: [{name: web, image: a}]\n      volumes:\n",
        )
        + "        - {name: data, emptyDir: {}}\n"
    )
    made = render({"init-wg": {"implementation": "userspace"}}, chart=parent, name="app")
    assert made.problems == []
    assert tunnel(made.every) == ours(component, "userspace")


def kustomized(folder: Path, kustomization: Path, text: str) -> list[Any]:
    """An example, with this checkout for the repository's address, and the rendered chart for what Helm would fetch."""
    (folder / "app").mkdir()
    shutil.copytree(CHART / "examples/kustomize/label", folder / "kustomize/label")
    shutil.copytree(K8S / "component", folder / "component")
    text = re.sub(r"https://\S+//k8s/component\?ref=\S+", "../component", text).replace(
        "- label", "- ../kustomize/label"
    )
    (folder / "app/rendered.yaml").write_text(app_rendered())
    (folder / "app/kustomization.yaml").write_text(text)
    built = manifests.build(folder / "app")
    assert built.returncode == 0, f"{kustomization}: {built.stderr}"
    return parse(built.stdout)


def test_helm_template_and_kustomize(component: dict[str, Any], tmp_path: Path) -> None:
    example = CHART / "examples/kustomize/kustomization.yaml"
    assert tunnel(kustomized(tmp_path, example, example.read_text())) == ours(component)


def test_argo_cd(component: dict[str, Any], tmp_path: Path) -> None:
    """Without the network the chart is a file; the rest of the kustomization is as Argo CD builds it."""
    example = CHART / "examples/argo-cd/kustomization.yaml"
    text, replaced = re.subn(
        r"helmCharts:\n(?:  .*\n)+", "resources:\n  - rendered.yaml\n", example.read_text(), count=1
    )
    assert replaced == 1
    assert tunnel(kustomized(tmp_path, example, text)) == ours(component)
    (settings_,) = parse((CHART / "examples/argo-cd/argocd-cm.yaml").read_text())
    assert settings_["data"] == {"kustomize.buildOptions": "--enable-helm"}


def test_flux(component: dict[str, Any], tmp_path: Path) -> None:
    """Flux gives patches and images to kustomize, as here."""
    assert documents.FLUX_EXAMPLE.read_text() == documents.flux()
    (release,) = parse(documents.FLUX_EXAMPLE.read_text())
    (renderer,) = release["spec"]["postRenderers"]
    (tmp_path / "rendered.yaml").write_text(app_rendered())
    kustomization = {"resources": ["rendered.yaml"], **renderer["kustomize"]}
    (tmp_path / "kustomization.yaml").write_text(json.dumps(kustomization))
    built = manifests.build(tmp_path)
    assert built.returncode == 0, built.stderr
    assert tunnel(parse(built.stdout)) == ours(component)
