"""Pods and workloads for the tests: an application, and what k8s/ adds to it in the variant that this node can run."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from tests.containers.manifests import K8S

from .build import BIN, CURL, HERE
from .cluster import Cluster, ClusterError

INJECT = {"init-wg.io/inject": "true"}
LEAST = {
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
ASK = ["curl", "--fail", "--silent", "--show-error", "--max-time", "10", "https://api.ipify.org"]
IDLE = ["sh", "-c", "trap exit TERM; sleep 100000 & wait"]
NOISE = {"name": "noise", "configMap": {"name": "noise"}}


def asking(seconds: int) -> list[str]:
    """The command of an application that asks again and again, and prints each answer."""
    return ["sh", "-c", f"trap exit TERM; while :; do {' '.join(ASK)} && echo; sleep {seconds} & wait; done"]


def typed(cluster: Cluster, line: str) -> str:
    """A command of k8s/README.md, as somebody types it in that folder; its output."""
    ended = cluster.run("sh", "-euc", line, cwd=K8S)
    assert ended.returncode == 0, f"{line}\n{ended.stderr}"
    return ended.stdout


def container(name: str = "app", command: list[str] | None = None, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "image": CURL,
        "command": command or IDLE,
        "securityContext": copy.deepcopy(LEAST),
        **more,
    }


def noisy(name: str, *arguments: str) -> dict[str, Any]:
    """An application that never keeps quiet."""
    mounts = [{"name": "noise", "mountPath": "/noise"}]
    return container(name, ["python3", "/noise/noise.py", *arguments], volumeMounts=mounts)


def pod(name: str, namespace: str, *containers: dict[str, Any], **spec: Any) -> dict[str, Any]:
    """A pod that has nothing of ours."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"terminationGracePeriodSeconds": 2, "containers": list(containers) or [container()], **spec},
    }


def workload(kind: str, name: str, namespace: str, spec: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A workload with the label, around a pod's spec."""
    labels = {"app": name}
    template = {"metadata": {"labels": labels}, "spec": {"terminationGracePeriodSeconds": 2, **spec}}
    inner: dict[str, Any] = {"template": template, **more}
    if kind not in ("Job", "CronJob"):
        inner["selector"] = {"matchLabels": labels}
    if kind == "CronJob":
        inner = {"schedule": "0 0 1 1 *", "jobTemplate": {"spec": inner}}
    return {
        "apiVersion": "batch/v1" if kind in ("Job", "CronJob") else "apps/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace, "labels": dict(INJECT)},
        "spec": inner,
    }


def tunnelled(cluster: Cluster, document: dict[str, Any], secret: str = "init-wg", variant: str = "component") -> str:
    """What the components make of it; the text of a YAML file. This kernel may have no WireGuard: userspace, too."""
    with tempfile.TemporaryDirectory(prefix="init-wg-") as name:
        folder = Path(name)
        (folder / "resources.yaml").write_text(json.dumps(document))
        components = [variant, "component-userspace"]
        for each in components:
            shutil.copytree(K8S / each, folder / each)
        kustomization = {"resources": ["resources.yaml"], "components": components}
        (folder / "kustomization.yaml").write_text(json.dumps(kustomization))
        ended = cluster.run(str(BIN / "kubectl"), "kustomize", str(folder))
    if ended.returncode:
        raise ClusterError(ended.stderr)
    return ended.stdout.replace("secretName: init-wg\n", f"secretName: {secret}\n")


def noise(cluster: Cluster, namespace: str) -> None:
    """The application's program, for the pods of a namespace."""
    metadata = {"name": "noise", "namespace": namespace}
    data = {"noise.py": (HERE / "node/noise.py").read_text()}
    cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
