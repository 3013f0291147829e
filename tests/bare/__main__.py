"""python -m tests.bare [SUITE ...]: do the README's commands work on a bare machine? Root; needs mmdebstrap.

A root of each suite is made of packages, with what the README asks for and nothing else. In it, on a copy of the
working tree, run `make check`, `make demo`, the unit tests and some tests on real networks; with BARE=full in the
environment `make test`, too. What this machine cannot try is named, and is no failure.

How this machine reaches package registries goes along from outside: apt's Acquire settings, the environment, pip's
configuration, and the certificates that the administrator has added.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
CACHE = PROJECT / ".cache/bare"
#: Without a word: the first three. sid has the newest Python.
SUITES = {"bookworm": "Debian 12", "trixie": "Debian 13", "noble": "Ubuntu 24.04", "sid": "Debian sid"}
UBUNTU = {"noble": "http://archive.ubuntu.com/ubuntu"}
#: The keys of Ubuntu's archive: a package of Debian's, since trixie.
UBUNTU_KEYS = CACHE / "ubuntu-keyring/usr/share/keyrings/ubuntu-archive-keyring.gpg"
DEBIAN_KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
# Ubuntu does not count apt among the packages that are required.
PACKAGES = "apt,ca-certificates,git,make,python3,python3-pip"
QUICK = "tests/netns/test_bad_input.py tests/netns/test_killswitch_text.py tests/netns/test_status.py"
COMMANDS = ("make check", "make demo", "make test-unit", f".venv/bin/python -m pytest {QUICK}")
#: How to enter: mounts and processes of its own, so that whatever happens nothing of it is left.
ENTER = ["unshare", "--mount", "--pid", "--fork", "--kill-child=SIGKILL", "--propagation", "private", "sh", "-euc"]
#: The new root becomes that of the mount namespace: what a lab enters by nsenter would otherwise be the machine's.
INSIDE = """
root=$1
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mkdir -p "$root/before"
cd "$root"
pivot_root . before
exec chroot . sh -euc 'umount -l /before; cd /srv/init-wg; exec sh -c "$1"' sh "$2"
"""


def main(suites: list[str]) -> int:
    if os.geteuid() or not shutil.which("mmdebstrap"):
        print("bare: needs root and the Debian package mmdebstrap", file=sys.stderr)
        return 3
    if unknown := [suite for suite in suites if suite not in SUITES]:
        print(f"bare: there is no {unknown[0]}; there is: {', '.join(SUITES)}", file=sys.stderr)
        return 2
    commands = [*COMMANDS, *(["make test"] if os.environ.get("BARE") == "full" else [])]
    print("not tried here without BARE=full: make test's virtual machine, containers and the rest of tests/netns")
    CACHE.mkdir(parents=True, exist_ok=True)
    results: dict[str, str] = {}
    for suite in suites or list(SUITES)[:3]:
        reason = unavailable(suite)
        results[suite] = f"skipped: {reason}" if reason else tried(suite, commands)
        print(f"{SUITES[suite]}: {results[suite]}", flush=True)
    return int(any(result.startswith("failed") for result in results.values()))


def unavailable(suite: str) -> str | None:
    """Why no root of this suite can be made here; None when one can, or is there."""
    if suite not in UBUNTU or archive(suite).exists():
        return None
    if not UBUNTU_KEYS.exists():
        with apt(f"deb [signed-by={DEBIAN_KEYS}] http://deb.debian.org/debian trixie main") as run:
            if run("update") or run("download", "ubuntu-keyring"):
                return "Debian 13's package ubuntu-keyring, with the keys, cannot be had"
            (package,) = CACHE.glob("ubuntu-keyring_*.deb")
            subprocess.run(["dpkg-deb", "-x", package, CACHE / "ubuntu-keyring"], check=True)
            package.unlink()
    with apt(f"deb [signed-by={UBUNTU_KEYS}] {UBUNTU[suite]} {suite} main") as run:
        return f"{UBUNTU[suite]} does not answer" if run("update") else None


@contextmanager
def apt(source: str) -> Iterator[Callable[..., int]]:
    """apt-get with another source than this machine's, and no other effect on it. Its exit status."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sources.list").write_text(source + "\n")
        (Path(folder) / "lists/partial").mkdir(parents=True)
        options = [f"Dir::Etc::SourceList={folder}/sources.list", "Dir::Etc::SourceParts=/dev/null"]
        options += [f"Dir::State::Lists={folder}/lists", f"Dir::Cache={folder}", "APT::Sandbox::User=root"]
        options += ["APT::Update::Error-Mode=any", "Acquire::Languages=none", "Acquire::http::Timeout=20"]
        argv = ["apt-get", "-q", *(word for option in options for word in ("-o", option))]
        yield lambda *words: subprocess.run([*argv, *words], cwd=CACHE, capture_output=True, check=False).returncode


