"""What a redirection and the forwarder add to a DNS query, against the tunnel's resolver asked directly."""

from __future__ import annotations

import itertools
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import dns.message
import dns.query

from tests.bench.report import Row, interleaved, table
from tests.lab.lab import CLUSTER_DNS, TUNNEL_DNS, Lab, wait_until

FORWARDER_PORT = 10053
QUERIES = 50  # a sample is the mean of so many: one alone is shorter than the scheduler's whims
_numbers = itertools.count()


def names(runs: int) -> None:
    """A DNS query's latency: redirected into the tunnel, or through the forwarder, against the resolver itself."""
    with pod("tunnel") as plain, pod("split") as split:
        samples = interleaved(
            runs,
            {
                "asked directly": lambda: latency(plain, TUNNEL_DNS[4]),
                "redirected (tunnel)": lambda: latency(plain, CLUSTER_DNS[4]),
                "through the forwarder (split): a new name": lambda: latency(split, CLUSTER_DNS[4]),
                "through the forwarder (split): known": lambda: latency(split, CLUSTER_DNS[4], same=True),
            },
        )
    direct = "asked directly"
    table(
        "names: one DNS query, UDP, as an application sends it",
        [Row(name, found, None if name == direct else direct) for name, found in samples.items()],
    )


@contextmanager
def pod(mode: str) -> Iterator[Lab]:
    """A pod in one DNS mode, with a forwarder where that has one."""
    with Lab() as lab:
        env = {**lab.pod_env, "DNS_MODE": mode}
        lab.init_wg("up", env=env)
        forwarder = lab.pod.popen([sys.executable, "-m", "init_wg", "names"], env=env, stderr=subprocess.DEVNULL)
        try:
            if mode == "split":
                wait_until(lambda: listening(lab), "the forwarder listens")
            latency(lab, CLUSTER_DNS[4], same=True)
            yield lab
        finally:
            forwarder.terminate()
            forwarder.wait()


def listening(lab: Lab) -> bool:
    with lab.pod.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(("127.0.0.1", FORWARDER_PORT)) == 0


def latency(lab: Lab, server: str, *, same: bool = False) -> float:
    """Seconds for one query, the mean of QUERIES; each by a socket of its own, as libc does it."""
    asked = ("same.example.com" if same else f"n{next(_numbers)}.example.com" for _ in range(QUERIES))
    questions = [dns.message.make_query(name, "A") for name in asked]
    with lab.pod.inside():
        started = time.perf_counter()
        for question in questions:
            dns.query.udp(question, server, timeout=5)
        return (time.perf_counter() - started) / QUERIES
