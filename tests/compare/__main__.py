"""make compare: init-wg beside what people use today, with the same file, faults and probes, as tables in Markdown.

Every case has a lab of its own, so that none finds what another has left. --write puts the tables into
docs/comparison.md. The exit status is 0 when nothing ordinary leaked from init-wg's pod and the control, wg-quick
without a kill-switch, leaked in each fault: else the probes would prove nothing.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

from tests.bench.report import interleaved, progress, ratio
from tests.compare.setups import Setup, chosen
from tests.lab import faults, reaper
from tests.lab.judge import Judge, for_lab
from tests.lab.lab import APP, CLUSTER_DNS, HTTP, NEEDS, Lab, LabError, wait_until
from tests.lab.needs import Needs, missing
from tests.lab.probes import KINDS, PLAIN, Probes

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs/comparison.md"
TABLES = re.compile(r"(<!-- compare: begin -->\n).*(<!-- compare: end -->\n)", re.DOTALL)
CONTROL = "wg-quick"
TOOLS = Needs({"iptables": "iptables", "wg-quick": "wireguard-tools", "iperf3": "iperf3"})
RATE, ROUNDS = 1000, 10
STARTS, TRANSFERS = 7, 3
IPERF_PORT = "5201"
#: Mistakes of people who type, or copy half of a line.
MISTAKES = (
    "Address = 10.64.12.34.5/32",
    "PrivateKey = c2hvcnQ=",
    "Endpoint = vpn.example.org",
    "AllowedIPs = 0.0.0.0/0, ::/33/0",
    "PublickKey = 6Zz0ov9Cq1YuBvcXCjV1cJl6Dq4m1bqUqkcQn7Jf8kM=",
)
#: Seconds for a repair, where a process watches; for a silent provider; of idleness.
REPAIR, SILENCE, IDLE = 60.0, 240.0, 20.0
WRONG_FILE = "a wrong Address in the file"
#: Faults by what a reader calls them. Beside these: nothing is broken, and WRONG_FILE.
BROKEN = {
    "the tunnel's interface is deleted": "wg0-deleted",
    "the tunnel's interface is set down": "wg0-down",
    "the routing rules are flushed": "rules-flushed",
    "routes appear past the tunnel": "routes-0/1-and-128/1",
    "all of nftables is flushed": faults.FLUSHED_RULESET.name,
    "wireguard-go is killed": "wireguard-go-killed",
}
CATALOGUE = {fault.name: fault for fault in (*faults.FAULTS, faults.FLUSHED_RULESET)}
CASES = ("nothing", WRONG_FILE, *BROKEN)


class Leaked(NamedTuple):
    """Packets in clear text: of ordinary programs; of those that ask for the uplink by name, mark or raw frames."""

    ordinary: int
    special: int


def case(setup: Setup, words: str) -> Leaked:
    """One fault in one set-up's pod, with every kind of probe running."""
    with Lab() as lab, Judge(lab, for_lab(lab)) as judge, Probes(lab, KINDS, rate=RATE) as probes:
        file = lab.quick_path
        if words == WRONG_FILE:
            wrong = re.sub(r"^Address = .*", "Address = 10.64.12.34.5/32", file.read_text(), flags=re.MULTILINE)
            file.write_text(wrong)
        try:
            setup.begin(lab, file)
        except LabError:
            if words != WRONG_FILE:
                raise
        else:
            if words == WRONG_FILE:
                raise LabError(f"{setup.name} took a file that is wrong")
            wait_until(lab.flows, f"{setup.name}'s tunnel")
        probes.round(1)
        judge.mark()
        if words in BROKEN:
            CATALOGUE[BROKEN[words]].break_it(lab)
        probes.round(ROUNDS)
        verdict = judge.verdict()
    ordinary = sum(leak.kind in PLAIN for leak in verdict.leaks)
    return Leaked(ordinary, verdict.leaked - ordinary)


def repair(setup: Setup, words: str) -> str:
    """How long traffic through the tunnel stops for a fault, in words."""
    with Lab() as lab:
        setup.begin(lab, lab.quick_path)
        wait_until(lab.flows, f"{setup.name}'s tunnel")
        CATALOGUE[BROKEN[words]].break_it(lab)
        began = time.monotonic()
        if lab.flows(0.3):
            return "goes on"
        return seconds(until(lambda: lab.flows(0.3), REPAIR if setup.resident else 3.0, began))


def until(condition: Callable[[], object], limit: float, began: float) -> float | None:
    """Seconds since `began` when it held; None: not within `limit`."""
    while not condition():
        if time.monotonic() > began + limit:
            return None
        time.sleep(0.02)
    return time.monotonic() - began


