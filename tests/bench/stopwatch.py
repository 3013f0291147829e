"""Runs programs in a network namespace and measures them: wall time, CPU time, and when the kernel got a ruleset.

A process of its own, inside the namespace that is measured in: so nothing but the program itself is in the numbers.
Requests are lines of JSON on the standard input, answers lines of JSON on the standard output. Only the standard
library: `python stopwatch.py`.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

CLONE_NEWNET = 0x40000000
NETLINK_NETFILTER, NFNLGRP_NFTABLES = 12, 7
SOL_NETLINK, NETLINK_ADD_MEMBERSHIP = 270, 1
NEW_NETWORK = "link set lo up\nlink add eth0 type veth peer name peer0\nlink set eth0 up\nlink set peer0 up\n"


class Measured(NamedTuple):
    """One run. Times in seconds; loaded: until the kernel had committed its first ruleset, None: it got none."""

    wall: float
    cpu: float
    loaded: float | None
    status: int
    output: str


def measure(argv: Sequence[str], env: Mapping[str, str], given: str, *, fresh: bool, daemon: str) -> Measured:
    """Run one program to its end; `fresh`: in a new network namespace. `daemon`: what it leaves running."""
    if fresh:
        new_network()
    program = shutil.which(argv[0])
    if program is None:
        raise FileNotFoundError(argv[0])
    stdin, output = os.memfd_create("stdin"), os.memfd_create("output")
    os.write(stdin, given.encode())
    os.lseek(stdin, 0, os.SEEK_SET)
    actions = [(os.POSIX_SPAWN_DUP2, *pair) for pair in ((stdin, 0), (output, 1), (output, 2))]
    with listener() as committed:
        waiting: list[socket.socket | int] = [committed]
        loaded = None
        started = time.perf_counter()
        child = os.posix_spawn(program, list(argv), {**os.environ, **env}, file_actions=actions)
        ended = os.pidfd_open(child)
        waiting.append(ended)
        while ended not in (ready := select.select(waiting, [], [])[0]) or committed in ready:
            if committed in ready:
                loaded = time.perf_counter() - started
                waiting = [ended]
        wall = time.perf_counter() - started
        _, status, usage = os.wait4(child, 0)
        os.close(ended)
    printed = os.pread(output, os.fstat(output).st_size, 0).decode(errors="replace")
    os.close(stdin)
    os.close(output)
    cpu = usage.ru_utime + usage.ru_stime + (daemon_cpu(daemon) if daemon else 0)
    return Measured(wall, cpu, loaded, os.waitstatus_to_exitcode(status), printed)


def new_network() -> None:
    """This process is in a network namespace of its own from here on; the one before ends with the last who is in."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["ip", "-batch", "-"], input=NEW_NETWORK, text=True, check=True)


def listener() -> socket.socket:
    """Hears when the kernel of this namespace commits an nftables transaction."""
    heard = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
    heard.bind((0, 0))
    heard.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES)
    return heard


def daemon_cpu(name: str) -> float:
    """Seconds of CPU so far of all processes of this name in this network namespace, all threads."""
    here = os.stat("/proc/self/ns/net").st_ino
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "comm").read_text().strip() == name and (process / "ns/net").stat().st_ino == here:
                total += sum(int(task.read_text().split()[0]) for task in process.glob("task/*/schedstat"))
        except OSError:
            continue
    return total / 1e9


class Stopwatch:
    """The other end: asks a process that runs this file, in whatever namespace it was started."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin and process.stdout
        self.process = process
        self.questions: IO[bytes] = process.stdin
        self.answers: IO[bytes] = process.stdout

    def run(
        self,
        *argv: str,
        env: Mapping[str, str] | None = None,
        given: str = "",
        fresh: bool = False,
        daemon: str = "",
        check: bool = True,
    ) -> Measured:
        """Measure one run. Raises RuntimeError with what it printed, if it failed."""
        request = {"argv": argv, "env": dict(env or {}), "given": given, "fresh": fresh, "daemon": daemon}
        self.questions.write(json.dumps(request).encode() + b"\n")
        self.questions.flush()
        line = self.answers.readline()
        if not line:
            raise RuntimeError(f"{' '.join(argv)}: the stopwatch has ended")
        measured = Measured(**json.loads(line))
        if check and measured.status:
            raise RuntimeError(f"{' '.join(argv)}: exit {measured.status}\n{measured.output}")
        return measured

    def stop(self) -> None:
        self.questions.close()
        self.answers.close()
        self.process.wait()


def main() -> None:
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        answer = measure(
            request["argv"], request["env"], request["given"], fresh=request["fresh"], daemon=request["daemon"]
        )
        print(json.dumps(answer._asdict()), flush=True)


if __name__ == "__main__":
    main()
