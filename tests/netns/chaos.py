"""python -m tests.netns.chaos [--seconds N | --faults N] [--seed S] [--setting NAME]: random faults, two at a time,
and the watchdog. Without --setting, the pods of SETTINGS take turns.

While all probes try to get out, two faults of the catalogue are made at random moments, sometimes with the watchdog or
its child killed on top. What only the world outside can put right is put right; the rest is the watchdog's. After each
pair everything must be as it was before, in bounded time, and not one packet may have left in clear text. The exit
status says whether that held; the seed is printed, and makes the same choices again.

Pairs that take both layers of the kill-switch away are left out: then nothing is there that could hold anything until
the repair. They are named in TOGETHER, so that nobody has to guess.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Self

from tests.lab import reaper
from tests.lab.faults import FAULTS, FORGED, RA_PREFIX, Fault, state_of
from tests.lab.judge import Judge, Leak, for_lab
from tests.lab.lab import AF_BITS, NEEDS, TUNNEL_DNS, WIREGUARD_PORT, Lab, LabError, Member, wait_until
from tests.lab.needs import missing
from tests.lab.probes import Probes

PORT = 9999
#: Seconds until all must be well again. WireGuard itself needs 15 to give up a session that is not answered.
BOUND, BOUND_PEER = 20.0, 60.0
PEER = frozenset({"peer-silent", "peer-with-another-key"})
#: What each of these takes away is the other layer's only support.
TOGETHER = ({"killswitch-deleted", "killswitch-policy-accept"}, {"gate-deleted", "second-uplink"})
#: Seconds after which the kernel gives up to find a neighbour, and drops what waits for it: three questions.
NEIGHBOUR = 4.0
#: KiB by which the watchdog may grow, whatever happens.
GROWTH = 1024
#: Seconds after which a change is no part of a fight any more.
CALM = 0.6


class Watchdog:
    """`python -m watchdog` in a lab's pod, or in another member, as its container would run it: a context manager."""

    def __init__(
        self,
        lab: Lab,
        *,
        env: Mapping[str, str] | None = None,
        prefix: tuple[str, ...] = (),
        member: Member | None = None,
    ) -> None:
        self.lab = lab
        self.member = member or lab.pod
        self.env = {**lab.pod_env, **(env or {})}
        self.prefix = prefix
        self.path = lab.folder / f"watchdog-{os.urandom(4).hex()}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def start(self) -> None:
        with self.path.open("ab") as log:
            argv = [*self.prefix, sys.executable, "-P", "-m", "watchdog"]
            self.process = self.member.popen(argv, env=self.env, stdout=log, stderr=log)

    def end(self, number: signal.Signals = signal.SIGTERM) -> float:
        """Signal it and wait for its end; seconds that took. An end that takes too long is a failure."""
        process = self.process
        if process is None or process.poll() is not None:
            return 0.0
        started = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return time.monotonic() - started

    @property
    def pid(self) -> int:
        """Of the watchdog itself, as seen from here; with a prefix, the process that runs it is another."""
        assert self.process
        if not self.prefix:
            return self.process.pid
        return wait_until(self._inner, "the watchdog's process")

    def _inner(self) -> int:
        assert self.process
        pids = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(pids[0]) if pids else 0

    def log(self) -> str:
        return self.path.read_text(errors="replace")

    def ask(self, path: str = "/", client: Member | None = None, timeout: float = 5.0) -> str:
        """What it answers the node, which is where the kubelet asks from; "" for no answer."""
        return fetch(client or self.lab.node, self.lab.pod.addresses[4], path, timeout)

    def active(self) -> bool:
        return self.ask() == "VPN is active" or self.ask().startswith("server is ready")

    def metrics(self) -> Counter[str]:
        """All samples, by name with labels."""
        lines = [line for line in self.ask("/metrics").splitlines() if line and not line.startswith("#")]
        return Counter({name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)})

    def runs(self) -> int:
        """How often it ran the setup."""
        return int(sum(value for name, value in self.metrics().items() if name.startswith("init_wg_runs_total")))

    def children(self) -> list[int]:
        """Its child processes of now: a run of the setup, and what it adopted."""
        try:
            return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]
        except OSError:
            return []

    def resident(self) -> int:
        """KiB of memory."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))

    def settle(self, timeout: float = 30.0) -> None:
        """Until it is content, and has had its last look at what it did."""
        wait_until(self.active, f"the watchdog's content; its log:\n{self.log()[-2000:]}", timeout)
        wait_until(lambda: '"settled": true' in self.ask("/status"), "the confirming look", timeout)


def fetch(client: Member, address: str, path: str, timeout: float = 5.0, port: int = PORT) -> str:
    """One HTTP request from a member of the lab: the body; "" when there is no answer."""
    import socket

    deadline = time.monotonic() + timeout
    answer = b""
    with client.socket(socket.AF_INET, socket.SOCK_STREAM) as asker:
        try:
            asker.settimeout(timeout)
            asker.connect((address, port))
            asker.send(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            while True:
                asker.settimeout(max(deadline - time.monotonic(), 0.001))
                more = asker.recv(1 << 16)
                if not more:
                    break
                answer += more
        except OSError:
            return ""
    return answer.partition(b"\r\n\r\n")[2].decode()


def setups(lab: Lab) -> list[int]:
    """The runs of init_wg in the pod of now."""
    found = []
    for pid in reaper.inhabitants({(reaper.NETNS / lab.pod.netns).stat().st_ino}):
        with contextlib.suppress(OSError):
            if b"\0init_wg\0" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


class Setting(NamedTuple):
    """A pod that people have. make: its lab; configure: writes what WG_CONFIG names. Every file has a keepalive."""

    make: Callable[[], Lab] = Lab
    configure: Callable[[Lab], Path] = lambda lab: lab.config_path


def split_tunnel(lab: Lab) -> Path:
    """Only a few hosts are inside the tunnel; the rest of the world is refused."""
    inside = [f"{address}/{AF_BITS[family]}" for family in lab.families
              for address in (lab.web.addresses[family], TUNNEL_DNS[family])]  # fmt: skip
    path = lab.folder / "split" / "wg0.conf"
    text = lab.config(path).read_text()
    path.write_text(re.sub(r"AllowedIPs = .*", f"AllowedIPs = {', '.join(inside)}", text))
    return path


def twins(lab: Lab) -> Path:
    """Two files with one key: the same server on two ports."""
    rule = (
        f"table inet twin {{ chain in {{ type nat hook prerouting priority dstnat; udp dport {TWIN_PORT} redirect to :"
    )
    lab.provider.run(["nft", "-f", "-"], stdin=f"{rule}{lab.provider.endpoint.port}; }}; }}\n")
    folder = lab.folder / "twins"
    lab.config(folder / "1-usual.conf")
    lab.config(folder / "2-twin.conf", endpoint=f"{lab.provider.endpoint.address}:{TWIN_PORT}")
    return folder


#: By name: as the lab is; WireGuard's own packets in fragments; a split tunnel; two servers of one key.
SETTINGS = {
    "usual": Setting(),
    "fragments": Setting(lambda: Lab(mtu=1420), lambda lab: lab.config(mtu=1420)),
    "split": Setting(configure=split_tunnel),
    "twins": Setting(configure=twins),
}
TWIN_PORT = 51822


class Outcome(NamedTuple):
    """What a run of chaos came to. recovered: seconds of each pair, from the end of the faults."""

    faults: Counter[str]
    recovered: list[float]
    leaked: int
    grown: int
    problems: list[str]


class Chaos:
    """Random faults in a pod that a watchdog keeps. The lab is its own."""

    def __init__(self, lab: Lab, judge: Judge, probes: Probes, watchdog: Watchdog, seed: int) -> None:
        self.lab, self.judge, self.probes, self.watchdog = lab, judge, probes, watchdog
        self.chance = random.Random(seed)
        self.outcome = Outcome(Counter(), [], 0, 0, [])
        self.names = "nothing"
        watchdog.settle()
        self.well = self.state()
        self.catalogue = [
            *(fault for fault in FAULTS if fault.possible(lab)),
            Fault("watchdog-killed", self.kill_watchdog),
            Fault("setup-killed", self.kill_setup),
        ]

    def state(self) -> str:
        """As text to compare; either port of a twin is right."""
        return state_of(self.lab).replace(str(TWIN_PORT), str(WIREGUARD_PORT))

    def kill_watchdog(self, _: Lab) -> None:
        """As when its container is killed: what runs in it goes too, and it is started again."""
        children = [pid for pid in self.watchdog.children() if pid in setups(self.lab)]
        self.watchdog.end(signal.SIGKILL)
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.watchdog.start()

    def kill_setup(self, lab: Lab) -> None:
        """Whatever init_wg does just now, it does not finish."""
        for pid in setups(lab):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def pair(self) -> tuple[Fault, Fault]:
        """Two different faults; those that WireGuard needs 15 s to recover from are rare."""
        weights = [0.1 if fault.name in PEER else 1.0 for fault in self.catalogue]
        while True:
            first, second = self.chance.choices(self.catalogue, weights, k=2)
            names = {first.name, second.name}
            if len(names) == 2 and not all(names & layer for layer in TOGETHER):
                return first, second

    def turn(self) -> bool:
        """One pair, from health to health. Is everything well again?"""
        pair = self.pair()
        names = " + ".join(map(str, pair))
        before, self.names = self.names, names
        spares = spared(*pair)
        gap, hold = self.chance.uniform(0, 0.4) * self.chance.randrange(2), self.chance.randrange(4)
        undo = self.chance.sample(pair, 2)
        self.judge.mark()
        marked = time.time()
        whole = True
        for number, fault in enumerate(pair):
            try:
                fault.break_it(self.lab)
                self.outcome.faults[fault.name] += 1
            except (LabError, IndexError):
                whole = False  # the first fault has taken away what the second one breaks; or a repair came between
            if number == 0:
                self.pause(gap)
        self.probes.round(hold)
        for fault in undo:
            with contextlib.suppress(LabError):
                fault.undo(self.lab)
        if router_advertised(pair):  # the prefix's route outlives its address, as the router said it should
            self.lab.pod.run(["ip", "-6", "route", "flush", f"{RA_PREFIX}/64"], check=False)
        if not whole:
            self.lab.restore_uplink()  # a fault that ended half-way may have left it without its routes
        started = time.monotonic()
        # `up-again` may have ended with an error in the middle of another fault; the watchdog has to repair that, too.
        bound = BOUND_PEER if any(fault.name in PEER for fault in pair) else BOUND
        well = self.becomes(lambda: self.lab.flows(0.5) and self.state() == self.well, bound)
        seconds = time.monotonic() - started
        verdict = self.judge.verdict()
        leaks = [leak for leak in verdict.leaks if leak.kind not in spares]
        leaks += self.after(spares) if well else []
        if leaks:
            when = f"first {leaks[0].time - marked:.2f} s after the first fault; before it: {before}"
            self.problem(f"{names}: leaked {len(leaks)}: {leaks[0]} ({when})")
            self.outcome = self.outcome._replace(leaked=self.outcome.leaked + len(leaks))
        if not well:
            self.problem(f"{names}: not as before after {bound:g} s:\n{difference(self.well, self.state())}")
            return False
        self.outcome.recovered.append(seconds)
        # Else the next fault would often come so soon that it looks like a fight, which is repaired more slowly.
        self.pause(self.chance.uniform(0.0, 1.5))
        return True

    def after(self, spares: frozenset[str]) -> list[Leak]:
        """Nothing leaves any more. But what was let out by a fault may still wait for its neighbour, seconds long: it
        has passed the kill-switch already, and would be taken for a leak of the next pair's."""
        for family in self.lab.families:
            self.lab.pod.run(["ip", f"-{family}", "neigh", "flush", "nud", "incomplete"], check=False)
        end = time.monotonic() + NEIGHBOUR
        while True:
            self.probes.round(1)
            leaks = self.judge.verdict().leaks
            if not leaks or time.monotonic() > end or any(leak.kind not in spares for leak in leaks):
                return leaks

    def run(self, faults: int | None, seconds: float | None) -> Outcome:
        """Until so many faults were made, or so much time has passed."""
        end = time.monotonic() + seconds if seconds else None
        small: int | None = None
        while (end is None or time.monotonic() < end) and (not faults or self.outcome.faults.total() < faults):
            pid = self.watchdog.pid
            if not self.turn():
                break
            if self.watchdog.metrics()["init_wg_key_contention"]:
                self.problem(f"{self.names}: the watchdog believes that somebody else uses its key")
            progress(f"{self.outcome.faults.total()} faults, leaked {self.outcome.leaked}")
            if pid != self.watchdog.pid:
                small = None  # another process
            elif small is None and self.watchdog.active():
                small = self.watchdog.resident()
            elif small is not None:
                grown = self.watchdog.resident() - small
                self.outcome = self.outcome._replace(grown=max(self.outcome.grown, grown))
        progress("")
        if self.outcome.grown > GROWTH:
            self.problem(f"the watchdog has grown by {self.outcome.grown} KiB")
        mistakes = [line for line in self.watchdog.log().splitlines() if "a mistake in the watchdog" in line]
        for line in mistakes:
            self.problem(line)
        return self.outcome

    def problem(self, words: str) -> None:
        log = "\n".join(f"    {line}" for line in self.watchdog.log().splitlines()[-15:])
        self.outcome.problems.append(f"{words}\n  the watchdog's last words:\n{log}")

    def becomes(self, condition: Callable[[], bool], bound: float) -> bool:
        end = time.monotonic() + bound
        while not condition():
            if time.monotonic() > end:
                return False
            time.sleep(0.01)
        return True

    @staticmethod
    def pause(seconds: float) -> None:
        """Part of the random choices: when things happen."""
        if seconds:
            time.sleep(seconds)