def reach(setup: Setup) -> dict[str, bool]:
    """What works while nothing is broken."""
    with Lab() as lab:
        setup.begin(lab, lab.quick_path)
        wait_until(lab.flows, f"{setup.name}'s tunnel")
        pod = lab.pod.addresses[4]
        asks = f"import socket; socket.socket(2, 2).sendto({QUERY!r}, ('{CLUSTER_DNS[4]}', 53))"
        lab.pod.run([sys.executable, "-I", "-S", "-c", asks], check=False)
        service = lab.request(lab.pod, lab.service.addresses[4], HTTP)  # later than that query
        return {
            "the node's probe is answered": lab.request(lab.node, pod, APP) is not None,
            "a client from elsewhere is answered": lab.request(lab.far, pod, APP) is not None,
            "a Service of the cluster is reached outside the tunnel": service == pod,
            "names that are asked of the cluster's DNS stay inside the tunnel": not any(
                f" {pod} " in line for line in lab.queries(lab.service)
            ),
        }


QUERY = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07compare\x07example\x00\x00\x01\x00\x01"


class Silence(NamedTuple):
    """Seconds until the health check says that the provider is silent, and until another one is in use."""

    told: float | None
    left: float | None


def silence(setup: Setup) -> Silence:
    if setup.health is None:
        return Silence(None, None)
    health = setup.health
    with Lab() as lab:
        file = lab.config_folder if setup.several else lab.quick_path
        setup.begin(lab, file)
        wait_until(lambda: health(lab) == "", f"{setup.name} is content", 60)
        began = time.monotonic()
        lab.provider.silence()
        told = until(lambda: health(lab), SILENCE, began)
        second = set(lab.provider2.addresses.values())
        left = until(lambda: lab.traffic_source(4, 0.3) in second, SILENCE, began) if setup.several else None
        return Silence(told, left)


def start(setup: Setup) -> float:
    """Seconds from the first program to the first answer through the tunnel, in a new pod."""
    with Lab() as lab:
        began = time.perf_counter()
        setup.begin(lab, lab.quick_path)
        wait_until(lambda: lab.traffic_source(4) == lab.provider.addresses[4], "an answer through the tunnel")
        return time.perf_counter() - began


