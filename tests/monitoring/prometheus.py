"""A real Prometheus, beside a lab's pod, and the project's rules as it reads them."""

from __future__ import annotations

import contextlib
import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.lab.lab import Lab, wait_until
from tests.netns.chaos import fetch

MONITORING = Path(__file__).parents[2] / "k8s" / "monitoring"
LABELS = {"namespace": "default", "pod": "app"}
PORT = 9090


def rules() -> str:
    """The rules without what makes them a resource of Kubernetes."""
    _, _, spec = (MONITORING / "rules.yaml").read_text().partition("\nspec:\n")
    return textwrap.dedent(spec)


def faster(text: str) -> str:
    """The same rules for a lab where minutes are seconds: what they ask stays, how long they wait does not."""
    text = re.sub(r"for: \S+", "for: 2s", text)
    return re.sub(r"\[\d+m\]", "[40s]", text)


class Prometheus:
    """It runs on the lab's node and looks at one pod, each second."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def get(self, path: str) -> Any:
        """The `data` of an answer of its HTTP API."""
        answer = fetch(self._lab.node, "127.0.0.1", path, port=PORT)
        return json.loads(answer)["data"] if answer.startswith("{") else None  # it says otherwise while it starts

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an instant query."""
        found = self.get(f"/api/v1/query?query={quote(expression)}")
        return list(found["result"]) if found else []

    def firing(self) -> set[str]:
        """The names of the alerts that fire now."""
        found = self.get("/api/v1/alerts")
        assert found is not None, "Prometheus does not answer"
        return {each["labels"]["alertname"] for each in found["alerts"] if each["state"] == "firing"}


@contextlib.contextmanager
def running(lab: Lab, text: str, labels: Mapping[str, str] = LABELS) -> Iterator[Prometheus]:
    """Start it with these rules, and wait until it has seen the pod."""
    folder = lab.folder / "prometheus"
    folder.mkdir()
    (folder / "rules.yaml").write_text(text)
    target = {"targets": [f"{lab.pod.addresses[4]}:9999"], "labels": dict(labels)}
    job = {"job_name": "init-wg", "static_configs": [target]}
    often = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config = {"global": often, "rule_files": [str(folder / "rules.yaml")], "scrape_configs": [job]}
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML, too
    argv = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "log").open("wb") as log:
        process = lab.node.popen([*argv, f"--web.listen-address=127.0.0.1:{PORT}"], stdout=log, stderr=log)
    try:
        it = Prometheus(lab)
        wait_until(lambda: it.query("init_wg_up"), "Prometheus' first look at the pod")
        yield it
    finally:
        process.terminate()
        process.wait()
