"""k8s/injection on a real API server: each decision, with other mutators and a webhook beside it, then a real pod."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.containers.manifests import K8S

from .build import BUSYBOX, HERE
from .cluster import Cluster, wait_until
from .workloads import INJECT, LEAST, container, pod, workload

OURS = ["init-wg", "init-wg-watchdog"]
OWN = {"name": "own", "image": BUSYBOX, "command": ["true"], "securityContext": LEAST}
SIDECAR = {**OWN, "name": "side", "restartPolicy": "Always", "command": ["sleep", "1000"]}
NAMESPACES = {
    "plain": {},
    "injected": {"init-wg.io/inject": "true"},
    "required": {"init-wg.io/required": "true"},
    "both": {"init-wg.io/inject": "true", "init-wg.io/required": "true"},
}
SETTINGS = ("configmap", "injection", "--namespace", "init-wg-system")


class Api:
    """The API server's answers, without storing anything: --dry-run=server is all of admission."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def answer(self, document: Any, verb: str = "create") -> tuple[Any, str]:
        """The object as it would be stored, or None; and what kubectl says, refusals and warnings."""
        ended = self.cluster.run(
            "kubectl", verb, "--dry-run=server", "-o", "json", "-f", "-", stdin=json.dumps(document)
        )
        return (json.loads(ended.stdout) if ended.returncode == 0 else None), ended.stderr.strip()

    def taken(self, document: Any) -> Any:
        made, said = self.answer(document)
        assert made, said
        return made

    def refused(self, document: Any) -> str:
        made, said = self.answer(document)
        assert made is None, "it was taken"
        return said


@pytest.fixture(scope="module")
def api(cluster: Cluster) -> Iterator[Api]:
    cluster.kubectl("apply", "-k", str(K8S / "injection"))
    for name, labels in NAMESPACES.items():
        cluster.namespace(name, labels)
    api = Api(cluster)
    # The API server learns of policies, bindings and parameters one by one.
    wait_until(lambda: api.answer(asking())[0], "the policies are in force", 30)
    wait_until(lambda: names(api.answer(asking(namespace="injected", labels={}))[0]) == OURS, "and all bindings", 30)
    wait_until(lambda: api.answer(asking(labels={"init-wg.io/injct": "true"}))[0] is None, "and the label's rule", 30)
    wait_until(lambda: api.answer(asking(namespace="required", labels={}))[0] is None, "and what is required", 30)
    yield api
    cluster.kubectl("delete", "-k", str(K8S / "injection"), timeout=120)
    for name in NAMESPACES:
        cluster.kubectl("delete", "namespace", name, "--wait=false")


