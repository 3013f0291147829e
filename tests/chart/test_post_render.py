"""contrib/helm-plugin/post-render: the program between Helm and the cluster."""

from __future__ import annotations

import os
import subprocess
from typing import Any

import pytest

from tests.chart.test_chart import app_rendered, component, ours
from tests.containers import manifests
from tests.containers.manifests import ROOT, parse, pod_spec

PLUGIN = ROOT / "contrib/helm-plugin"
__all__ = ["component"]


def run(*names: str, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "KUSTOMIZE": " ".join(manifests.kustomize()), **environment}
    argv = [str(PLUGIN / "post-render"), *names]
    text = app_rendered() if stdin is None else stdin
    return subprocess.run(argv, input=text, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize("variant", ["kernel", "userspace"])
def test_a_named_workload_gets_the_tunnel(component: dict[str, Any], variant: str) -> None:
    ended = run("Deployment/app", INIT_WG_USERSPACE=str(variant == "userspace").lower())
    assert ended.returncode == 0, ended.stderr
    deployment = next(each for each in parse(ended.stdout) if each["kind"] == "Deployment")
    spec = pod_spec(deployment)
    names = [each["name"] for each in spec["initContainers"]]
    assert names == ["init-wg", "init-wg-watchdog", "first"]
    volumes = [each for each in spec["volumes"] if each["name"] != "data"]
    assert {"initContainers": spec["initContainers"][:2], "volumes": volumes} == ours(component, variant)


def test_a_workload_with_the_label_needs_no_name() -> None:
    labelled = app_rendered().replace("metadata:\n  name: app\nspec:\n  replicas", 'metadata:\n  name: app\n  labels: '
                                      '{init-wg.io/inject: "true"}\nspec:\n  replicas')  # fmt: skip
    assert labelled != app_rendered()
    assert "name: init-wg-watchdog" in run(stdin=labelled).stdout


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ((), "no workload has the label init-wg.io/inject"),
        (("Deployment/ap",), "no workload has the label"),
        (("Deployment/app", "StatefulSet/db"), "2 workloads are named, and 1 would have a tunnel"),
        (("app",), "app: a workload is named KIND/NAME"),
        (("Deployment/a'b",), "a workload is named KIND/NAME"),
    ],
)
def test_no_tunnel_is_an_error_and_no_output(names: tuple[str, ...], said: str) -> None:
    ended = run(*names)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert said in ended.stderr


def test_a_text_that_is_no_yaml() -> None:
    ended = run("Deployment/app", stdin="{")
    assert ended.returncode != 0
    assert ended.stdout == ""


def test_the_plugin_runs_this_program() -> None:
    (plugin,) = parse((PLUGIN / "plugin.yaml").read_text())
    assert (plugin["apiVersion"], plugin["type"], plugin["runtime"]) == ("v1", "postrenderer/v1", "subprocess")
    assert plugin["runtimeConfig"] == {"platformCommand": [{"command": "${HELM_PLUGIN_DIR}/post-render"}]}
