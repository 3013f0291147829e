"""Rendering charts offline, by Helm 4's own library (helm-python-sdk), and checking the outcome for a Kubernetes.

It joins the virtual environment of tests/containers/manifests.py, where only these tests look for it. One process there
answers all questions: it loads the library, the chart and the schemas once, and an answer takes milliseconds.

    python -m tests.chart.helm FOLDER      packages the chart into a folder (`make chart`)
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from tests.containers import manifests
from tests.containers.manifests import ROOT, ManifestsError
from tests.lab.needs import Needs

CHART = ROOT / "charts/init-wg"
PINNED = "helm-python-sdk==0.2.2"
#: Rendered for, and checked against: the oldest and the newest Kubernetes that the chart is for.
VERSIONS = ("1.29", "1.37")

_INSTALL = """
import importlib.util, pathlib, subprocess, sys
subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", sys.argv[1]],
               check=True)
# The wheel has the library three times, of 85 MB each, because a wheel has no links. One is loaded.
from helm_python import _native
loaded = pathlib.Path(_native.library_path).resolve()
for copy in loaded.parent.glob("libhelm_c.*"):
    if copy != loaded:
        copy.unlink()
"""

_ANSWER = """
import functools, json, sys
import helm_python, yaml
from kubernetes_validate import utils
from helm_python import Chart, errors
from helm_python.chart import lint, package
utils.schema_contents = functools.cache(utils.schema_contents)
charts = {}

def problems(documents, version):
    found = []
    for document in documents:
        try:
            utils.validate(document, version, strict=True)
        except Exception as error:
            name = f"{document.get('kind')} {document.get('metadata', {}).get('name')}"
            found.append(f"{name}: {version}: {getattr(error, 'message', error)}")
    return found

def render(chart, values, name, namespace, versions):
    if chart not in charts:
        charts[chart] = Chart.load(chart)
    try:
        charts[chart].validate_schema(values)
        texts = charts[chart].render(values, name=name, namespace=namespace)
    except errors.HelmError as error:
        return {"error": str(error)}
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    documents = {file: [each for each in yaml.load_all(text, loader) if each] for file, text in texts.items()
                 if file.endswith(".yaml")}
    every = [each for file in documents.values() for each in file if "kind" in each]
    return {"texts": texts, "documents": documents,
            "problems": [each for version in versions for each in problems(every, version)]}

questions = {"render": render, "lint": lambda **asked: lint(**asked), "package": lambda **asked: package(**asked)}
for line in sys.stdin:
    asked = json.loads(line)
    print(json.dumps(questions[asked.pop("question")](**asked)), flush=True)
"""


class Rendered(NamedTuple):
    """texts, documents: by template, as `workload.yaml` and `tests/ready.yaml`. problems: what a Kubernetes refuses."""

    texts: dict[str, str]
    documents: dict[str, list[Any]]
    problems: list[str]

    @property
    def every(self) -> list[Any]:
        """All documents that are objects of Kubernetes."""
        return [each for file in self.documents.values() for each in file if "kind" in each]

    def one(self, kind: str) -> Any:
        """The one object of this kind, outside the chart's own tests."""
        (found,) = [
            each
            for file, documents in self.documents.items()
            for each in documents
            if not file.startswith("tests/") and each.get("kind") == kind
        ]
        return found


class RefusedError(Exception):
    """Helm refuses the values; its words."""


@cache
def _process() -> subprocess.Popen[str]:
    python = manifests.python()
    stamp = python.parents[1] / "helm"
    with manifests.alone():
        if not stamp.exists() or stamp.read_text() != PINNED:
            made = subprocess.run([python, "-c", _INSTALL, PINNED], capture_output=True, text=True, check=False)
            if made.returncode:
                raise ManifestsError(f"{PINNED}: {made.stderr.strip()[-600:]}")
            stamp.write_text(PINNED)
    pipe = subprocess.PIPE
    return subprocess.Popen([python, "-c", _ANSWER], stdin=pipe, stdout=pipe, text=True)


def ask(question: str, **asked: Any) -> Any:
    """One answer of the process that has the library."""
    process = _process()
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps({"question": question, **asked}) + "\n")
    process.stdin.flush()
    if not (line := process.stdout.readline()):
        raise ManifestsError("Helm's library ended: its last words are above")
    return json.loads(line)


def render(
    values: dict[str, Any] | None = None,
    *,
    chart: Path = CHART,
    name: str = "demo",
    namespace: str = "tunnelled",
    versions: tuple[str, ...] = VERSIONS,
) -> Rendered:
    """Render a chart. Raises RefusedError in Helm's words."""
    answer = ask("render", chart=str(chart), values=values or {}, name=name, namespace=namespace, versions=versions)
    if "error" in answer:
        raise RefusedError(answer["error"])

    def short(file: str) -> str:
        return file.partition("/templates/")[2]

    texts = {short(file): text for file, text in answer["texts"].items()}
    return Rendered(texts, {short(file): each for file, each in answer["documents"].items()}, answer["problems"])


def library() -> str | None:
    """For NEEDS: it is installed once."""
    try:
        _process()
    except (ManifestsError, OSError) as error:
        return str(error)
    return None


NEEDS = Needs(others=(*manifests.NEEDS.others, library))


if __name__ == "__main__":
    print(ask("package", path=str(CHART), destination=sys.argv[1]))