def asking(namespace: str = "plain", labels: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    """A pod with the label, if no other labels are given."""
    made = pod("p", namespace, container(), automountServiceAccountToken=False, **spec)
    made["metadata"]["labels"] = INJECT if labels is None else labels
    return made


def names(made: Any) -> list[str]:
    return [each["name"] for each in made["spec"].get("initContainers", [])] if made else []


def volumes(made: Any) -> list[str]:
    return [each["name"] for each in made["spec"].get("volumes", [])]


def with_capability(capability: str, **more: Any) -> dict[str, Any]:
    return container(securityContext={"capabilities": {"add": [capability], "drop": ["ALL"]}, **more})


# --- what is added ---------------------------------------------------------------------------------------------------


def test_a_pod_with_the_label(api: Api) -> None:
    made = api.taken(asking())
    assert names(made) == OURS
    assert volumes(made) == ["init-wg-config", "init-wg-run"]
    made = api.taken(asking(initContainers=[OWN, SIDECAR], volumes=[{"name": "data", "emptyDir": {}}]))
    assert names(made) == [*OURS, "own", "side"], "ours are first"
    assert volumes(made) == ["data", "init-wg-config", "init-wg-run"]


def test_who_is_asked_first_the_pod_or_its_namespace(api: Api) -> None:
    assert names(api.taken(asking(labels={}))) == [], "the control: no label"
    assert names(api.taken(asking(labels={"init-wg.io/inject": "false"}))) == []
    made = api.taken(asking("injected", labels={"app": "x"}))
    assert names(made) == OURS
    assert made["metadata"]["labels"] == {"app": "x", **INJECT}
    assert names(api.taken(asking("injected", labels={"init-wg.io/inject": "false"}))) == []


def test_it_is_what_pod_yaml_says(api: Api) -> None:
    """Field by field, after the API server's own defaults."""
    complete = json.loads(api.cluster.kubectl("create", "--dry-run=client", "-o", "json", "-f", str(K8S / "pod.yaml")))
    complete["metadata"]["namespace"] = "plain"
    complete["spec"]["automountServiceAccountToken"] = False
    bare = copy.deepcopy(complete)
    del bare["spec"]["initContainers"], bare["spec"]["volumes"]
    one, other = api.taken(complete)["spec"], api.taken(bare)["spec"]
    assert one["initContainers"] == other["initContainers"]
    assert one["volumes"] == other["volumes"]


def test_the_secret_is_the_annotations(api: Api) -> None:
    document = asking()
    document["metadata"]["annotations"] = {"init-wg.io/secret": "mine"}
    assert api.taken(document)["spec"]["volumes"][0]["secret"]["secretName"] == "mine"


def test_again_changes_nothing(api: Api) -> None:
    made = api.taken(asking(initContainers=[OWN]))
    again = {**asking(), "spec": made["spec"]}
    assert api.taken(again)["spec"] == made["spec"]
    first, watchdog, own = made["spec"]["initContainers"]
    for order in ([own, watchdog, first], [watchdog, first, own], [watchdog, own, first], [first, own, watchdog]):
        again = {**asking(), "spec": {**made["spec"], "initContainers": order}}
        assert names(api.taken(again)) == [*OURS, "own"]


def test_the_userspace_variant_is_one_setting(api: Api) -> None:
    change = ("patch", *SETTINGS, "--type=merge", "--patch")
    api.cluster.kubectl(*change, '{"data": {"userspace": "true"}}')
    try:
        wait_until(lambda: volumes(api.taken(asking()))[-1] == "init-wg-tun", "the setting is in force", 20)
        complete = json.loads(
            api.cluster.kubectl("create", "--dry-run=client", "-o", "json", "-f", str(K8S / "pod-userspace.yaml"))
        )
        complete["metadata"]["namespace"] = "plain"
        complete["spec"]["automountServiceAccountToken"] = False
        bare = copy.deepcopy(complete)
        del bare["spec"]["initContainers"], bare["spec"]["volumes"]
        one, other = api.taken(complete)["spec"], api.taken(bare)["spec"]
        for spec in (one, other):
            for each in spec["initContainers"]:
                each["volumeMounts"].sort(key=lambda mount: mount["name"])
            spec["volumes"].sort(key=lambda volume: volume["name"])
        assert one == other
    finally:
        api.cluster.kubectl(*change, '{"data": {"userspace": "false"}}')
        wait_until(lambda: volumes(api.taken(asking()))[-1] != "init-wg-tun", "the setting is back", 20)


def test_without_its_settings_no_pod_is_left_open(api: Api) -> None:
    settings = api.cluster.get(*SETTINGS)
    api.cluster.kubectl("delete", *SETTINGS)
    try:
        wait_until(lambda: api.answer(asking())[0] is None, "pods are refused", 20)
        assert names(api.taken(asking(labels={}))) == []
    finally:
        for key in ("resourceVersion", "uid", "creationTimestamp", "managedFields"):
            settings["metadata"].pop(key, None)
        api.cluster.apply(settings)
        wait_until(lambda: api.answer(asking())[0], "pods are taken again", 20)


# --- what is refused -------------------------------------------------------------------------------------------------

FORBIDDEN: dict[str, tuple[dict[str, Any], str]] = {
    "hostNetwork": (asking(hostNetwork=True), "hostNetwork: true has no network of its own"),
    "shareProcessNamespace": (asking(shareProcessNamespace=True), "lets the application see the watchdog"),
    "NET_ADMIN": (asking(containers=[with_capability("NET_ADMIN")]), "container app: "),
    "NET_RAW": (asking(containers=[with_capability("NET_RAW")]), "container app: "),
    "SYS_ADMIN": (asking(containers=[with_capability("SYS_ADMIN")]), "container app: "),
    "privileged": (asking(containers=[container(securityContext={"privileged": True})]), "container app: "),
    "NET_ADMIN in an init container": (
        asking(initContainers=[{**OWN, "securityContext": {"capabilities": {"add": ["NET_ADMIN"]}}}]),
        "container own: ",
    ),
    "a value with a typing mistake": (asking(labels={"init-wg.io/inject": "True"}), "the only label with init-wg"),
    "a key with a typing mistake": (asking(labels={"init-wg.io/injct": "true"}), "the only label with init-wg"),
    "a prefix with a typing mistake": (asking(labels={"init-wg/inject": "true"}), "the only label with init-wg"),
    "required, without a label": (asking("required", labels={}), "takes only pods with a tunnel"),
    "required, opted out": (asking("required", labels={"init-wg.io/inject": "false"}), "takes only pods with a tunnel"),
    "both, opted out": (asking("both", labels={"init-wg.io/inject": "false"}), "takes only pods with a tunnel"),
    "required, another init-wg": (
        asking("required", initContainers=[{**OWN, "name": "init-wg"}]),
        "init-wg is not this cluster's",
    ),
    "the label on a Deployment alone": (
        workload("Deployment", "d", "plain", {"containers": [container()]}),
        "is on the",
    ),
    "the label on a CronJob alone": (
        workload("CronJob", "c", "plain", {"containers": [container()], "restartPolicy": "Never"}),
        "is on the workload and not on its pods",
    ),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_refused(api: Api, what: str) -> None:
    document, because = FORBIDDEN[what]
    said = api.refused(document)
    assert because in said
    errors = [line for line in said.splitlines() if not line.startswith("Warning: ")]
    assert len(errors) == 1, "one clear sentence"


def test_taken_where_a_tunnel_is_required(api: Api) -> None:
    """The control of what is refused there."""
    assert names(api.taken(asking("required"))) == OURS
    assert names(api.taken(asking("both", labels={}))) == OURS


def test_other_pods_may_do_as_they_like(api: Api) -> None:
    """The control: without the label, nothing of ours is said."""
    for document in (asking(labels={}, hostNetwork=True), asking(labels={}, containers=[with_capability("NET_ADMIN")])):
        made, said = api.answer(document)
        assert made, said
        assert names(made) == []


# --- what is warned of -----------------------------------------------------------------------------------------------


def labelled(kind: str, name: str = "d", **more: Any) -> dict[str, Any]:
    spec: dict[str, Any] = {"containers": [container()]}
    if kind == "Job":
        spec["restartPolicy"] = "Never"
    document = workload(kind, name, "plain", spec, **more)
    document["spec"]["template"]["metadata"]["labels"] |= INJECT
    return document


def test_warnings(api: Api) -> None:
    recreate: Any = {"strategy": {"type": "Recreate"}}
    cases: list[tuple[dict[str, Any], str]] = [
        (labelled("Deployment", replicas=2, **recreate), "more than one replica with one key"),
        (labelled("Deployment"), "strategy: {type: Recreate} is missing"),
        (labelled("Job", parallelism=2), "parallelism above 1 with one key"),
        (asking(containers=[container(securityContext={})]), "container app does not drop NET_RAW"),
        (labelled("Deployment", **recreate), ""),
        (labelled("StatefulSet", serviceName="d"), ""),
        (asking(), ""),
    ]
    for document, warning in cases:
        made, said = api.answer(document)
        assert made, said
        assert (warning in said) if warning else not said


# --- beside other mutators -------------------------------------------------------------------------------------------


def mesh(name: str) -> list[Any]:
    """A policy that puts a container of its own first, as a mesh's injector does."""
    literal = "Object.spec.initContainers"
    drop = f'{literal}.securityContext.capabilities{{drop: ["ALL"]}}'
    value = f'{literal}{{name: "{name}", image: "{BUSYBOX}", command: ["true"]'
    value += f", securityContext: {literal}.securityContext{{capabilities: {drop}}}}}"
    patch = '(has(object.spec.initContainers) ? [] : [JSONPatch{op: "add", path: "/spec/initContainers", value: []}])'
    patch += f' + [JSONPatch{{op: "add", path: "/spec/initContainers/0", value: {value}}}]'
    there = "has(object.spec.initContainers) && object.spec.initContainers.exists(c, c.name == '" + name + "')"
    wanted = "has(object.metadata.labels) && 'mesh' in object.metadata.labels"
    kind = {"apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": name}}
    return [
        {
            **kind,
            "kind": "MutatingAdmissionPolicy",
            "spec": {
                "matchConstraints": {
                    "resourceRules": [
                        {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
                    ]
                },
                "matchConditions": [
                    {"name": "wanted", "expression": wanted},
                    {"name": "absent", "expression": f"!({there})"},
                ],
                "failurePolicy": "Fail",
                "reinvocationPolicy": "IfNeeded",
                "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": patch}}],
            },
        },
        {**kind, "kind": "MutatingAdmissionPolicyBinding", "spec": {"policyName": name}},
    ]


