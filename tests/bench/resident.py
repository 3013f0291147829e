"""The benchmarks of the watchdog: how soon a fault is repaired and a silent peer left, and what it costs to have one.

Moments come from the kernel, not from a poll: this process listens to the pod's own events. A fault begins with the
first event and ends with the last one, or with the first answer through the tunnel if that comes later.
"""

from __future__ import annotations

import http.client
import os
import re
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from tests.bench.report import Goal, Row, Samples, progress, table
from tests.lab.faults import FLUSHED_RULESET, Act, ip, kill_daemon, nft, state_of
from tests.lab.lab import ECHO, Lab, Provider, wait_until
from tests.netns.chaos import CALM, PORT, Watchdog
from watchdog.events import Events

#: One change each, of twelve kinds.
FAULTS: Mapping[str, Act] = {
    "interface deleted": ip("link", "delete", "wg0"),
    "interface down": ip("link", "set", "wg0", "down"),
    "addresses flushed": ip("address", "flush", "dev", "wg0"),
    "rule deleted": ip("rule", "delete", "table", "51820"),
    "rogue rule": ip("rule", "add", "pref", "10", "lookup", "main"),
    "table flushed": ip("route", "flush", "table", "51820"),
    "rogue route": ip("route", "add", "128.0.0.0/1", "via", "10.42.1.1", "dev", "eth0"),
    "kill-switch deleted": nft("delete table inet init_wg\n"),
    "kill-switch flushed": nft("flush table inet init_wg\n"),
    "gate deleted": nft("delete table netdev init_wg\n"),
    "whole ruleset flushed": FLUSHED_RULESET.break_it,
    "wireguard-go killed": kill_daemon,
}
ASK_EVERY = 0.002
SILENCE_AFTER = (2.0, 3.1, 4.3, 5.7)  # seconds after the last change: a peer asks nobody when it may die
LIMIT = 20.0


