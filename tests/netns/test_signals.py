"""Every command ends on SIGTERM, SIGINT and SIGQUIT within a second, as process 1 of a container, too, and sealed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.lab import Lab, wait_until

#: A shell without job control has its background jobs ignore some signals, and these tests would inherit that.
FIRST = ("env", "--default-signal", "unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
#: In the way of each command: a peer that is silent; an nft that does not end; somebody who holds the lock; nothing.
SILENT, HANGING_NFT, LOCKED, NOTHING = "a silent peer", "an nft that hangs", "the lock", "nothing"
CASES = (
    ("up", SILENT), ("up", HANGING_NFT), ("up", LOCKED), ("lockdown", HANGING_NFT), ("check", HANGING_NFT),
    ("status", HANGING_NFT), ("down", LOCKED), ("down", HANGING_NFT), ("hold", NOTHING), ("names", NOTHING),
)  # fmt: skip
HOLDER = "from init_wg.kernel import lock; held = lock.acquire(5); print('held', flush=True); input()"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        nft = lab.folder / "bin" / "nft"
        nft.parent.mkdir()
        nft.write_text("#!/bin/sh\ntouch $0.runs\nexec sleep 600\n")
        nft.chmod(0o755)
        yield lab


@contextlib.contextmanager
def in_the_way(lab: Lab, what: str) -> Iterator[None]:
    if what == SILENT:
        lab.provider.silence()
        try:
            yield
        finally:
            lab.provider.speak()
    elif what == LOCKED:
        holder = lab.pod.popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        try:
            yield
        finally:
            holder.kill()
            holder.wait()
    else:
        yield


def child_of(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else 0


def asleep(pid: int) -> bool:
    """Does this process wait for something that is no child of its own?"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S" and not child_of(pid)


def asleep_for_long(pid: int) -> bool:
    """At ten looks in a row. Whatever a command does on its way keeps it awake, or has a child do it."""
    for _ in range(10):
        if not asleep(pid):
            return False
        time.sleep(0.01)
    return True


def at_the_obstacle(lab: Lab, first: int, command: str, obstacle: str) -> bool:
    """Is process 1 where it would stay for long?"""
    if obstacle == HANGING_NFT:
        return (lab.folder / "bin" / "nft.runs").exists()
    if obstacle == SILENT:
        return lab.provider.public_key in lab.pod.run(["wg", "show", "wg0", "peers"], check=False).stdout
    try:
        if command == "names":
            return Path(f"/proc/{child_of(first)}/comm").read_text() == "dnsmasq\n"
        return asleep_for_long(first)
    except OSError:  # a child has ended just then
        return False


SECOND = 1.0
#: Another process may hold up one of them; a command that is slow is so each time.
TIMES = 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
@pytest.mark.parametrize(("command", "obstacle"), CASES)
def test_it_ends_at_once_and_sealed(lab: Lab, command: str, obstacle: str, number: signal.Signals) -> None:
    assert any(seconds_to_end(lab, command, obstacle, number) < SECOND for _ in range(TIMES))


def seconds_to_end(lab: Lab, command: str, obstacle: str, number: signal.Signals) -> float:
    """From the signal to the end of process 1, which has to be sealed then."""
    lab.init_wg("down", check=False)
    if command == "lockdown":
        lab.pod.run(["nft", "flush", "ruleset"])
    else:
        lab.init_wg("up" if command in ("check", "status", "names", "down") else "lockdown", env={"DNS_MODE": "split"})
    runs = lab.folder / "bin" / "nft.runs"
    runs.unlink(missing_ok=True)
    env = {**lab.pod_env, "HANDSHAKE_TIMEOUT": "60", "DNS_MODE": "split"}
    if obstacle == HANGING_NFT:
        env["PATH"] = f"{lab.folder}/bin:{os.environ['PATH']}"
    with in_the_way(lab, obstacle):
        process = lab.pod.popen([*FIRST, sys.executable, "-m", "init_wg", command], env=env)
        try:
            first = wait_until(lambda: child_of(process.pid), "process 1")
            wait_until(lambda: at_the_obstacle(lab, first, command, obstacle), "what is in its way")
            assert process.poll() is None
            started = time.monotonic()
            os.kill(first, number)
            ended = process.wait(10)
            seconds = time.monotonic() - started
            assert ended == (0 if command == "hold" else 128 + number)
        finally:
            process.kill()
            process.wait()
    if command != "lockdown":  # whose whole work was prevented
        assert "policy drop" in lab.pod.run(["nft", "list", "table", "inet", "init_wg"]).stdout
    return seconds