def spared(*broken: Fault) -> frozenset[str]:
    """What these faults let out by their nature."""
    kinds = frozenset(kind for fault in broken for kind in fault.spares)
    if sum(fault.name.startswith("killswitch-") for fault in broken) > 1:
        kinds |= FORGED  # two holes in the deciding table may be as bad as none at all
    return kinds | {"arp"} if FORGED & kinds else kinds  # who forges the mark and names the link asks it for the way


def router_advertised(pair: tuple[Fault, ...]) -> bool:
    return any(fault.name == "router-advertisement" for fault in pair)


def difference(before: str, after: str) -> str:
    import difflib

    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), "before", "after", lineterm="", n=0)
    return "\n".join(lines)


@contextlib.contextmanager
def prepared(seed: int, setting: str = "usual") -> Iterator[Chaos]:
    """A lab of its own, sealed and set up, with everything running."""
    made = SETTINGS[setting]
    with made.make() as lab:
        lab.config_path = made.configure(lab)
        endpoints = [lab.provider.endpoint._replace(port=port) for port in (WIREGUARD_PORT, TWIN_PORT)]
        with Judge(lab, for_lab(lab, endpoints=endpoints)) as judge, Probes(lab) as probes:
            lab.init_wg("lockdown")
            with Watchdog(lab) as watchdog:
                yield Chaos(lab, judge, probes, watchdog, seed)


