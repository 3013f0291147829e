"""python -m tests.documents (`make docs`): docs/configuration.md, and of manifests and chart whatever is said elsewhere
first."""

from __future__ import annotations

import re
from collections.abc import Container
from pathlib import Path

from init_wg.config import node_settings, server_settings
from init_wg.config.settings import TABLE, Setting
from tests import podspec

ROOT = Path(__file__).parents[1]
CONFIGURATION = ROOT / "docs/configuration.md"
CHART = ROOT / "charts/init-wg"
#: In k8s/ the source, in the chart a copy: a chart is packaged with what lies in its own folder.
COPIED = {"injection": ("inject", "refuse", "required", "advise"), "monitoring": ("podmonitor", "rules")}
COPIES = {
    ROOT / f"k8s/{folder}/{name}.yaml": CHART / f"files/{folder}/{name}.yaml"
    for folder, names in COPIED.items()
    for name in names
}
FLUX_EXAMPLE = CHART / "examples/flux/helm-release.yaml"
FLUX = """\
# Made by `make docs` of k8s/component, whose addition to a pod is the patch. CHANGE the chart and the name.
apiVersion: helm.toolkit.fluxcd.io/v2
kind: HelmRelease
metadata:
  name: app
  namespace: tunnelled
spec:
  interval: 10m
  chart:
    spec:
      chart: app
      version: 1.0.0
      sourceRef:
        kind: HelmRepository
        name: charts
  postRenderers:
    - kustomize:
        patches:
          - target:
              kind: Deployment
              name: app
            patch: |
              apiVersion: apps/v1
              kind: Deployment
              metadata:
                name: any
              spec:
                replicas: 1
                strategy: # one key, one pod: also during an update
                  $patch: replace
                  type: Recreate
          - target:
              kind: Deployment
              name: app
            patch: |
"""
VALUES = re.compile(r"(<!-- values: begin -->\n).*(<!-- values: end -->\n)", re.DOTALL)
#: Objects of /status whose keys are kinds of things.
COUNTS = ("repairs", "refused_packets", "dns.queries")
READERS = {"setup": "`init-wg`", "watchdog": "watchdog", "both": "both"}
HEAD = """# Configuration

All settings come from the environment, and all are optional. Invalid values are rejected with exit
code 2; they never fall back to the default. An empty value counts as not set. `make docs` writes this
page from the table in `init_wg/config/settings.py`.

| name | default | read by | meaning |
|---|---|---|---|
"""
SERVER = """
## Server mode

With `WG_MODE=server` these count, too, and [server.md](server.md) says how to use them. Their names are
those of linuxserver/wireguard. The table is in `init_wg/config/server_settings.py`.
`SERVER_ALLOWEDIPS_PEER_name` has the networks behind the peer of that name, with commas between.

| name | default | meaning |
|---|---|---|
"""
NODE = """
## A machine with a VPN

These are for `init-wg node` alone: see [node.md](node.md). The table is in `init_wg/config/node_settings.py`.

| name | default | meaning |
|---|---|---|
"""
TAIL = """
## The WireGuard file

The file is a wg-quick file: Mullvad, Proton, IVPN, AirVPN, or your own. `PreUp`, `PostUp`, `PreDown`
and `PostDown` are never executed. `Table`, `FwMark` and `SaveConfig` are ignored, and the log says so.
`init-wg check FILE` validates a file anywhere, without privileges, and prints what it would set up.
"""


def configuration() -> str:
    """The page."""
    common = "".join(
        f"| `{each.name}` | {_default(each)} | {READERS[each.reader]} | {each.meaning} |\n" for each in TABLE
    )
    server = "".join(f"| `{each.name}` | {_default(each)} | {each.meaning} |\n" for each in server_settings.TABLE)
    node = "".join(f"| `{each.name}` | {_default(each)} | {each.meaning} |\n" for each in node_settings.TABLE)
    return HEAD + common + TAIL + SERVER + server + NODE + node


def _default(setting: Setting) -> str:
    return f"`{setting.default}`" if setting.default else "empty"


def named_fields(heading: str, page: str = "docs/status-page.md") -> list[str]:
    """The fields of a JSON object that this page lists below the heading that ends with this."""
    sections = (ROOT / page).read_text().split("\n## ")[1:]
    section = next(text for text in sections if text.partition("\n")[0].endswith(heading))
    return re.findall(r"^\| `([\w.\[\]]+)` \|", section, re.MULTILINE)


def fields(value: object, whole: Container[str] = (), path: str = "") -> list[str]:
    """The paths of all values in an object, as `named_fields` gives them, in its order. whole: objects whose own keys
    are data. Of a list the first element stands for all."""
    if isinstance(value, dict) and path not in whole:
        return [each for key, inner in value.items() for each in fields(inner, whole, f"{path}.{key}".lstrip("."))]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return fields(value[0], whole, f"{path}[]")
    return [path]


def unnamed_fields(value: object, heading: str) -> list[str]:
    """Fields that are not listed there. An object that is null, or a list that is empty, has none."""
    named = named_fields(heading)
    return [
        path for path in fields(value, COUNTS)
        if path not in named and not any(name.startswith((f"{path}.", f"{path}[].")) for name in named)
    ]  # fmt: skip


def values(text: str) -> list[tuple[str, str, str]]:
    """(value, default, description) of each entry of a values.yaml under a comment that begins with "# --"."""
    found = []
    path: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in text.splitlines():
        if remark := re.match(r" *# (-- )?(.*)", line):
            comment = [remark[2]] if remark[1] else [*comment, remark[2]] if comment else []
            continue
        entry = re.match(r"( *)(\w+):(.*)", line)
        if entry and (comment or not entry[3]):
            depth = len(entry[1])
            path = [*(each for each in path if each[0] < depth), (depth, entry[2])]
            if comment:
                found.append((".".join(name for _, name in path), entry[3].strip() or "...", " ".join(comment)))
        comment = []
    return found


def chart() -> str:
    """The chart's README, with a table of the values between its two marks."""
    rows = [f"| `{name}` | `{default}` | {meaning} |\n" for name, default, meaning in
            values((CHART / "values.yaml").read_text())]  # fmt: skip
    table = "| value | default | meaning |\n|---|---|---|\n" + "".join(rows)
    return VALUES.sub(lambda marks: marks[1] + table + marks[2], (CHART / "README.md").read_text())


def flux() -> str:
    """A HelmRelease with the component as a post-renderer's patch, because Flux takes no components there."""
    component = ROOT / "k8s/component"
    patch = "".join(f"              {line}\n" if line else "\n" for line in
                    (component / "workload.yaml").read_text().splitlines())  # fmt: skip
    images = (component / "kustomization.yaml").read_text().partition("\nimages:\n")[2]
    indented = "".join(f"        {line}\n" for line in images.splitlines())
    return FLUX + patch + "        images:\n" + indented


if __name__ == "__main__":
    CONFIGURATION.write_text(configuration())
    (CHART / "README.md").write_text(chart())
    for file, text in podspec.files().items():
        file.write_text(text)
    FLUX_EXAMPLE.write_text(flux())
    for source, copy in COPIES.items():
        copy.write_text(source.read_text())