def test_first_whoever_else_wants_to_be(api: Api) -> None:
    """Two policies, one sorted before ours and one after."""
    documents = [*mesh("a-mesh"), *mesh("z-mesh")]
    api.cluster.apply(*documents)
    try:
        document = asking(labels={**INJECT, "mesh": "yes"})
        alone = asking(labels={"mesh": "yes"})
        wait_until(lambda: len(names(api.answer(alone)[0])) == 2, "the control: both are in force", 30)
        assert names(api.taken(document))[:2] == OURS
        assert len(names(api.taken(document))) == 4
    finally:
        for each in documents:
            api.cluster.kubectl("delete", each["kind"], each["metadata"]["name"])


def test_first_although_a_webhook_prepends(api: Api) -> None:
    cluster = api.cluster
    cluster.daemon(
        "webhook", "python3", HERE / "node/webhook.py", cluster.pki("webhook.crt"), cluster.pki("webhook.key")
    )
    authority = base64.b64encode(Path(cluster.pki("ca.crt")).read_bytes()).decode()
    webhook = {
        "name": "mesh.example.com",
        "clientConfig": {"url": "https://127.0.0.1:9443/", "caBundle": authority},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
        "objectSelector": {"matchLabels": {"mesh": "yes"}},
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
        "reinvocationPolicy": "IfNeeded",
    }
    kind = {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration"}
    cluster.apply({**kind, "metadata": {"name": "mesh"}, "webhooks": [webhook]})
    try:
        alone = asking(labels={"mesh": "yes"})
        wait_until(lambda: names(api.answer(alone)[0]) == ["mesh-init"], "the control: it is in force", 30)
        assert names(api.taken(asking(labels={**INJECT, "mesh": "yes"}))) == [*OURS, "mesh-init"]
    finally:
        cluster.kubectl("delete", "mutatingwebhookconfiguration", "mesh")
        cluster.stop("webhook")


# --- a real pod ------------------------------------------------------------------------------------------------------


def test_one_label_and_the_pod_is_tunnelled(api: Api) -> None:
    """The whole way: the policy's pod runs, and asks from the provider's address."""
    cluster = api.cluster
    change = ("patch", *SETTINGS, "--type=merge", "--patch")
    cluster.kubectl(*change, '{"data": {"userspace": "true"}}')
    try:
        wait_until(lambda: volumes(api.taken(asking()))[-1] == "init-wg-tun", "the setting is in force", 20)
        cluster.secret("injected", "init-wg", {"wg0.conf": cluster.config(0)})
        cluster.apply(pod("real", "injected"))
        cluster.wait_ready("injected", "real")
        asked = cluster.kubectl("exec", "--namespace", "injected", "real", "--", "curl", "-s", "http://203.0.113.80/")
        assert asked == "203.0.113.51"
        second, said = api.answer(pod("second", "injected"))
        assert second, said
        assert "pod real uses the Secret init-wg already" in said
    finally:
        cluster.kubectl("delete", "pod", "real", "--namespace", "injected", "--ignore-not-found")
        cluster.kubectl(*change, '{"data": {"userspace": "false"}}')
