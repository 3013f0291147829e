"""The benchmarks of server mode: a thousand peers, and what passes through, beside a plain server of two rules."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from functools import partial

from tests.bench.report import Goal, Row, interleaved, progress, table
from tests.lab.lab import wait_until
from tests.lab.served import ServerLab
from tests.netns.chaos import Watchdog

PEERS = 1000
#: A /24 has no room for them.
MANY = {"PEERS": str(PEERS), "INTERNAL_SUBNET": "10.13.0.0/16"}
IPERF_PORT, IPERF_SECONDS = 5201, 4
#: linuxserver's: what comes from the tunnel is forwarded, and bears the pod's address.
TWO_RULES = """flush ruleset
table ip plain {
    chain forward { type filter hook forward priority 0; iifname "wg0" accept; }
    chain out { type nat hook postrouting priority srcnat; oifname "eth0" masquerade; }
}
"""


def peers(rounds: int) -> None:
    """A server of 1,000 peers: its start, one peer more, its watchdog."""
    walls: dict[str, list[float]] = {"first": [], "again": [], "one more": []}
    pages: list[float] = []
    memory: list[float] = []
    lost: list[float] = []
    for number in range(rounds):
        progress(f"round {number + 1} of {rounds}")
        with ServerLab() as lab:

            def up(lab: ServerLab = lab, **environment: str) -> float:
                started = time.perf_counter()
                lab.run_server("up", env={**MANY, **environment})
                return time.perf_counter() - started

            walls["first"].append(up())
            lab.run_server("down", env=MANY)
            walls["again"].append(up())
            lab.join(lab.roadwarrior, lab.run_server("peer", "show", "peer1", env=MANY).stdout)
            argv = ["ping", "-n", "-q", "-i", "0.005", "-w", "30", "-c", "1000", lab.web.addresses[4]]
            pinging = lab.roadwarrior.popen(argv, stdout=subprocess.PIPE)
            time.sleep(1)
            walls["one more"].append(up(PEERS=str(PEERS + 1)))
            told = re.search(r"(\d+) packets transmitted, (\d+) received", pinging.communicate()[0].decode())
            assert told
            lost.append(int(told[1]) - int(told[2]))
            with Watchdog(lab, env={**lab.server_env, **MANY, "PEERS": str(PEERS + 1)}) as watchdog:
                watchdog.settle()
                for _ in range(10):
                    started = time.perf_counter()
                    page = watchdog.ask("/metrics")
                    pages.append(time.perf_counter() - started)
                    assert f'name="peer{PEERS}"' in page
                    time.sleep(1.1)  # a page is kept for up to a second
                watchdog.ask("/status")
                time.sleep(2)
                memory.append(watchdog.resident() / 1024)
    progress("")
    table(
        f"peers: a server of {PEERS:,} peers",
        [
            Row("up: all keys are made", walls["first"]),
            Row("up: the keys are on the volume", walls["again"], goal=Goal(2.0)),
            Row("up: one peer more", walls["one more"], goal=Goal(0.3)),
            Row("packets of another peer lost meanwhile", lost, goal=Goal(0), show=lambda count: f"{count:.0f}"),
            Row("/metrics", pages, goal=Goal(0.05)),
            Row("the watchdog's memory", memory, goal=Goal(20.0), show=lambda size: f"{size:.1f} MiB"),
        ],
    )


def forward(rounds: int) -> None:
    """iperf3 from a peer through the server, with its rules and with two rules of a plain server, on one device."""
    with ServerLab() as lab:
        lab.run_server("up")
        lab.join(lab.roadwarrior, lab.client_file("roadwarrior"))
        server = ["iperf3", "--server", "--port", str(IPERF_PORT)]
        lab.web.popen(server, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, new_session=True)
        listening = ["ss", "--listening", "--tcp", "--numeric", "--no-header"]
        wait_until(lambda: f":{IPERF_PORT}" in lab.web.run(listening).stdout, "iperf3's server")

        def plain() -> None:
            lab.pod.run(["nft", "-f", "-"], stdin=TWO_RULES)
            for rule in lab.pod.run(["ip", "rule"]).stdout.splitlines():
                if not rule.endswith(("lookup local", "lookup main", "lookup default")):
                    lab.pod.run(["ip", "rule", "delete", "preference", rule.partition(":")[0]])
            lab.pod.sysctl(ipv4__ip_forward=1)

        def ours() -> None:
            lab.pod.sysctl(ipv4__ip_forward=0)
            lab.pod.run(["nft", "flush", "ruleset"])
            lab.run_server("up")

        def run(prepare: Callable[[], None], *way: str) -> float:
            prepare()
            argv = ["iperf3", "--client", lab.web.addresses[4], "--port", str(IPERF_PORT), "--json", *way]
            done = lab.roadwarrior.run([*argv, "--time", str(IPERF_SECONDS), "--omit", "1"])
            return float(json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"])

        ways: dict[str, tuple[str, ...]] = {"up": (), "down": ("--reverse",)}
        speeds = interleaved(rounds, {
            f"{way}, {name}": partial(run, prepare, *flags)
            for way, flags in ways.items() for name, prepare in (("two rules", plain), ("init-wg", ours))
        })  # fmt: skip

    def show(speed: float) -> str:
        return f"{speed / 1e6:.0f} Mbit/s" if speed > 1000 else f"{speed:.2f}x"

    rows = []
    for way in ways:
        peer, goal = f"{way}, two rules", Goal(0.98, at_least=True)
        rows.append(Row(peer, speeds[peer], show=show))
        rows.append(Row(f"{way}, init-wg", speeds[f"{way}, init-wg"], peer, ratio_goal=goal, show=show))
    table(f"forward: iperf3 from a peer through the server, {IPERF_SECONDS} s each", rows)


SERVING: Mapping[str, tuple[Callable[[int], None], int]] = {"peers": (peers, 3), "forward": (forward, 6)}
