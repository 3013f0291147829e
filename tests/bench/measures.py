"""The benchmarks of the one-shot program, each with what it is compared to in the same rounds.

A new pod each time means a new lab: no run finds what the one before has left.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from tests.bench.report import Goal, Row, interleaved, table
from tests.bench.stopwatch import Stopwatch
from tests.lab.lab import PROJECT, QUICK_USERSPACE, Lab, Member, wait_until

STOPWATCH = [sys.executable, "-I", "-S", str(Path(__file__).with_name("stopwatch.py"))]
PYTHON = (sys.executable, "-m", "init_wg")
DAEMON = "wireguard-go"
MANY, FEW = 10_000, 10
IPERF_PORT = 5201
IPERF_SECONDS = 2.0


@contextmanager
def stopwatch(member: Member | None = None) -> Iterator[Stopwatch]:
    """A stopwatch in a member of a lab; without one, in namespaces that it makes for itself."""
    if member:
        process = member.popen(STOPWATCH, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    else:
        process = subprocess.Popen(STOPWATCH, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=PROJECT)
    watch = Stopwatch(process)
    try:
        yield watch
    finally:
        watch.stop()


def seal(runs: int) -> None:
    """From exec to the sealed pod, in a new network namespace each time."""
    with stopwatch() as watch:
        watch.run(*PYTHON, "lockdown", fresh=True)
        text = watch.run("nft", "--stateless", "list", "ruleset").output
        script = str(Path(sys.executable).with_name("init-wg"))
        kernel: dict[str, list[float]] = {}
        cpu: dict[str, list[float]] = {}

        def run(name: str, *argv: str, given: str = "") -> float:
            measured = watch.run(*argv, given=given, fresh=True)
            if measured.loaded is not None:
                kernel.setdefault(name, []).append(measured.loaded)
            cpu.setdefault(name, []).append(measured.cpu)
            return measured.wall

        module, command, nft, nothing = "python -m init_wg lockdown", "init-wg lockdown", "nft -f", "python -c pass"
        walls = interleaved(
            runs,
            {
                nothing: partial(run, nothing, sys.executable, "-c", "pass"),
                nft: partial(run, nft, "nft", "-f", "-", given=text),
                module: partial(run, module, *PYTHON, "lockdown"),
                command: partial(run, command, script, "lockdown"),
            },
        )
    goal = Goal(0.020)
    table(
        "seal: from exec to a sealed pod (nft -f: the same text), a new network namespace each time",
        [
            Row(nothing, walls[nothing]),
            Row(f"{nft}: the kernel has it", kernel[nft]),
            Row(f"{module}: the kernel has it", kernel[module], f"{nft}: the kernel has it", goal),
            Row(f"{command}: the kernel has it", kernel[command], f"{nft}: the kernel has it", goal),
            Row(f"{nft}: ended", walls[nft]),
            Row(f"{module}: ended", walls[module], f"{nft}: ended"),
            Row(f"{command}: ended", walls[command], f"{nft}: ended"),
            Row(f"{nft}: CPU", cpu[nft]),
            Row(f"{module}: CPU", cpu[module], f"{nft}: CPU"),
        ],
    )


def up(runs: int) -> None:
    """From exec to set up, against wg-quick on the same file, in a new pod each time."""
    cpu: dict[str, list[float]] = {}
    answered: dict[str, list[float]] = {}

    def run(name: str, *argv: str) -> float:
        with Lab() as lab, stopwatch(lab.pod) as watch:
            file = str(lab.quick_path)
            env = {**lab.pod_env, "WG_CONFIG": file, **({} if lab.kernel_wireguard else QUICK_USERSPACE)}
            words = [file if word == "FILE" else word for word in argv]
            started = time.perf_counter()
            measured = watch.run(*words, env=env, daemon=DAEMON)
            wait_until(lambda: lab.traffic_source(4) == lab.provider.addresses[4], "an answer through the tunnel")
            answered.setdefault(name, []).append(time.perf_counter() - started)
            cpu.setdefault(name, []).append(measured.cpu)
            return measured.wall

    ours, quick = "init-wg up", "wg-quick up"
    walls = interleaved(
        runs, {ours: partial(run, ours, *PYTHON, "up"), quick: partial(run, quick, quick[:8], "up", "FILE")}
    )
    goal = Goal(1.0)
    table(
        "up: from exec to set up on the same file, a new pod each time; ours also seals, shakes hands and verifies",
        [
            Row(f"{quick}: ended", walls[quick]),
            Row(f"{ours}: ended", walls[ours], f"{quick}: ended", ratio_goal=goal),
            Row(f"{quick}: first answer from the web", answered[quick]),
            Row(
                f"{ours}: first answer from the web",
                answered[ours],
                f"{quick}: first answer from the web",
                ratio_goal=goal,
            ),
            Row(f"{quick}: CPU, {DAEMON}'s start included", cpu[quick]),
            Row(
                f"{ours}: CPU, {DAEMON}'s start included",
                cpu[ours],
                f"{quick}: CPU, {DAEMON}'s start included",
                ratio_goal=goal,
            ),
        ],
    )


def again(runs: int) -> None:
    """What it costs to find everything right."""
    with Lab() as lab, stopwatch(lab.pod) as watch:
        lab.init_wg("up")

        def run(*argv: str) -> float:
            return watch.run(*argv, env=lab.pod_env).wall

        walls = interleaved(
            runs,
            {
                "python -c pass": partial(run, sys.executable, "-c", "pass"),
                "init-wg up": partial(run, *PYTHON, "up"),
                "init-wg check": partial(run, *PYTHON, "check"),
            },
        )
    table(
        "again: up and check where everything is right already",
        [Row(name, samples, "python -c pass" if "wg" in name else None) for name, samples in walls.items()],
    )


def cidrs(count: int) -> str:
    """Networks of which no two can be merged, in as few letters as possible: one variable holds 128 KiB."""
    found = (f"{a}.{b}.{c}.0/24" for a in range(2, 10) for b in range(10) for c in range(0, 256, 2))
    return ",".join(name for name, _ in zip(found, range(count), strict=False))


def bypass(runs: int) -> None:
    """Ten thousand bypass networks against ten, in a new pod each time."""
    cpu: dict[str, list[float]] = {}
    repeated: dict[str, list[float]] = {}

    def run(name: str, networks: str) -> float:
        with Lab() as lab, stopwatch(lab.pod) as watch:
            env = {**lab.pod_env, "BYPASS_CIDRS": networks}
            measured = watch.run(*PYTHON, "up", env=env, daemon=DAEMON)
            cpu.setdefault(name, []).append(measured.cpu)
            repeated.setdefault(name, []).append(watch.run(*PYTHON, "up", env=env).wall)
            return measured.wall

    few, many = f"{FEW} networks", f"{MANY:,} networks"
    walls = interleaved(runs, {few: partial(run, few, cidrs(FEW)), many: partial(run, many, cidrs(MANY))})
    table(
        "bypass: init-wg up with many BYPASS_CIDRS, a new pod each time",
        [
            Row(f"{few}: up", walls[few]),
            Row(f"{many}: up", walls[many], f"{few}: up", ratio_goal=Goal(1.5)),
            Row(f"{few}: CPU", cpu[few]),
            Row(f"{many}: CPU", cpu[many], f"{few}: CPU"),
            Row(f"{few}: up again", repeated[few]),
            Row(f"{many}: up again", repeated[many], f"{few}: up again"),
        ],
    )


def throughput(runs: int) -> None:
    """iperf3 through the tunnel with and without the kill-switch, both ways, in the same pod, on the same tunnel."""
    with ExitStack() as stack:
        lab = stack.enter_context(Lab())
        server = ["iperf3", "--server", "--port", str(IPERF_PORT)]
        lab.web.popen(server, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, new_session=True)
        wait_until(lambda: listening(lab.web), "iperf3's server")

        def run(kill_switch: str, *way: str) -> float:
            lab.init_wg("up", env={"ENABLE_KILL_SWITCH": kill_switch})
            argv = ["iperf3", "--client", lab.web.addresses[4], "--port", str(IPERF_PORT), "--json", *way]
            done = lab.pod.run([*argv, "--time", str(int(IPERF_SECONDS)), "--omit", "1"])
            return float(json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"])

        without, protected = "without the kill-switch", "with the kill-switch"
        ways: dict[str, tuple[str, ...]] = {"up": (), "down": ("--reverse",)}
        commands = {
            f"{way}, {name}": partial(run, kill_switch, *flags)
            for way, flags in ways.items()
            for name, kill_switch in ((without, "false"), (protected, "true"))
        }
        speeds = interleaved(runs, commands)

    def show(speed: float) -> str:
        return f"{speed / 1e6:.0f} Mbit/s" if speed > 1000 else f"{speed:.2f}x"

    table(
        f"throughput: iperf3 through the tunnel, {IPERF_SECONDS:g} s each",
        [
            row
            for way in ways
            for row in (
                Row(f"{way}, {without}", speeds[f"{way}, {without}"], show=show),
                Row(
                    f"{way}, {protected}",
                    speeds[f"{way}, {protected}"],
                    f"{way}, {without}",
                    ratio_goal=Goal(0.98, at_least=True),
                    show=show,
                ),
            )
        ],
    )


def listening(member: Member) -> bool:
    return f":{IPERF_PORT}" in member.run(["ss", "--listening", "--tcp", "--numeric", "--no-header"]).stdout


#: By name, in the order in which they run; how many rounds unless told otherwise.
BENCHMARKS: Mapping[str, tuple[Callable[[int], None], int]] = {
    "seal": (seal, 25),
    "up": (up, 12),
    "again": (again, 15),
    "bypass": (bypass, 5),
    "throughput": (throughput, 8),
}
