"""Reading, rendering and checking the manifests in k8s/, offline.

What reads YAML and knows the Kubernetes schemas is installed once into a virtual environment of its own: it is 100 MB,
and nothing else needs it.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from tests.lab.needs import Needs

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "k8s"
CACHE = ROOT / ".cache/manifests"

PINNED = (
    "attrs==26.1.0",
    "importlib_resources==7.1.0",
    "jsonschema==4.26.0",
    "jsonschema-specifications==2025.9.1",
    "kubernetes-validate==1.37.0",
    "packaging==26.3",
    "PyYAML==6.0.3",
    "referencing==0.37.0",
    "rpds-py==2026.9.1",
    "typing_extensions==4.16.0",
)
# Where neither kubectl nor kustomize knows components: Debian 13's, unpacked and not installed (Debian 12 has none),
# from the mirror that this machine uses.
TRIXIE = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {mirror} trixie main\n"
_MIRRORS = ("apt-get", "indextargets", "--format", "$(REPO_URI) $(ORIGIN) $(CODENAME) $(COMPONENT)",
            "Created-By: Packages")  # fmt: skip

_PARSE = "import json, sys, yaml; json.dump([d for d in yaml.safe_load_all(sys.stdin) if d], sys.stdout)"
_VALIDATE = """
import json, sys, kubernetes_validate
problems = []
for document in json.load(sys.stdin):
    name = f"{document.get('kind')} {document.get('metadata', {}).get('name')}"
    try:
        kubernetes_validate.validate(document, sys.argv[1], strict=True)
    except Exception as error:
        problems.append(f"{name}: {getattr(error, 'message', error)}")
json.dump(problems, sys.stdout)
"""


class ManifestsError(Exception):
    """A tool does not work: nothing is said about the manifests."""


@contextmanager
def alone() -> Iterator[None]:
    """One process at a time installs."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _must(*argv: str | Path, stdin: str = "", cwd: Path | None = None) -> str:
    ended = subprocess.run(list(map(str, argv)), input=stdin, capture_output=True, text=True, check=False, cwd=cwd)
    if ended.returncode:
        raise ManifestsError(f"{' '.join(map(str, argv))}: {(ended.stderr or ended.stdout).strip()[-1000:]}")
    return ended.stdout


@cache
def python() -> Path:
    """The interpreter that has PINNED."""
    made = CACHE / "venv"
    stamp = made / "pinned"
    with alone():
        if not stamp.exists() or stamp.read_text() != "\n".join(PINNED):
            shutil.rmtree(made, ignore_errors=True)
            _must(sys.executable, "-m", "venv", made)
            _must(made / "bin/pip", "install", "-q", "--disable-pip-version-check", "--no-deps", *PINNED)
            stamp.write_text("\n".join(PINNED))
    return made / "bin/python"


def parse(text: str) -> list[Any]:
    """Every document of a YAML text."""
    found: list[Any] = json.loads(_must(python(), "-c", _PARSE, stdin=text))
    return found


def load(name: str) -> Any:
    """The one document of a file in k8s/."""
    (document,) = parse((K8S / name).read_text())
    return document


def problems(documents: list[Any], version: str) -> list[str]:
    """What a Kubernetes of this version would not take, field by field; unknown fields too."""
    found: list[str] = json.loads(_must(python(), "-c", _VALIDATE, version, stdin=json.dumps(documents)))
    return found


def _mirror() -> str:
    """Where this Debian gets its packages."""
    for line in _must(*_MIRRORS).splitlines():
        uri, *rest = line.split(" ")
        if rest[0] == "Debian" and "-" not in rest[1] and rest[2:] == ["main"]:
            return uri
    raise ManifestsError("apt knows no mirror of Debian: install kubectl (1.21 or later) or kustomize")


@cache
def kustomize() -> tuple[str, ...]:
    """The command that builds a kustomization. Components came with kubectl 1.21."""
    if shutil.which("kustomize"):
        return "kustomize", "build"
    if shutil.which("kubectl"):
        client = json.loads(_must("kubectl", "version", "--client", "--output=json"))["clientVersion"]
        if (int(client["major"]), int("".join(filter(str.isdigit, client["minor"])))) >= (1, 21):
            return "kubectl", "kustomize"
    program = CACHE / "kustomize/usr/bin/kustomize"
    with alone():
        if not program.exists():
            _fetch_kustomize()
    return str(program), "build"


def _fetch_kustomize() -> None:
    apt = CACHE / "apt"
    shutil.rmtree(apt, ignore_errors=True)
    for folder in ("lists/partial", "cache/archives/partial"):
        (apt / folder).mkdir(parents=True)
    (apt / "sources.list").write_text(TRIXIE.format(mirror=_mirror()))
    (apt / "status").touch()
    options = (
        "Dir::Etc::sourceparts=-",
        f"Dir::Etc::sourcelist={apt}/sources.list",
        f"Dir::State::lists={apt}/lists",
        f"Dir::State::status={apt}/status",
        f"Dir::Cache={apt}/cache",
        "APT::Sandbox::User=root",
    )
    arguments = [part for option in options for part in ("-o", option)]
    if not shutil.which("apt-get"):
        raise ManifestsError("neither kubectl (1.21 or later) nor kustomize is here: install one")
    _must("apt-get", *arguments, "-q", "update")
    _must("apt-get", *arguments, "-q", "download", "kustomize", cwd=apt)
    (package,) = apt.glob("kustomize_*.deb")
    _must("dpkg-deb", "-x", package, CACHE / "kustomize")
    shutil.rmtree(apt)


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    """Render a kustomization, whatever comes of it."""
    return subprocess.run([*kustomize(), str(folder)], capture_output=True, text=True, check=False)


def render(folder: Path, *components: str, resources: Path) -> subprocess.CompletedProcess[str]:
    """Render `resources` with these components of k8s/, in an empty folder made for it."""
    shutil.copy(resources, folder / "resources.yaml")
    for component in components:
        shutil.copytree(K8S / component, folder / component)
    kustomization = {"resources": ["resources.yaml"], "components": list(components)}
    (folder / "kustomization.yaml").write_text(json.dumps(kustomization))
    return build(folder)


def tools() -> str | None:
    """For NEEDS: they are fetched once."""
    try:
        python()
        kustomize()
    except (ManifestsError, OSError) as error:
        return str(error)
    return None


NEEDS = Needs(others=(tools,))


def pod_spec(workload: Any) -> Any:
    """The pod of a Pod, a workload or a CronJob."""
    if workload["kind"] == "CronJob":
        workload = workload["spec"]["jobTemplate"]
    spec = workload["spec"]
    return spec["template"]["spec"] if "template" in spec else spec
