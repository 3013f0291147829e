"""make demo: what leaves a pod, before, with init-wg, and with wg-quick, judged by a capture on its node.

Everything is real: Linux network namespaces, WireGuard, nftables, the programs themselves. The exit status is 0 when
nothing leaked from the pod that init-wg protects, everything healed, and the unprotected pods did leak: else the
probes, and so this demo, would prove nothing.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from tests.lab import faults
from tests.lab.faults import Fault, state_of
from tests.lab.judge import Judge, Verdict, for_lab
from tests.lab.lab import AF, HTTP, NEEDS, Lab, LabError
from tests.lab.needs import missing
from tests.lab.probes import KINDS, PLAIN, Probes

RATE = 1000  # attempts a second; the machine also has to do the demo's own work
ROUNDS = 5  # how often each kind of attempt is made while a fault lasts
HEALTH_PORT = 9999
HEALED_WITHIN, FAILED_OVER_WITHIN = 10.0, 30.0

# Faults of the catalogue, and how to say them. For wg-quick's pod, "kill-switch" means whatever rules it has.
SHOWN = {
    "wg0-deleted": "the tunnel's interface is deleted",
    "wg0-down": "the tunnel's interface is set down",
    "rules-flushed": "the routing rules are flushed",
    "routes-0/1-and-128/1": "routes appear past the tunnel",
    "killswitch-deleted": "the firewall's table is deleted",
    "wireguard-go-killed": "wireguard-go is killed",
}

BROKEN = {name: next(fault for fault in faults.FAULTS if fault.name == name) for name in SHOWN}
# Not those that some of these faults let out by its nature; the leak suite has them, and the reasons.
TRIED = [kind for kind in KINDS if not any(kind in fault.spares for fault in BROKEN.values())]


class Screen:
    """Lines for people. Colours, and a line that is rewritten, only on a terminal."""

    def __init__(self) -> None:
        self.terminal = sys.stdout.isatty()
        self.colours = self.terminal and "NO_COLOR" not in os.environ

    def paint(self, text: str, code: int) -> str:
        return f"\033[{code}m{text}\033[0m" if self.colours else text

    def good(self, text: str) -> str:
        return self.paint(text, 32)

    def bad(self, text: str) -> str:
        return self.paint(text, 31)

    def title(self, text: str) -> None:
        print(f"\n{self.paint(text, 1)}", flush=True)

    def line(self, text: str = "") -> None:
        print(f"   {text}".rstrip(), flush=True)

    def now(self, text: str) -> None:
        """What is going on at the moment; the next line replaces it."""
        if self.terminal:
            print(f"\r\033[K   {self.paint(text, 2)}\r", end="", flush=True)

    def leaked(self, count: int, *, width: int = 0) -> str:
        text = f"{count:>{width},}"
        return self.bad(text) if count else self.good(text)


class Result(NamedTuple):
    """What the exit status depends on."""

    ours: int
    control: int
    broken: list[str]


class Demo:
    """The pod that init-wg protects, and what is known about it so far."""

    def __init__(self, screen: Screen, lab: Lab, judge: Judge, probes: Probes) -> None:
        self.screen, self.lab, self.judge, self.probes = screen, lab, judge, probes
        self.leaks: list[Verdict] = []
        self.broken: list[str] = []

    def attempts(self) -> int:
        return self.probes.counts()[0].total()

    def judged(self) -> Verdict:
        """What left the pod since the last mark: it counts."""
        verdict = self.judge.verdict()
        self.leaks.append(verdict)
        return verdict

    def timed(self, *words: str) -> float:
        """Run init-wg in the pod, from its start to its end."""
        started = time.perf_counter()
        self.lab.init_wg(*words)
        return time.perf_counter() - started

    # --- the acts, in their order ------------------------------------------------------------------------------------

    def before(self) -> None:
        self.screen.title("1  Before: nothing protects the pod")
        self.show_sources("its own address, in clear")
        self.judge.mark()
        start = self.attempts()
        self.probes.round(ROUNDS)
        verdict = self.judge.verdict()
        self.screen.line(
            f"from now on {len(self.probes.kinds)} kinds of probes try to get out, over IPv4 and IPv6: new and old"
        )
        self.screen.line("connections, datagrams, DNS, ping, sockets bound to the uplink, marks, raw frames.")
        self.screen.line(
            f"not stopped yet: {self.attempts() - start:,} attempts, {verdict.leaked:,} packets left in clear text"
            if verdict.leaked
            else self.screen.bad("the capture saw nothing: the probes are broken")
        )
        if not verdict.leaked:
            self.broken.append("the positive control: an unprotected pod leaked nothing")

    def lockdown(self) -> None:
        self.screen.title("2  init-wg lockdown: the pod is sealed before anything else happens")
        seconds = self.timed("lockdown")
        self.judge.mark()
        start = self.attempts()
        self.screen.line(f"sealed {seconds * 1000:.0f} ms after the program's start, Python's own start included")
        for family in self.lab.families:
            what, took = refused(self.lab, self.lab.web.addresses[family], AF[family])
            self.screen.line(f"an application that wants to connect over IPv{family}: {what} (after {took:.1f} ms)")
        self.probes.round(ROUNDS)
        self.show_leaked(self.judged(), self.attempts() - start)

    def up(self) -> None:
        self.screen.title("3  init-wg up: tunnel, addresses, routes, a handshake, and everything read back")
        start = self.attempts()
        seconds = self.timed("up")
        self.screen.line(f"up and verified {seconds * 1000:.0f} ms after the program's start")
        self.show_sources("the provider's address")
        self.probes.round(ROUNDS)
        self.show_leaked(self.judged(), self.attempts() - start)
        self.screen.line("init-wg status:")
        for line in self.lab.init_wg("status").stdout.splitlines():
            self.screen.line(f"   {line}")

    def faults(self) -> int:
        """The same faults, here and in a pod that wg-quick has set up. Returns what leaked there."""
        screen = self.screen
        screen.title("4  Somebody breaks it, with all probes running. How many packets leave in clear text?")
        screen.line(f"{'':36}{'init-wg':>10}{'mended by':>15}{'wg-quick: same file, same fault':>34}")
        heads = (f"{'leaked':>10}", f"{'init-wg up in':>15}", f"{'ordinary':>14}{'bound, marked, raw':>20}")
        screen.line(f"{'':36}{''.join(heads)}")
        with Lab() as other, Judge(other) as judge:
            control = self.row("nothing is broken", None, other, judge)
            for name, words in SHOWN.items():
                if (fault := BROKEN[name]).possible(self.lab):
                    control += self.row(words, fault, other, judge)
        return control

    def row(self, words: str, fault: Fault | None, other: Lab, other_judge: Judge) -> int:
        screen = self.screen
        screen.now(f"{words} ...")
        self.judge.mark()
        if fault:
            fault.break_it(self.lab)
        self.probes.round(ROUNDS)
        mended = ""
        if fault:
            mended = f"{self.timed('up') * 1000:.0f} ms"
            if not self.lab.flows():
                self.broken.append(f"{words}: init-wg up did not mend it")
        verdict = self.judged()
        ordinary, forced = wg_quick_leaks(other, other_judge, fault)
        screen.now("")
        theirs = f"{screen.leaked(ordinary, width=14)}{screen.leaked(forced, width=20)}"
        screen.line(f"{words:36}{screen.leaked(verdict.leaked, width=10)}{mended:>15}{theirs}")
        self.show_details(verdict)
        return ordinary + forced

    def watchdog(self) -> None:
        screen, lab = self.screen, self.lab
        screen.title("5  With the watchdog running, all of that heals by itself")
        errors = (lab.folder / "watchdog.log").open("w+b")
        env = {**lab.pod_env, "WG_CONFIG": str(lab.config_folder)}
        process = lab.pod.popen([sys.executable, "-m", "watchdog"], env=env, stdout=errors, stderr=errors)
        with errors:
            if self.waits(lambda: health(lab) == "VPN is active", "the watchdog answers", HEALED_WITHIN) is None:
                screen.line(screen.bad(f"the watchdog does not get ready: {last_line(errors.name)}"))
                return
            screen.line(f"the kubelet asks the pod's port {HEALTH_PORT}: {health(lab)}")
            well = state_of(lab)
            for name, words in SHOWN.items():
                if (fault := BROKEN[name]).possible(lab):
                    self.heals(fault, words, well)
            self.fails_over()
            if self.broken:
                for line in Path(errors.name).read_text(errors="replace").splitlines()[-12:]:
                    screen.line(f"   {line}")
            process.send_signal(signal.SIGTERM)
            self.screen.line(f"SIGTERM: the watchdog ends with exit status {process.wait(10)}; the tunnel stays")

    def heals(self, fault: Fault, words: str, well: str) -> None:
        self.judge.mark()
        started = time.perf_counter()
        fault.break_it(self.lab)
        broken = time.perf_counter() - started
        seconds = self.waits(lambda: fault.healed(self.lab, well), f"{words} ...", HEALED_WITHIN)
        verdict = self.judged()
        if seconds is None:
            self.screen.line(f"{words:36}{self.screen.bad('is not healed')}")
            return
        healed = f"all is as it was, and traffic flows, after {seconds + broken:.2f} s"
        self.screen.line(f"{words:36}leaked {self.screen.leaked(verdict.leaked)}; {healed}")
        self.show_details(verdict)

    def fails_over(self) -> None:
        screen, lab = self.screen, self.lab
        self.waits(lambda: health(lab) == "VPN is active", "the watchdog is content", HEALED_WITHIN)
        self.judge.mark()
        lab.provider.silence()
        started = time.perf_counter()
        words = f"the provider ({lab.provider.addresses[4]}) falls silent"
        told = self.waits(lambda: health(lab).startswith("VPN is not active"), f"{words} ...", FAILED_OVER_WITHIN)
        if told is not None:
            screen.line(f"{words}; the health check, {told:.1f} s later:")
            screen.line(f"   {health(lab)}")
        second = set(lab.provider2.addresses.values())
        over = self.waits(lambda: lab.traffic_source(4, 0.3) in second, "waiting for the next one ...", 30)
        verdict = self.judged()
        if over is not None:
            screen.line(
                f"traffic comes from the second provider ({lab.provider2.addresses[4]}) "
                f"after {time.perf_counter() - started:.1f} s; leaked {screen.leaked(verdict.leaked)}"
            )
            self.show_details(verdict)
        lab.provider.speak()

    # --- what the acts are made of -----------------------------------------------------------------------------------

    def waits(self, condition: Callable[[], bool], what: str, limit: float) -> float | None:
        """Seconds until the condition held; None, and a broken promise, if it never did."""
        started = time.perf_counter()
        while not condition():
            if (waited := time.perf_counter() - started) > limit:
                self.screen.now("")
                self.broken.append(f"after {limit:g} s still waiting: {what.removesuffix(' ...')}")
                return None
            self.screen.now(f"{what} {waited:.1f} s")
            time.sleep(0.02)
        seconds = time.perf_counter() - started
        self.screen.now("")
        return seconds

    def show_sources(self, whose: str) -> None:
        seen = [self.lab.traffic_source(family) for family in self.lab.families]
        expected = [m.addresses[f] for m in (self.lab.pod, self.lab.provider) for f in self.lab.families]
        if set(seen) <= set(expected):
            self.screen.line(f"a request of the pod arrives from {' and '.join(map(str, seen))}: {whose}")
        else:
            self.broken.append(f"a request did not arrive: {seen}")

    def show_leaked(self, verdict: Verdict, attempts: int) -> None:
        self.screen.line(f"{attempts:,} attempts, leaked: {self.screen.leaked(verdict.leaked)}")
        self.show_details(verdict)

    def show_details(self, verdict: Verdict) -> None:
        """Which probes got out, if any did."""
        for line in str(verdict).splitlines()[1:]:
            self.screen.line(self.screen.bad(line))


def refused(lab: Lab, address: str, family: socket.AddressFamily) -> tuple[str, float]:
    """What an application in the pod gets when it connects, and after how many milliseconds."""
    with lab.pod.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(5)
        started = time.perf_counter()
        try:
            client.connect((address, HTTP))
        except OSError as error:
            return error.strerror or str(error), (time.perf_counter() - started) * 1000
    return "IT IS CONNECTED", (time.perf_counter() - started) * 1000


def wg_quick_leaks(lab: Lab, judge: Judge, fault: Fault | None) -> tuple[int, int]:
    """wg-quick sets up a plain pod: what the same probes get out of it with the same fault.

    Ordinary traffic goes where routes lead it; the rest asks for the uplink by name, by mark or by raw frames.
    """
    with Probes(lab, TRIED, rate=RATE) as probes:
        lab.wg_quick()
        probes.round(1)
        judge.mark()
        if fault and fault.name == "killswitch-deleted":
            faults.FLUSHED_RULESET.break_it(lab)
        elif fault:
            fault.break_it(lab)
        probes.round(ROUNDS)
        verdict = judge.verdict()
    # A plain pod again.
    faults.kill_daemon(lab)
    lab.pod.run(["ip", "link", "delete", "wg0"], check=False)
    faults.FLUSHED_RULESET.break_it(lab)
    faults.flush_rules(lab)
    if fault:
        fault.undo(lab)
    forced = sum(1 for leak in verdict.leaks if leak.kind in KINDS and leak.kind not in PLAIN)
    return verdict.leaked - forced, forced


def health(lab: Lab) -> str:
    """What the watchdog tells the kubelet, which asks from the node. "" while nobody answers."""
    return lab.request(lab.node, lab.pod.addresses[4], HEALTH_PORT) or ""


def last_line(path: str) -> str:
    lines = Path(path).read_text(errors="replace").splitlines()
    return lines[-1] if lines else "it says nothing"


def play(screen: Screen) -> Result:
    """All acts. What goes up here comes down, whatever happens."""
    screen.title("init-wg: a pod's traffic leaves through the VPN, or not at all")
    with ExitStack() as stack:
        started = time.perf_counter()
        lab = stack.enter_context(Lab())
        implementation = "in the kernel" if lab.kernel_wireguard else "by wireguard-go"
        screen.line(
            f"pod {lab.pod.addresses[4]} ── node, which captures ── internet: providers "
            f"{lab.provider.addresses[4]} and {lab.provider2.addresses[4]}"
        )
        took = time.perf_counter() - started
        screen.line(f"(network namespaces of this machine, WireGuard {implementation}; set up in {took:.1f} s)")
        endpoints = (lab.provider.endpoint, lab.provider2.endpoint)
        judge = stack.enter_context(Judge(lab, for_lab(lab, endpoints=endpoints)))
        probes = stack.enter_context(Probes(lab, TRIED, rate=RATE))
        demo = Demo(screen, lab, judge, probes)
        demo.before()
        demo.lockdown()
        demo.up()
        control = demo.faults()
        demo.watchdog()
        return Result(sum(verdict.leaked for verdict in demo.leaks), control, demo.broken)


def main() -> int:
    screen = Screen()
    if lacking := missing(NEEDS):
        print(f"the demo needs {lacking}", file=sys.stderr)
        return 3
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    started = time.monotonic()
    try:
        result = play(screen)
    except KeyboardInterrupt:
        print("\ninterrupted; everything is taken down", file=sys.stderr)
        return 130
    except LabError as error:
        print(f"\nthe lab failed: {error}", file=sys.stderr)
        return 1
    screen.title("In the end")
    screen.line(f"leaked from the pod with init-wg: {screen.leaked(result.ours)}")
    screen.line(f"leaked from the pod with wg-quick: {result.control:,}")
    if not result.control:
        result.broken.append("the positive control: wg-quick's pod leaked nothing, so the probes are broken")
    for what in result.broken:
        screen.line(screen.bad(what))
    screen.line(f"everything is taken down again; {time.monotonic() - started:.0f} s in all")
    return 1 if result.ours or result.broken else 0


if __name__ == "__main__":
    sys.exit(main())