def transfer(setup: Setup, *way: str) -> float:
    """Bits a second of iperf3 through the tunnel, in a new pod. way: iperf3's words for the direction."""
    with Lab() as lab:
        quiet = subprocess.DEVNULL
        lab.web.popen(["iperf3", "--server", "--port", IPERF_PORT], stdout=quiet, stderr=quiet, new_session=True)
        setup.begin(lab, lab.quick_path)
        wait_until(lab.flows, f"{setup.name}'s tunnel")
        argv = ["iperf3", "--client", lab.web.addresses[4], "--port", IPERF_PORT, "--json", "--omit", "1", *way]
        done = lab.pod.run([*argv, "--time", "3"])
        return float(json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"])


def mistaken(setup: Setup, line: str) -> str:
    """The outcome of a file in which this line stands instead of the right one: is it taken, and is the pod open?"""
    with Lab() as lab:
        file = lab.quick_path
        name = line.partition(" = ")[0]
        changed, count = re.subn(rf"^{name} = .*", line, file.read_text(), count=1, flags=re.MULTILINE)
        file.write_text(changed if count else changed.replace("[Peer]", f"{line}\n[Peer]", 1))
        try:
            setup.begin(lab, file)
            ended = "taken"
        except LabError:
            ended = "refused"
        seen = lab.request(lab.pod, lab.web.addresses[4], HTTP)
        if seen is None:
            return f"{ended}, closed"
        return f"{ended}, OPEN" if seen == lab.pod.addresses[4] else f"{ended}, works"


class Idle(NamedTuple):
    """What stays: MiB of resident memory, and percent of a core."""

    own: float
    wireguard: float
    cpu: float


def idle(setups: Sequence[Setup]) -> list[Idle]:
    """All at once, side by side: they wait for the same seconds."""
    with ExitStack() as stack:
        labs = []
        for setup in setups:
            lab = stack.enter_context(Lab())
            before = set(residents(lab))
            setup.begin(lab, lab.quick_path)
            wait_until(lab.flows, f"{setup.name}'s tunnel")
            labs.append((lab, before))
        time.sleep(5)
        pids = [set(residents(lab)) - before for lab, before in labs]
        began = [sum(map(spent, group)) for group in pids]
        time.sleep(IDLE)
        ended = [sum(map(spent, group)) for group in pids]
        return [
            Idle(
                sum(memory(pid) for pid in group if name(pid) != "wireguard-go"),
                sum(memory(pid) for pid in group if name(pid) == "wireguard-go"),
                (after - before) / IDLE * 100,
            )
            for group, before, after in zip(pids, began, ended, strict=True)
        ]


def residents(lab: Lab) -> list[int]:
    return reaper.inhabitants({(reaper.NETNS / lab.pod.netns).stat().st_ino})


def name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def memory(pid: int) -> float:
    found = re.search(r"^VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) / 1024


def spent(pid: int) -> float:
    """Seconds of CPU so far, all threads."""
    return sum(int(task.read_text().split()[0]) for task in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def table(first: str, setups: Iterable[Setup], rows: dict[str, list[str]]) -> str:
    """In Markdown: one column for each set-up."""
    names = [setup.name for setup in setups]
    lines = [f"| {first} | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    return "\n".join([*lines, *(f"| {row} | {' | '.join(cells)} |" for row, cells in rows.items())])


def seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f} s"


def versions() -> str:
    """The day, and of what the figures depend on."""
    tools = [["nft", "--version"], ["iptables", "--version"], ["wg", "--version"]]
    said = [subprocess.run(tool, capture_output=True, check=True, text=True).stdout for tool in tools]
    known = [" ".join(text.split()[:2]) for text in said]
    kernel = os.uname().release.partition("-")[0]
    return f"{time.strftime('%Y-%m-%d')}, Linux {kernel}, {', '.join(known)}, {os.cpu_count()} cores:"


def measured(setups: tuple[Setup, ...]) -> tuple[str, list[str]]:
    """The tables, and the promises that were broken."""
    broken: list[str] = []
    leaks: dict[str, list[str]] = {}
    for words in CASES:
        found = []
        for setup in setups:
            progress(f"{words}: {setup.name}")
            found.append(case(setup, words))
        leaks[words] = [f"{each.ordinary:,} / {each.special:,}" for each in found]
        by_name = dict(zip((setup.name for setup in setups), found, strict=True))
        if by_name["init-wg"].ordinary:
            broken.append(f"{words}: {by_name['init-wg'].ordinary} ordinary packets leaked from init-wg's pod")
        if not by_name[CONTROL].special:
            broken.append(f"{words}: the control leaked nothing, so the probes are broken")
    repairs = {}
    for words in BROKEN:
        progress(f"repair: {words}")
        repairs[words] = [repair(setup, words) for setup in setups]
    progress("what works")
    works = [reach(setup) for setup in setups]
    progress("idle")
    idles = idle(setups)
    progress("a silent provider")
    silences = [silence(setup) for setup in setups]
    starts = interleaved(STARTS, {setup.name: lambda setup=setup: start(setup) for setup in setups})  # type: ignore[misc]
    progress("throughput")
    speeds = {
        way: interleaved(TRANSFERS, {setup.name: partial(transfer, setup, *flags) for setup in setups})
        for way, flags in {"up": (), "down": ("--reverse",)}.items()
    }
    progress("wrong files")
    mistakes = {f"`{line}`": [mistaken(setup, line) for setup in setups] for line in MISTAKES}
    tables = [
        versions(),
        f"Packets in clear text, ordinary / special; {len(KINDS)} kinds of probes, {ROUNDS} times over both families:",
        table("fault", setups, leaks),
        "For so long traffic through the tunnel stops:",
        table("fault", setups, repairs),
        "While nothing is broken:",
        table("", setups, {row: ["yes" if each[row] else "no" for each in works] for row in works[0]}),
        "A line of the file is wrong: it is refused or taken, and then the pod is closed or open:",
        table("", setups, mistakes),
        "Costs and times:",
        table(
            "",
            setups,
            {
                f"first answer through the tunnel, median of {STARTS}": [
                    f"{median(starts[setup.name]):.2f} s, {ratio(starts[setup.name], starts[CONTROL]):.1f}x"
                    for setup in setups
                ],
                **{
                    f"iperf3 {way}, median of {TRANSFERS}": [
                        f"{median(found[setup.name]) / 1e6:.0f} Mbit/s, {ratio(found[setup.name], found[CONTROL]):.2f}x"
                        for setup in setups
                    ]
                    for way, found in speeds.items()
                },
                "a silent provider is told after": [seconds(each.told) for each in silences],
                "a silent provider is left after": [seconds(each.left) for each in silences],
                "idle memory, beside wireguard-go's": [f"{each.own:.1f} MiB" for each in idles],
                "wireguard-go's": [f"{each.wireguard:.1f} MiB" for each in idles],
                "idle CPU of one core, wireguard-go included": [f"{each.cpu:.2f} %" for each in idles],
            },
        ),
    ]
    return "\n\n".join(tables) + "\n", broken


def main() -> int:
    if lacking := missing(NEEDS, TOOLS):
        print(f"the comparison needs {lacking}", file=sys.stderr)
        return 3
    setups = chosen()
    tables, broken = measured(setups)
    progress("")
    print(tables)
    if "--write" in sys.argv[1:]:
        text = DOCUMENT.read_text()
        DOCUMENT.write_text(TABLES.sub(lambda marks: f"{marks[1]}\n{tables}\n{marks[2]}", text))
    for words in broken:
        print(words, file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
