"""The manifests of k8s/ that repeat the addition to a pod in k8s/component/workload.yaml. `make docs` writes them.

One source, with the reasons in comments. Text in, text out: the files stay as a person would write them, and a test
(tests/containers/test_manifests.py) reads them with a YAML parser and compares them with the components' output.
"""

from __future__ import annotations

import re
from pathlib import Path

K8S = Path(__file__).parents[1] / "k8s"
COMPONENT = K8S / "component"
WORKLOADS = "Deployment|StatefulSet|DaemonSet|ReplicaSet"
#: Where a kind has its pod.
PATHS = {"CronJob": "/spec/jobTemplate/spec/template", "Pod": ""}

CRONJOB = """\
# Made by `make docs` of workload.yaml, which has the reasons, where a CronJob has its pod template.
apiVersion: batch/v1
kind: CronJob
metadata:
  name: any
spec:
  jobTemplate:
    spec:
      template:
"""
BARE = """\
# Made by `make docs` of workload.yaml, which has the reasons, for a Pod that stands alone.
apiVersion: v1
kind: Pod
"""
POD = """\
# Made by `make docs`: one pod, for reading and to begin with. It is {made}.
#   kubectl apply -f namespace/namespace.yaml
#   kubectl --namespace tunnelled create secret generic init-wg --from-file=wg0.conf=/path/to/provider.conf
#   kubectl apply -f {file}
apiVersion: v1
kind: Pod
metadata:
  name: tunnelled
  namespace: tunnelled
  labels:
    init-wg.io/inject: "true"
"""
APP = """\
  containers:
    # Yours. It has no capability and no part in any of this.
    - name: app
      image: docker.io/curlimages/curl:8.11.1
      # The first process of a container gets no signal that it has not asked for: without the trap, it ends after 30 s.
      command:
        - sh
        - -c
        - "trap exit TERM; while :; do curl --silent --show-error https://api.ipify.org; echo; sleep 60 & wait; done"
      securityContext:
        runAsNonRoot: true
        runAsUser: 65532
        allowPrivilegeEscalation: false
        capabilities:
          drop: [ALL] # NET_RAW too: AF_XDP sockets pass every firewall inside the pod
        seccompProfile:
          type: RuntimeDefault
"""
TUN_VOLUME = """\
    - name: init-wg-tun
      hostPath:
        path: /dev/net/tun
        type: CharDevice
"""


def files() -> dict[Path, str]:
    """Each file that is made, with its text."""
    return {
        COMPONENT / "cronjob.yaml": CRONJOB + _indented(_bare(_template()), 8),
        COMPONENT / "bare-pod.yaml": BARE + _bare(_template()).replace("metadata:\n", "metadata:\n  name: any\n", 1),
        K8S / "pod.yaml": POD.format(made="what component/ makes of a workload", file="pod.yaml") + _complete(),
        K8S / "pod-userspace.yaml": _userspace(),
        **{
            file: _for_each_kind(file.read_text())
            for file in (
                K8S / "component-userspace/kustomization.yaml",
                K8S / "component-before-1.29/kustomization.yaml",
            )
        },
    }


def _template() -> str:
    """The pod template: its metadata and its spec, from the left margin."""
    template = (COMPONENT / "workload.yaml").read_text().partition("\n  template:\n")[2]
    return re.sub("(?m)^    ", "", template)


def _indented(text: str, by: int) -> str:
    return re.sub("(?m)^(?=.)", " " * by, text)


def _bare(text: str) -> str:
    """Without comments."""
    return re.sub(r"(?m)^ *#.*\n| +# .*$", "", text)


def _expanded(text: str) -> str:
    """Each `*name` replaced by the block that `&name` marks: for readers who know no anchors."""
    blocks: dict[str, str] = {}
    for margin, name, block in re.findall(r"(?m)^( *)[^ #\n].*: &(\w+)\n((?:\1 +.*\n)+)", text):
        blocks[name] = re.sub(f"(?m)^{margin}", "", _bare(block))

    def put(alias: re.Match[str]) -> str:
        return alias[1] + alias[2] + "\n" + _indented(blocks[alias[3]], len(alias[1]))

    return re.sub(r"(?m)^( *)(.*:) \*(\w+)\n", put, re.sub(r"(?m) &\w+$", "", text))


def _image() -> str:
    said = (COMPONENT / "kustomization.yaml").read_text()
    name, tag = re.findall(r"(?m)^ *new(?:Name|Tag): (.*)$", said)
    return f"{name}:{tag}"


def _complete() -> str:
    """The spec of a whole pod, with an application and our image."""
    spec = _expanded(_template()).partition("\nspec:\n")[2].replace("image: init-wg\n", f"image: {_image()}\n")
    containers, mark, volumes = spec.partition("  volumes:\n")
    return "spec:\n" + containers + APP + mark + volumes


def _userspace() -> str:
    """As component-userspace/ makes it."""
    head = POD.format(made="pod.yaml for nodes whose kernel has no WireGuard", file="pod-userspace.yaml")
    ours, mark, rest = _complete().partition("  containers:\n")
    setting = r"\g<0>\n\1env:\n\1  - name: WG_IMPLEMENTATION\n\1    value: userspace"
    ours = re.sub("(?m)^( *)command: .*", setting, ours)
    ours = re.sub("(?m)^( *)mountPath: /run$", r"\g<0>\n        - name: init-wg-tun\n\1mountPath: /dev/net/tun", ours)
    return head + ours.replace("memory: 128Mi", "memory: 256Mi") + mark + rest + TUN_VOLUME


def _for_each_kind(text: str) -> str:
    """A component's JSON patches: those of CronJobs and Pods are those of the kinds before them, at other paths."""
    head, *patches = re.split(r"(?m)^(?=  - target:$)", text)
    by_kind = {re.findall("kind: (.*)", each)[0]: each for each in patches}
    written = {kind: each for kind, each in by_kind.items() if kind not in PATHS}
    jobs = next(kind for kind in written if kind.endswith("Job"))
    workloads = next(kind for kind in written if kind.startswith(WORKLOADS))

    def other(source: str, kind: str) -> str:
        return written[source].replace(source, kind).replace("/spec/template/", f"{PATHS[kind]}/")

    return head + "".join(written.values()) + other(jobs, "CronJob") + other(workloads, "Pod")
