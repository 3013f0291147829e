"""Every command ends on SIGTERM and SIGINT within a second, as process 1 of a container too; and it ends sealed."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.lab import Lab, wait_until

FIRST = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
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
        yield
        lab.provider.speak()
    elif what == LOCKED:
        import subprocess

        holder = lab.pod.popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        yield
        holder.kill()
        holder.wait()
    else:
        yield


def child_of(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("command", "obstacle"), CASES)
def test_it_ends_at_once_and_sealed(lab: Lab, command: str, obstacle: str, number: signal.Signals) -> None:
    if command == "names" and number == signal.SIGINT:
        pytest.skip("dnsmasq ignores it")
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
            if obstacle == HANGING_NFT:
                wait_until(runs.exists, "nft")
            else:
                time.sleep(1.5)
            assert process.poll() is None
            started = time.monotonic()
            os.kill(first, number)
            ended = process.wait(10)
            assert time.monotonic() - started < 1
            assert ended == (0 if command in ("hold", "names") else 128 + number)
        finally:
            process.kill()
            process.wait()
    if command != "lockdown":  # whose whole work was prevented
        assert "policy drop" in lab.pod.run(["nft", "list", "table", "inet", "init_wg"]).stdout