def quantile(samples: Samples, share: float) -> float:
    """The sample below which this share of all is, or lies."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


@contextmanager
def kept(**env: str) -> Iterator[tuple[Lab, Watchdog]]:
    with Lab() as lab, Watchdog(lab, env=env) as watchdog:
        watchdog.settle()
        yield lab, watchdog


class Witness(threading.Thread):
    """Notes when the kernel told of changes in the pod, and when its traffic was answered through the tunnel."""

    def __init__(self, lab: Lab) -> None:
        super().__init__(daemon=True)
        with lab.pod.inside():
            self.events = Events()
            self.echo = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.echo.setblocking(False)
        self.echo.connect((lab.web.addresses[4], ECHO))
        self.changes: list[float] = []
        self.answers: list[float] = []
        self.over = False

    def run(self) -> None:
        asked = 0.0
        while not self.over:
            if time.monotonic() > asked + ASK_EVERY:
                asked = time.monotonic()
                with suppress(OSError):
                    self.echo.send(b"?")
            for ready in select.select([*self.events.sockets, self.echo], [], [], ASK_EVERY)[0]:
                now = time.monotonic()
                if ready is not self.echo:
                    if self.events.read(ready.fileno()).messages:
                        self.changes.append(now)
                    continue
                with suppress(OSError):
                    self.echo.recv(2048)
                    self.answers.append(now)

    def end(self) -> float:
        """Seconds from the first change to the last, and to an answer after that."""
        self.over = True
        self.join()
        self.events.close()
        self.echo.close()
        answered = next(moment for moment in self.answers if moment >= self.changes[-1])
        return answered - self.changes[0]


def seen(lab: Lab) -> str:
    """All that the faults of this module change."""
    return state_of(lab) + lab.pod.run(["ip", "route", "show"]).stdout


def timed(lab: Lab, act: Act, before: str) -> float:
    """Make a fault, and wait until all is as it was before."""
    witness = Witness(lab)
    witness.start()
    act(lab)

    def mended() -> bool:
        answered = witness.changes and witness.answers and witness.answers[-1] > witness.changes[-1]
        return bool(answered) and seen(lab) == before

    wait_until(mended, "the repair", LIMIT)
    return witness.end()


def repair(rounds: int) -> None:
    """From a fault to its repair, of twelve kinds in turn: the whole distribution."""
    results: dict[str, list[float]] = {}
    with kept() as (lab, watchdog):
        before = seen(lab)
        faults = {name: act for name, act in FAULTS.items() if act is not kill_daemon or not lab.kernel_wireguard}
        for number in range(rounds):
            for name, act in faults.items():
                progress(f"round {number + 1} of {rounds}: {name}")
                results.setdefault(name, []).append(timed(lab, act, before))
                watchdog.settle()
                time.sleep(CALM)  # else the next one would look like a fight
        runs = watchdog.runs()
    progress("")
    everything = [seconds for samples in results.values() for seconds in samples]
    table(
        "repair: from the kernel's first event to its last one, all as before, and an answer through the tunnel "
        f"({len(everything)} faults, {runs} runs of the setup; {load()})",
        [Row(name, samples) for name, samples in results.items()],
    )
    goal = Goal(0.25)
    for name, value, verdict in (
        ("p50 of all", quantile(everything, 0.5), ""),
        ("p90 of all", quantile(everything, 0.9), ""),
        ("p99 of all", quantile(everything, 0.99), goal.verdict(quantile(everything, 0.99), milliseconds)),
    ):
        print(f"  {name:48}    {milliseconds(value):>13}   {verdict}".rstrip())


def peer(rounds: int) -> None:
    """A silent provider: until :9999 is red, and until traffic comes from the next one."""
    red: list[float] = []
    over: list[float] = []
    with Lab() as lab, Watchdog(lab, env={"WG_CONFIG": str(lab.config_folder)}) as watchdog:
        watchdog.settle()
        for number in range(rounds):
            here, there = (lab.provider, lab.provider2) if number % 2 == 0 else (lab.provider2, lab.provider)
            progress(f"round {number + 1} of {rounds}")
            wait_until(partial(arrives_from, lab, here), "the provider's turn")
            time.sleep(SILENCE_AFTER[number % len(SILENCE_AFTER)])
            here.silence()
            started = time.monotonic()
            wait_until(lambda: watchdog.ask().startswith("VPN is not active"), "red")
            red.append(time.monotonic() - started)
            wait_until(partial(arrives_from, lab, there), "the next server", 60)
            over.append(time.monotonic() - started)
            here.speak()
            watchdog.settle()
    progress("")
    table(
        "peer: from a provider's silence",
        [
            Row("first doubts: GET / says 503", red, goal=Goal(15.0), show=seconds_of),
            Row("traffic flows by the next server", over, goal=Goal(20.0), show=seconds_of),
        ],
    )


def arrives_from(lab: Lab, provider: Provider) -> bool:
    return lab.traffic_source(4, 0.2) == provider.addresses[4]


def footprint(minutes: int) -> None:
    """What an idle watchdog costs: memory, processor, wake-ups."""
    resident: list[float] = []
    proportional: list[float] = []
    cpu: list[float] = []
    wakes: list[float] = []
    with kept() as (_, watchdog):
        time.sleep(5)  # what the start has left to do
        for number in range(minutes):
            progress(f"minute {number + 1} of {minutes}")
            before = usage(watchdog.pid)
            time.sleep(60)
            after = usage(watchdog.pid)
            cpu.append((after[0] - before[0]) / 60)
            wakes.append((after[1] - before[1]) / 60)
            resident.append(watchdog.resident() / 1024)
            rollup = Path(f"/proc/{watchdog.pid}/smaps_rollup").read_text()
            proportional.append(int(found(r"^Pss: +(\d+)", rollup)) / 1024)
    progress("")
    table(
        f"footprint: a watchdog with nothing to do ({load()})",
        [
            Row("resident memory", resident, goal=Goal(16.0), show=lambda n: f"{n:.1f} MiB"),
            Row("proportional share of it", proportional, goal=Goal(16.0), show=lambda n: f"{n:.1f} MiB"),
            Row("processor, of one core", cpu, goal=Goal(0.001), show=lambda n: f"{n * 100:.3f} %"),
            Row("wake-ups a second", wakes, show=lambda n: f"{n:.2f}"),
        ],
    )


def usage(pid: int) -> tuple[float, int]:
    """Seconds of processor time so far, and how often it has gone to sleep."""
    nanoseconds = int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])
    status = Path(f"/proc/{pid}/status").read_text()
    return nanoseconds / 1e9, int(found(r"^voluntary_ctxt_switches:\s+(\d+)", status))


def page(rounds: int) -> None:
    """What a browser that looks at the status page costs the watchdog: memory, at rest again."""
    grown: list[float] = []
    for number in range(rounds):
        progress(f"round {number + 1} of {rounds}")
        with kept() as (lab, watchdog):
            for path in ("/metrics", "/status"):
                watchdog.ask(path)
            time.sleep(3)
            before = watchdog.resident()
            for _ in range(30):
                with lab.pod.inside():
                    browser = http.client.HTTPConnection("127.0.0.1", PORT, timeout=5)
                    browser.connect()
                browser.request("GET", "/", headers={"Accept": "text/html"})
                assert b"<!doctype html>" in browser.getresponse().read()
                browser.close()
                watchdog.ask("/status")
            time.sleep(3)
            grown.append((watchdog.resident() - before) / 1024)
    progress("")
    row = Row("memory after 30 looks, more than before", grown, goal=Goal(0.5), show=lambda size: f"{size:.2f} MiB")
    table("page: the status page in a browser", [row])


def requests(rounds: int) -> None:
    """wrk on GET / with 16 connections; then with 1,000 more that say nothing."""
    rate: dict[str, list[float]] = {"alone": [], "crowd": []}
    slow: dict[str, list[float]] = {"alone": [], "crowd": []}
    with kept() as (lab, watchdog):
        for number in range(rounds):
            for name, idle in (("alone", 0), ("crowd", 1000)):
                progress(f"round {number + 1} of {rounds}: {name}")
                with ExitStack() as stack, lab.pod.inside():
                    for _ in range(idle):
                        client = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
                        client.connect(("127.0.0.1", PORT))
                    told = lab.pod.run(
                        ["wrk", "-t1", "-c16", "-d4s", "--latency", f"http://127.0.0.1:{PORT}/"], timeout=60
                    ).stdout
                rate[name].append(float(found(r"Requests/sec: +([\d.]+)", told)))
                slow[name].append(to_seconds(found(r"99% +([\d.]+\w+)", told)))
            watchdog.settle()
    progress("")

    def each(value: float) -> str:
        return f"{value:,.0f}/s" if value > 100 else f"{value:.2f}x"

    table(
        f"requests: wrk, GET /, 16 connections, 4 s each ({load()}; wrk itself takes a core)",
        [
            Row("answers", rate["alone"], goal=Goal(20_000, at_least=True), show=each),
            Row(
                "answers beside 1,000 idle clients",
                rate["crowd"],
                "answers",
                ratio_goal=Goal(0.5, at_least=True),
                show=each,
            ),
            Row("99 % within", slow["alone"], goal=Goal(0.005)),
            Row("99 % within, beside 1,000 idle clients", slow["crowd"], "99 % within", ratio_goal=Goal(2.0)),
        ],
    )


def found(pattern: str, text: str) -> str:
    """What the pattern's first group matches."""
    match = re.search(pattern, text, re.MULTILINE)
    if match is None:
        raise RuntimeError(f"this should have {pattern} in it:\n{text}")
    return match[1]


def to_seconds(text: str) -> float:
    """wrk's times: 1.23ms, 800.00us, 1.00s."""
    for unit, factor in (("us", 1e-6), ("ms", 1e-3), ("s", 1.0)):
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * factor
    raise ValueError(text)


def milliseconds(value: float) -> str:
    return f"{value * 1000:.0f} ms"


def seconds_of(value: float) -> str:
    return f"{value:.1f} s"


def load() -> str:
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


#: By name, in the order in which they run; how many rounds unless told otherwise.
RESIDENT: Mapping[str, tuple[Callable[[int], None], int]] = {
    "repair": (repair, 18),
    "peer": (peer, 4),
    "footprint": (footprint, 1),
    "page": (page, 3),
    "requests": (requests, 3),
}
