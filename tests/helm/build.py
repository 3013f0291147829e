"""python -m tests.helm.build: Helm 3 and 4 into .cache/helm, built once (four minutes each on two cores).

Go's checksum database vouches that a version is what it was for everybody else.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.cluster.build import go
from tests.containers.manifests import ROOT
from tests.lab.needs import Needs

CACHE = ROOT / ".cache/helm"
#: The major version -> the module's version.
PINNED = {3: "v3.22.0", 4: "v4.3.1"}


def program(major: int) -> Path:
    """Where a Helm is, or will be."""
    return CACHE / PINNED[major] / "helm"


def helms() -> str | None:
    """For NEEDS."""
    absent = [f"Helm {major}" for major in PINNED if not program(major).exists()]
    return f"{' and '.join(absent)}: make test-helm builds them" if absent else None


NEEDS = Needs(others=(helms,))


def build(major: int) -> None:
    """Build one Helm, unless it is there. Raises CalledProcessError."""
    if program(major).exists():
        return
    command = go()
    if command is None:
        sys.exit("Helm is built from Go modules: Go 1.21 or later is missing")
    environment = {**os.environ, "GOBIN": str(program(major).parent), "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false"}
    argv = [
        "nice",
        command,
        "install",
        "-trimpath",
        "-ldflags=-s -w",
        f"helm.sh/helm/v{major}/cmd/helm@{PINNED[major]}",
    ]
    CACHE.mkdir(parents=True, exist_ok=True)
    subprocess.run(argv, cwd=CACHE, env=environment, check=True)


if __name__ == "__main__":
    for each in PINNED:
        build(each)
