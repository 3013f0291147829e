"""k8s/injection/: generated from the component, complete, of one version. tests/cluster tries it on an API server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.containers import manifests
from tests.containers.injection import literal, render
from tests.containers.manifests import K8S, load, parse, pod_spec
from tests.golden import assert_golden
from tests.lab.needs import demand

HERE = Path(__file__).parent


@pytest.fixture(scope="module", autouse=True)
def tools() -> None:
    demand("the suite of the policies", manifests.NEEDS)


def added(folder: Path, *components: str) -> Any:
    """What the components add to a pod that has nothing of its own."""
    built = manifests.render(folder, *components, resources=HERE / "golden/workloads.yaml")
    assert built.returncode == 0, built.stderr
    return pod_spec(next(each for each in parse(built.stdout) if each["metadata"]["name"] == "without-init"))


def test_it_is_what_the_component_adds(tmp_path: Path) -> None:
    """WRITE_GOLDEN=1 writes what the component is now: then read the difference."""
    plain, userspace = tmp_path / "plain", tmp_path / "userspace"
    for folder in (plain, userspace):
        folder.mkdir()
    made = render(
        (HERE / "injection.template.yaml").read_text(),
        added(plain, "component"),
        added(userspace, "component", "component-userspace"),
    )
    assert_golden(made, K8S / "injection/inject.yaml")


def test_literals() -> None:
    assert literal({"a": [1, True, "x"]}, "Object.spec") == 'Object.spec{\n  a: [1, true, "x"]}'
    assert literal([{"b": {}}], "Object.spec.a") == "[Object.spec.a{\n  b: Object.spec.a.b{\n}}]"
    assert literal({"cpu": "1"}, "Object.spec.resources.limits") == '{"cpu": "1"}'


def test_everything_is_applied_and_every_policy_is_bound() -> None:
    built = manifests.build(K8S / "injection")
    assert built.returncode == 0, built.stderr
    documents = parse(built.stdout)
    listed = sum(len(parse(file.read_text())) for file in (K8S / "injection").glob("*.yaml")) - 1
    assert len(documents) == listed, "kustomization.yaml lists every file"
    for kind in ("MutatingAdmissionPolicy", "ValidatingAdmissionPolicy"):
        policies = {each["metadata"]["name"] for each in documents if each["kind"] == kind}
        bound = {each["spec"]["policyName"] for each in documents if each["kind"] == f"{kind}Binding"}
        assert policies == bound


def test_the_image_is_the_components() -> None:
    (settings,) = [each for each in parse((K8S / "injection/settings.yaml").read_text()) if each["kind"] == "ConfigMap"]
    (image,) = load("component/kustomization.yaml")["images"]
    assert settings["data"]["image"] == f"{image['newName']}:{image['newTag']}"
    assert settings["data"]["userspace"] == "false"


def test_before_1_36_only_the_api_version_differs() -> None:
    before, now = (
        sorted(parse(manifests.build(K8S / name).stdout), key=lambda each: (each["kind"], each["metadata"]["name"]))
        for name in ("injection-before-1.36", "injection")
    )
    changed = [(one["kind"], other["apiVersion"]) for one, other in zip(now, before, strict=True) if one != other]
    assert set(changed) == {
        (kind, "admissionregistration.k8s.io/v1beta1")
        for kind in ("MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding")
    }
    assert [{**each, "apiVersion": ""} for each in before] == [{**each, "apiVersion": ""} for each in now]
