"""Rounds of interleaved runs -> a table: medians, spread, and ratios that a drifting machine does not spoil."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

Samples = Sequence[float]


class Goal(NamedTuple):
    """What a number should be. It is said, never enforced: this is a measurement."""

    limit: float
    at_least: bool = False

    def verdict(self, value: float, show: Callable[[float], str]) -> str:
        met = value >= self.limit if self.at_least else value <= self.limit
        return f"goal {'>=' if self.at_least else '<='} {show(self.limit)}: {'met' if met else 'MISSED'}"


class Row(NamedTuple):
    """One line: samples in seconds (or whatever `show` shows). peer: the row to compare with, run by run."""

    name: str
    samples: Samples
    peer: str | None = None
    goal: Goal | None = None
    ratio_goal: Goal | None = None
    show: Callable[[float], str] = lambda seconds: f"{seconds * 1000:.1f} ms"


def ratio(samples: Samples, peer: Samples) -> float:
    """The median of the ratios within each round: both ran then, one after the other."""
    return median(mine / theirs for mine, theirs in zip(samples, peer, strict=True))


def times(value: float) -> str:
    return f"{value:.2f}x"


def table(title: str, rows: Sequence[Row]) -> None:
    """Print one benchmark."""
    print(f"\n{title}")
    by_name = {row.name: row for row in rows}
    print(f"  {'':48}{'n':>4}{'median':>13}   {'min - max':<26}ratio")
    for row in rows:
        show = row.show
        spread = f"{show(min(row.samples))} - {show(max(row.samples))}"
        words = [f"  {row.name:48}{len(row.samples):4}{show(median(row.samples)):>13}   {spread:<26}"]
        if row.peer:
            factor = ratio(row.samples, by_name[row.peer].samples)
            words.append(f"{times(factor)} {row.peer.partition(':')[0]}")
            if row.ratio_goal:
                words.append(f"  {row.ratio_goal.verdict(factor, times)}")
        if row.goal:
            words.append(f"  {row.goal.verdict(median(row.samples), show)}")
        print(" ".join(words).rstrip(), flush=True)


def interleaved(runs: int, competitors: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Everyone once per round, in turn first: whatever else the machine does happens to all alike."""
    results: dict[str, list[float]] = {name: [] for name in competitors}
    names = list(competitors)
    for number in range(runs):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            progress(f"round {number + 1} of {runs}: {name}")
            results[name].append(competitors[name]())
    progress("")
    return results


def progress(text: str) -> None:
    """What is going on, on a terminal only."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="\r", file=sys.stderr, flush=True)
