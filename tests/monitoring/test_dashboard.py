"""k8s/monitoring/dashboard.json against Grafana's schema, by Grafana's own library: it keeps what the schema knows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.monitoring.prometheus import MONITORING

DASHBOARD = MONITORING / "dashboard.json"


def unknown(dashboard: Any) -> list[str]:
    """The paths of all that the schema does not know."""
    register_default_plugins()
    return list(lost(dashboard, json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))))


def lost(before: Any, after: Any, path: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        for name, value in before.items():
            yield from lost(value, after[name], f"{path}/{name}") if name in after else (f"{path}/{name}",)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from lost(one, other, f"{path}/{number}")
    elif before != after:
        yield path


def test_it_is_what_the_schema_knows() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    assert unknown(dashboard) == []
    panel = dashboard["panels"][0]
    panel["fieldConfig"]["defaults"]["unti"] = "s"
    panel["gridPos"]["width"] = 4
    assert unknown(dashboard) == ["/panels/0/gridPos/width", "/panels/0/fieldConfig/defaults/unti"], "the control"


def test_it_asks_which_namespace_and_which_pod() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    assert [each["name"] for each in dashboard["templating"]["list"]] == ["datasource", "namespace", "pod"]
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            assert '{namespace="$namespace", pod="$pod"' in target["expr"], panel["title"]