def archive(suite: str) -> Path:
    return CACHE / f"{suite}.tar"


def tried(suite: str, commands: list[str]) -> str:
    """Run the commands in a new root. Returns what became of them, in words."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=f"{suite}-") as folder:
        root = Path(folder)
        try:
            if not archive(suite).exists():
                make(suite)
        except subprocess.CalledProcessError as error:
            return f"failed: no root: {error.cmd[0]} ended with {error.returncode}"
        subprocess.run(
            ["tar", "--extract", "--numeric-owner", "--file", archive(suite), "--directory", root], check=True
        )
        furnish(root)
        for command in commands:
            print(f"\n=== {SUITES[suite]}: {command}", flush=True)
            done = subprocess.run([*ENTER, INSIDE, "sh", str(root), command], env=environment(), check=False)
            if done.returncode:
                return f"failed: {command} (exit {done.returncode})"
    return f"passed: {'; '.join(commands)} ({time.monotonic() - began:.0f} s)"


def make(suite: str) -> None:
    making = archive(suite).with_suffix(".making.tar")
    certificates = ["copy-in /usr/local/share/ca-certificates /usr/local/share", 'chroot "$1" update-ca-certificates']
    hooks = certificates if any(Path("/usr/local/share/ca-certificates").glob("*.crt")) else []
    argv = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}"]
    argv += [f"--customize-hook={hook}" for hook in hooks] + [f"--aptopt={line}" for line in acquire().splitlines()]
    if suite in UBUNTU:
        pockets = (suite, f"{suite}-updates")
        sources = [f"deb [signed-by={UBUNTU_KEYS}] {UBUNTU[suite]} {pocket} main universe" for pocket in pockets]
        subprocess.run([*argv, suite, making, "-"], input="\n".join(sources), text=True, check=True, timeout=900)
    else:
        subprocess.run([*argv, suite, making], check=True, timeout=900)
    making.rename(archive(suite))


def furnish(root: Path) -> None:
    """This machine's ways to the registries, and the working tree: what git knows or would add."""
    for name in ("resolv.conf", "hosts", "pip.conf"):
        if (source := Path("/etc", name)).exists():
            (root / "etc" / name).unlink(missing_ok=True)
            shutil.copyfile(source, root / "etc" / name)
    (root / "etc/apt/apt.conf.d/99outside").write_text(acquire())
    target = root / "srv/init-wg"
    target.mkdir(parents=True)
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listed, cwd=PROJECT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, files):
        if (source := PROJECT / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name, follow_symlinks=False)


def acquire() -> str:
    """How this machine's apt gets at archives: its Acquire settings, without those that say what there is in one."""
    dumped = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout.splitlines()
    ours = re.compile(r'Acquire::(?!IndexTargets|cdrom|Changelogs).* ".+";')
    return "".join(f"{line}\n" for line in dumped if ours.fullmatch(line))


def environment() -> dict[str, str]:
    """This machine's, but for what names programs and folders that are not in there."""
    left_out = {
        "PATH",
        "HOME",
        "PIP_FIND_LINKS",
        "VIRTUAL_ENV",
        "PYTHONPATH",
        "PYTHONHOME",
        "TMPDIR",
        "MAKEFLAGS",
        "MAKELEVEL",
        "MFLAGS",
    }
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    return {**kept, "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
