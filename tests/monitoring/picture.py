"""python -m tests.monitoring.picture [--seconds N]: the dashboard as a picture, docs/pictures/dashboard.png. Root.

A lab's pod has traffic and faults, and a real Prometheus looks at it. Then each panel of k8s/monitoring/dashboard.json
is asked for, and Matplotlib draws the answers: Grafana itself is not here.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import matplotlib.pyplot as plot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.documents import ROOT
from tests.lab.faults import FLUSHED_RULESET, ip
from tests.lab.lab import NEEDS, Lab
from tests.lab.needs import missing
from tests.monitoring.prometheus import LABELS, MONITORING, Prometheus, rules, running
from tests.netns.chaos import Watchdog

PICTURE = ROOT / "docs" / "pictures" / "dashboard.png"
NAMES = {"$namespace": LABELS["namespace"], "$pod": LABELS["pod"], "$__rate_interval": "20s", "$__range": "10m"}
#: A name each fifth of a second.
QUERIES = """
import dns.exception, dns.resolver, time
while True:
    time.sleep(0.2)
    try: dns.resolver.resolve("example.com", lifetime=0.5)
    except dns.exception.DNSException: pass
"""
COLOURS = {"green": "#1a7f4b", "orange": "#b8620b", "red": "#b3261e", "": "#566270"}
#: Of Grafana, in words.
UNITS = {"s": "s", "Bps": "B/s", "pps": "packets/s", "reqps": "queries/s"}


@contextlib.contextmanager
def busy(lab: Lab) -> Iterator[None]:
    """What applications do, and what the kill-switch refuses them."""
    web = lab.web.addresses[4]
    quiet = subprocess.DEVNULL
    commands = (["ping", "-s", "1200", "-i", "0.02", web], ["ping", "-I", "eth0", "-i", "0.5", web],
                [sys.executable, "-c", QUERIES])  # fmt: skip
    working = [lab.pod.popen(argv, stdout=quiet, stderr=quiet) for argv in commands]
    try:
        yield
    finally:
        for each in working:
            each.terminate()
            each.wait()


def story(lab: Lab, seconds: float) -> None:
    """Quiet, some changes, a silent provider that is left for the next one, and quiet again."""
    began = time.monotonic()

    def until(share: float) -> None:
        time.sleep(max(0.0, began + share * seconds - time.monotonic()))

    until(0.25)
    for fault in (FLUSHED_RULESET.break_it, ip("rule", "delete", "table", "51820"), ip("link", "delete", "wg0")):
        fault(lab)
        time.sleep(4)
    until(0.55)
    lab.provider.silence()
    until(0.8)
    lab.provider.speak()
    until(1.0)


def draw(prometheus: Prometheus, since: float, until: float) -> Figure:
    """All panels, where they are in the dashboard."""
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    figure: Figure = plot.figure(figsize=(15, 13), facecolor="#f6f7f9")
    rows = sorted({panel["gridPos"]["y"] for panel in panels})
    heights = [1 if row == 0 else 3 for row in rows]
    room = {"left": 0.05, "right": 0.98, "top": 0.96, "bottom": 0.04, "wspace": 2.5, "hspace": 0.35}
    grid = figure.add_gridspec(len(rows), 24, height_ratios=heights, **room)
    for panel in panels:
        at = panel["gridPos"]
        axes = figure.add_subplot(grid[rows.index(at["y"]), at["x"] : at["x"] + at["w"]])
        axes.set_title(panel["title"], loc="left", fontsize=10, fontweight="bold")
        (_number if panel["type"] == "stat" else _lines)(axes, panel, prometheus, since, until)
    return figure


def _number(axes: Axes, panel: dict[str, Any], prometheus: Prometheus, _since: float, until: float) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    (sample,) = prometheus.get(f"/api/v1/query?time={until}&query={quote(_filled(panel['targets'][0]['expr']))}")[
        "result"
    ]
    value, words, colour = float(sample["value"][1]), "", ""
    if panel["options"].get("textMode") == "name":
        words = _legend(panel["targets"][0], sample)
    for mapping in defaults.get("mappings", ()):
        words, colour = (mapping["options"][f"{value:g}"][each] for each in ("text", "color"))
    for step in defaults.get("thresholds", {}).get("steps", ()):
        if step["value"] is None or value >= step["value"]:
            colour = step["color"]
    axes.set_facecolor(COLOURS[colour])
    axes.set_xticks([])
    axes.set_yticks([])
    words = words or f"{value:.0f} {UNITS.get(defaults.get('unit', ''), '')}"
    axes.text(0.5, 0.5, words, ha="center", va="center", fontsize=18, color="white", transform=axes.transAxes)


def _lines(axes: Axes, panel: dict[str, Any], prometheus: Prometheus, since: float, until: float) -> None:
    for target in panel["targets"]:
        asked = f"query={quote(_filled(target['expr']))}&start={since}&end={until}&step=1"
        for series in prometheus.get(f"/api/v1/query_range?{asked}")["result"]:
            moments, values = zip(*((moment - since, float(value)) for moment, value in series["values"]), strict=True)
            axes.plot(moments, values, label=_legend(target, series), linewidth=1.4)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.3)  # room for the legend
    axes.set_xlim(0, until - since)
    unit = UNITS.get(panel["fieldConfig"]["defaults"].get("unit", ""), "")
    axes.set_ylabel(unit, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(color="#d9dee5")
    if axes.lines:
        axes.legend(fontsize=8, loc="upper left", ncols=2)


def _filled(expression: str) -> str:
    for name, value in NAMES.items():
        expression = expression.replace(name, value)
    return expression


def _legend(target: dict[str, Any], series: dict[str, Any]) -> str:
    label: Callable[[re.Match[str]], str] = lambda found: str(series["metric"].get(found[1], ""))  # noqa: E731
    return re.sub(r"{{(\w+)}}", label, target["legendFormat"])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.monitoring.picture", description="Draw the dashboard.")
    parser.add_argument("--seconds", type=float, default=300.0, help="what it shows")
    given = parser.parse_args()
    if lacking := missing(NEEDS):
        print(f"the picture needs {lacking}", file=sys.stderr)
        return 3
    with Lab() as lab:
        env = {
            "WG_CONFIG": str(lab.config_folder),
            "VERIFY_URL": f"http://{lab.web.addresses[4]}/",
            "VERIFY_INTERVAL": "5",
        }
        with Watchdog(lab, env=env) as watchdog:
            watchdog.settle()
            with running(lab, rules()) as prometheus, busy(lab):
                time.sleep(25)  # until the rates have a whole interval
                since = time.time()
                story(lab, given.seconds)
                figure = draw(prometheus, since, time.time())
    figure.savefig(PICTURE, dpi=80)
    print(PICTURE.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