def report(outcome: Outcome, seed: int) -> str:
    times = sorted(outcome.recovered) or [0.0]
    quantiles = ", ".join(f"p{q} {times[min(len(times) - 1, len(times) * q // 100)]:.2f} s" for q in (50, 90, 99))
    lines = [
        f"{outcome.faults.total()} faults of {len(outcome.faults)} kinds in {len(times)} pairs, seed {seed}",
        f"leaked: {outcome.leaked}",
        f"well again after {quantiles}, at most {times[-1]:.2f} s (from the end of the faults, with this test's look)",
        f"the watchdog grew by {outcome.grown} KiB at most",
        *outcome.problems,
    ]
    return "\n".join(lines)


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="\r", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.netns.chaos", description="Random faults; see the module.")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=float, help="how long")
    length.add_argument("--faults", type=int, help="how many (default: 400)")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="of an earlier run, to repeat it")
    parser.add_argument("--setting", choices=SETTINGS, action="append", help="a kind of pod (default: each in turn)")
    given = parser.parse_args()
    if lacking := missing(NEEDS):
        print(f"chaos needs {lacking}", file=sys.stderr)
        return 3
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    settings = given.setting or list(SETTINGS)
    faults = given.faults or (None if given.seconds else 400)
    failed = False
    for setting in settings:
        print(f"{setting}: seed {given.seed}", flush=True)
        try:
            with prepared(given.seed, setting) as chaos:
                seconds = given.seconds / len(settings) if given.seconds else None
                outcome = chaos.run(-(-faults // len(settings)) if faults else None, seconds)
        except KeyboardInterrupt:
            return 130
        print(report(outcome, given.seed), flush=True)
        failed |= bool(outcome.leaked or outcome.problems or not outcome.recovered)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
