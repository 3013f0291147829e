"""Helm 3 and 4 themselves: they render the same, read the chart's kubeVersion, and run the post-renderer."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.chart.helm import CHART, RefusedError, render
from tests.chart.test_chart import APP, GOOD, WRONG
from tests.containers import manifests
from tests.containers.manifests import ROOT, parse
from tests.helm import build
from tests.lab.needs import demand

NEWEST = "1.37.0"
POST_RENDER = ROOT / "contrib/helm-plugin/post-render"


@pytest.fixture(scope="module", autouse=True)
def tools() -> None:
    demand("Helm's suite", build.NEEDS, manifests.NEEDS)


def helm(major: int, *argv: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(build.program(major)), *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def template(major: int, values: Any, folder: Path, kubernetes: str = NEWEST) -> subprocess.CompletedProcess[str]:
    (folder / "values.json").write_text(json.dumps(values))
    where = ("--namespace", "tunnelled", "--kube-version", kubernetes)
    return helm(major, "template", "demo", CHART, "--values", folder / "values.json", *where)


def lines(text: str) -> list[str]:
    """Without empty ones, of which Helm 4 writes more."""
    return [line for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("name", GOOD)
def test_both_render_the_same(tmp_path: Path, name: str) -> None:
    three, four = (template(major, GOOD[name], tmp_path) for major in (3, 4))
    assert three.returncode == four.returncode == 0, three.stderr + four.stderr
    assert lines(three.stdout) == lines(four.stdout)
    library = render(GOOD[name], versions=()).documents.values()
    assert sorted(map(str, parse(four.stdout))) == sorted(str(each) for documents in library for each in documents)


@pytest.mark.parametrize("name", WRONG)
def test_both_refuse_in_the_same_words(tmp_path: Path, name: str) -> None:
    with pytest.raises(RefusedError) as refused:
        render(WRONG[name][0])
    for major in (3, 4):
        ended = template(major, WRONG[name][0], tmp_path)
        assert ended.returncode == 1
        assert str(refused.value).strip().splitlines()[-1] in ended.stderr


@pytest.mark.parametrize("major", [3, 4])
def test_versions_of_kubernetes(tmp_path: Path, major: int) -> None:
    assert template(major, GOOD["workload"], tmp_path, "1.29.0").returncode == 0
    assert "kubeVersion: >=1.29.0-0" in template(major, GOOD["workload"], tmp_path, "1.28.9").stderr
    assert template(major, GOOD["injection"], tmp_path, "1.36.0").returncode == 0
    assert "use the kustomize component" in template(major, GOOD["injection"], tmp_path, "1.35.9").stderr


@pytest.mark.parametrize("major", [3, 4])
def test_the_post_renderer(tmp_path: Path, major: int) -> None:
    """Helm 3 takes the program, Helm 4 the plugin; one without a tunnel installs nothing."""
    environment = {"KUSTOMIZE": " ".join(manifests.kustomize()), "HOME": str(tmp_path)}
    renderer = str(POST_RENDER)
    if major == 4:
        renderer = "init-wg"
        assert helm(4, "plugin", "install", POST_RENDER.parent, **environment).returncode == 0
    argv = ("template", "app", APP, "--post-renderer", renderer, "--post-renderer-args")
    ended = helm(major, *argv, "Deployment/app", **environment)
    assert ended.returncode == 0, ended.stderr
    assert "name: init-wg-watchdog" in ended.stdout
    ended = helm(major, *argv, "Deployment/other", **environment)
    assert ended.returncode != 0
    # Helm 4 drops a plugin's words.
    assert ("no workload has the label" if major == 3 else 'plugin "init-wg" exited with error') in ended.stderr
    assert "kind: Deployment" not in ended.stdout
