"""One run at a time, and only those who could change the network anyway can make others wait."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.lab import Lab, wait_until
from tests.netns.chaos import Watchdog

HOLD = (
    "from init_wg.kernel import lock; held = lock.acquire(5); print('held', flush=True); import sys; sys.stdin.read()"
)
#: Root, but without a capability: what an application of a pod has at most.
APPLICATION = ("setpriv", "--bounding-set", "-all", "--inh-caps", "-all", "--no-new-privs")
#: Whatever of the lock's names and numbers may be had without privilege.
STRANGER = """
import contextlib, socket, time
kept = []
for name in ("\\0init_wg", "\\0init-wg"):
    kept.append(socket.socket(socket.AF_UNIX))
    kept[-1].bind(name)
    kept[-1].listen(16)
for port in (0, 1, 8, 128, *range(1000, 1100)):
    kept.append(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12))
    kept[-1].bind((port, 0))
try:
    kept[-1].bind((kept[-1].getsockname()[0], 128))
except PermissionError:
    print("refused", flush=True)
time.sleep(600)
"""
#: Many who want it: each says when it came in and when it went out.
CROWD = """
import sys, time
from init_wg.kernel import lock
for _ in range(5):
    with lock.acquire(60):
        print("in", flush=True)
        time.sleep(0.003)
        print("out", flush=True)
"""


@pytest.fixture
def network() -> Iterator[list[str]]:
    """The words that run a command in a network namespace of the test's own."""
    with subprocess.Popen(["unshare", "--net", "sleep", "600"]) as holder:
        own = Path("/proc/self/ns/net").readlink()
        wait_until(lambda: Path(f"/proc/{holder.pid}/ns/net").readlink() != own, "a namespace")
        yield ["nsenter", "--net", f"--target={holder.pid}"]
        holder.kill()


@contextlib.contextmanager
def running(argv: list[str], said: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == f"{said}\n"
        try:
            yield process
        finally:
            process.kill()


def test_one_holds_it_until_it_ends_however_that_is(network: list[str]) -> None:
    argv = [*network, sys.executable, "-c", HOLD]
    with (
        running(argv, "held") as first,
        subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as second,
    ):
        time.sleep(0.5)
        assert second.poll() is None
        first.kill()
        started = time.monotonic()
        assert second.stdout
        assert second.stdout.readline() == b"held\n"
        assert time.monotonic() - started < 0.5
        second.kill()


def test_another_network_has_another_one(network: list[str]) -> None:
    here, there = [*network, sys.executable, "-c", HOLD], ["unshare", "--net", sys.executable, "-c", HOLD]
    with running(here, "held"), running(there, "held"):
        assert True, "both hold theirs at the same time"


def test_never_two_at_once(network: list[str], tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    with journal.open("ab") as file:
        crowd = [subprocess.Popen([*network, sys.executable, "-c", CROWD], stdout=file) for _ in range(8)]
        assert [process.wait(60) for process in crowd] == [0] * 8
    assert journal.read_text().split() == ["in", "out"] * 40


def test_an_application_can_neither_hold_nor_delay_it(network: list[str]) -> None:
    with running([*network, *APPLICATION, sys.executable, "-c", STRANGER], "refused"):
        started = time.monotonic()
        with running([*network, sys.executable, "-c", HOLD], "held"):
            assert time.monotonic() - started < 2


def test_a_repair_is_made_while_an_application_takes_what_it_can() -> None:
    with Lab() as lab, Watchdog(lab) as watchdog:
        watchdog.settle()
        stranger = lab.pod.popen([*APPLICATION, sys.executable, "-c", STRANGER], stdout=subprocess.PIPE)
        assert stranger.stdout
        assert stranger.stdout.readline() == b"refused\n"
        lab.pod.run(["ip", "link", "delete", "wg0"])
        wait_until(lambda: lab.flows(0.5) and watchdog.active(), "repaired", 15)
        stranger.kill()
        stranger.wait()
