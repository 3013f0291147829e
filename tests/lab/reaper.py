"""Takes a lab down, whatever happened to the process that built it.

Every lab starts one of these at once and holds the other end of its standard input. End of file means: tear
down. It comes when the lab closes the pipe, and just as surely when the lab's owner dies by SIGKILL: so there
is one way down, and it is used every time.

    python reaper.py <prefix of the namespaces' names> <folder to remove>
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

NETNS = Path("/run/netns")
PREFIX = "iwg"  # <PREFIX>-<owner's pid>-<owner's start time>-<number>-<member>


def start_time(pid: int) -> int | None:
    """When a process started, in ticks since boot: pid and this name a process for good. None: no process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])


def inhabitants(namespaces: set[int]) -> list[int]:
    """The processes that live in these network namespaces (by inode)."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "ns/net").stat().st_ino in namespaces:
                    found.append(int(entry.name))
            except OSError:  # gone meanwhile, or a zombie
                continue
    return found


def remove(prefix: str, folder: Path) -> None:
    """End what runs in the namespaces whose names start with `prefix`, then delete them and the folder."""
    names = [path for path in NETNS.glob(f"{prefix}*") if path.is_file()]
    inodes = {path.stat().st_ino for path in names}
    deadline = time.monotonic() + 10
    while (pids := inhabitants(inodes)) and time.monotonic() < deadline:
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.002)  # between two looks: it is the look that counts
    batch = "".join(f"netns del {path.name}\n" for path in names)
    subprocess.run(["ip", "-force", "-batch", "-"], input=batch, text=True, stderr=subprocess.DEVNULL, check=False)
    shutil.rmtree(folder, ignore_errors=True)


def sweep(temporary: Path) -> None:
    """Remove what labs left behind whose owner, and whose reaper, are dead."""
    leftovers = {}
    for path in [*NETNS.glob(f"{PREFIX}-*"), *temporary.glob(f"{PREFIX}-*")]:
        parts = path.name.split("-")
        if len(parts) >= 4 and parts[1].isdigit() and parts[2].isdigit():
            leftovers["-".join(parts[:4])] = start_time(int(parts[1])) == int(parts[2])
    for name, alive in leftovers.items():
        if not alive:
            remove(name, temporary / name)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # Ctrl-C is for the owner: this must survive it
    sys.stdin.buffer.read()
    remove(sys.argv[1], Path(sys.argv[2]))
