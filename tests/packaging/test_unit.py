"""contrib/systemd as docs/node.md installs it, under a real systemd, on the lab's machine beside the lab's VPN."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.lab import NEEDS, LabError, wait_until
from tests.lab.machine import RESOLVER, MachineLab
from tests.lab.needs import Needs, demand
from tests.netns.chaos import fetch
from tests.netns.test_node_watchdog import works
from tests.packaging.test_wheel import ROOT, copy_of_the_project

UNIT = "init-wg-node"
#: A machine's own programs: the unit may not see the home of whoever runs these tests.
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
UNITS = "/run/units:/etc/systemd/system"
#: The machine's files, read-only but for layers that end with this process. Of its units systemd sees none: they would
#: do to this machine what they do at boot, and one of them empties /tmp.
MACHINE = r"""
set -eu
mount --make-rprivate /
for each in run opt tmp; do mount -t tmpfs -o mode=755 tmpfs "/$each"; done
chmod 1777 /tmp
for each in etc var; do
    mkdir -p "/run/upper/$each" "/run/work/$each"
    mount -t overlay overlay -o "lowerdir=/$each,upperdir=/run/upper/$each,workdir=/run/work/$each" "/$each"
done
mount -t tmpfs -o mode=755 tmpfs /etc/systemd
mkdir -p /etc/systemd/system /run/units /run/generators
for each in lab sysinit basic shutdown multi-user network-pre; do
    printf '[Unit]\nDescription=%s\nDefaultDependencies=no\nAllowIsolate=yes\n' "$each" >"/run/units/$each.target"
done
rm -f /etc/resolv.conf
printf 'nameserver %s\n' "$1" >/etc/resolv.conf
if ! [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    umount --recursive /sys/fs/cgroup 2>/dev/null || true
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
fi
mount -o remount,bind,ro /
echo ready
exec cat >/dev/null
"""


class Machine:
    """The lab's node with a systemd of its own."""

    def __init__(self, lab: MachineLab) -> None:
        self.lab = lab
        pipe = subprocess.PIPE
        argv = ["unshare", "--mount", "--", "sh", "-c", MACHINE, "sh", RESOLVER[4]]
        self.holder = subprocess.Popen(argv, stdin=pipe, stdout=pipe)
        lab.processes.append(self.holder)
        assert self.holder.stdout
        assert self.holder.stdout.readline() == b"ready\n"
        self.files = f"--mount=/proc/{self.holder.pid}/ns/mnt"

    def checked_out(self, folder: Path) -> None:
        """The project's files, as /opt/source."""
        copied = subprocess.Popen(["tar", "-C", folder, "-c", "."], stdout=subprocess.PIPE)
        unpack = "mkdir /opt/source && tar -C /opt/source -x"
        subprocess.run(["nsenter", self.files, "--", "sh", "-c", unpack], stdin=copied.stdout, check=True)
        assert copied.wait() == 0

    def typed(self, line: str) -> None:
        """A command of the page, before systemd runs; it may reach the package registry."""
        argv = ["nsenter", self.files, "--wdns=/opt/source", "--", "sh", "-euc", line]
        subprocess.run(argv, check=True, timeout=300, env={**os.environ, "PATH": PATH, "PIP_NO_CACHE_DIR": "1"})

    def boot(self) -> None:
        start = ["env", "--ignore-environment", "container=other", f"PATH={PATH}", f"SYSTEMD_UNIT_PATH={UNITS}"]
        start += ["SYSTEMD_GENERATOR_PATH=/run/generators", "/lib/systemd/systemd", "--system", "--unit=lab.target"]
        start += ["--log-target=null"]
        apart = ["unshare", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--mount-proc"]
        self.process = self.lab.node.popen(["nsenter", self.files, "--", *apart, *start], new_session=True)
        wait_until(lambda: self.ctl("is-system-running", check=False) == "running", "systemd runs", 30)

    @property
    def first(self) -> int:
        """systemd's number out here; 0 before it runs."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def inside(self, *argv: str, check: bool = True) -> str:
        """The output of a program where systemd is process 1."""
        if not self.first:
            return ""
        enter = ["nsenter", f"--target={self.first}", "--net", "--mount", "--pid", "--ipc", "--"]
        environment = {"PATH": PATH, "SYSTEMD_UNIT_PATH": UNITS}
        ended = subprocess.run([*enter, *argv], capture_output=True, text=True, check=False, env=environment)
        if check and ended.returncode:
            raise LabError(f"{' '.join(argv)}: {ended.stdout}{ended.stderr}")
        return ended.stdout.strip()

    def ctl(self, *argv: str, check: bool = True) -> str:
        return self.inside("systemctl", *argv, check=check)

    def shows(self, name: str) -> str:
        """A property of the unit."""
        return self.ctl("show", UNIT, "--value", "--property", name)

    def table(self) -> str:
        """With handles: another one after each replacement. "" where there is none."""
        argv = ["nft", "--stateless", "--handle", "list", "table", "inet", "init_wg_node"]
        return self.lab.node.run(argv, check=False).stdout

    def becomes_ready(self) -> None:
        said = "node is ready: VPN connected"
        wait_until(lambda: fetch(self.lab.node, "127.0.0.1", "/") == said, "it is ready", 30)


def commands() -> list[str]:
    """The page's, but for its comments."""
    section = (ROOT / "docs/node.md").read_text().partition("\n## With systemd\n")[2]
    found = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert found
    return [line.partition("    #")[0] for line in found[1].splitlines() if line]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Installed and enabled, by the page's commands."""
    demand("the unit's suite", NEEDS, Needs({"systemd-analyze": "systemd"}))
    with MachineLab() as lab:
        lab.vpn("connected")
        assert not works(lab), "the control: the app alone stops all of it"
        it = Machine(lab)
        it.checked_out(copy_of_the_project(tmp_path_factory.mktemp("source")))
        *install, enable = commands()
        for line in install:
            it.typed(line)
        it.boot()
        it.inside("sh", "-euc", enable)
        it.becomes_ready()
        yield it
        os.kill(it.first, signal.SIGKILL)
        it.process.wait(20)


def test_the_cluster_works(machine: Machine) -> None:
    assert works(machine.lab)
    assert machine.shows("ActiveState") == "active"


def test_systemd_finds_no_fault(machine: Machine) -> None:
    """And little that the unit could do but what it has to: of 10, which is everything, at most 2."""
    assert machine.inside("systemd-analyze", "verify", f"/etc/systemd/system/{UNIT}.service") == ""
    exposed = machine.inside("systemd-analyze", "security", "--threshold=20", "--no-pager", f"{UNIT}.service")
    assert "Overall exposure level" in exposed


def test_it_has_one_capability_and_is_nobody(machine: Machine) -> None:
    status = machine.inside("cat", f"/proc/{machine.shows('MainPID')}/status")
    told = dict(line.split(":\t", 1) for line in status.splitlines())
    assert int(told["Uid"].split()[1]) >= 61184, "a dynamic user"
    assert {told[name] for name in ("CapEff", "CapPrm", "CapBnd")} == {f"{1 << 12:016x}"}
    assert told["NoNewPrivs"] == "1"


def test_it_starts_after_the_app_and_before_the_cluster(machine: Machine) -> None:
    assert "mullvad-early-boot-blocking.service" in machine.shows("After").split()
    assert {"kubelet.service", "k3s.service", "docker.service"} <= set(machine.shows("Before").split())


def test_killed_it_is_started_again_and_nothing_is_cut(machine: Machine) -> None:
    before, table = machine.shows("MainPID"), machine.table()
    machine.ctl("kill", "--signal=KILL", UNIT)
    assert works(machine.lab)
    wait_until(lambda: machine.shows("MainPID") not in ("0", before), "another process", 20)
    machine.becomes_ready()
    assert machine.table() == table
    machine.lab.node.run(["nft", "delete", "table", "inet", "init_wg_node"])
    wait_until(lambda: works(machine.lab), "it repairs again", 20)


def test_what_flannel_writes_is_read(machine: Machine) -> None:
    """By a user that is nobody, at the next look."""
    assert "10.42.0.0/16" not in machine.table()
    write = "mkdir -p /run/flannel; echo FLANNEL_NETWORK=10.42.0.0/16 >/run/flannel/subnet.env"
    machine.inside("sh", "-euc", write)
    machine.ctl("reload", UNIT)
    wait_until(lambda: "10.42.0.0/16" in machine.table(), "the network is known", 20)
    machine.inside("rm", "/run/flannel/subnet.env")
    machine.ctl("reload", UNIT)
    wait_until(lambda: "10.42.0.0/16" not in machine.table(), "it is gone", 20)


def test_a_wrong_setting_ends_it_and_leaves_the_table(machine: Machine) -> None:
    table = machine.table()
    settings = machine.inside("cat", "/etc/default/init-wg-node")
    machine.inside("sh", "-euc", "echo NODE_INBOUND=everything >/etc/default/init-wg-node")
    try:
        machine.ctl("restart", UNIT, check=False)
        wait_until(lambda: machine.shows("ActiveState") == "failed", "it gives up", 20)
        assert machine.shows("ExecMainStatus") == "2"
        assert machine.table() == table
        assert works(machine.lab)
    finally:
        machine.inside("sh", "-euc", f"echo '{settings}' >/etc/default/init-wg-node")
    machine.ctl("restart", UNIT)
    machine.becomes_ready()


def test_stopped_it_leaves_the_table_and_a_command_takes_it_away(machine: Machine) -> None:
    """docs/decisions/013: an upgrade must not cut the cluster off."""
    table = machine.table()
    machine.ctl("stop", UNIT)
    assert machine.table() == table
    assert works(machine.lab)
    (down,) = re.findall(r"`(/opt/init-wg/bin/init-wg node down)`", (ROOT / "docs/node.md").read_text())
    machine.inside("sh", "-euc", down)
    assert machine.table() == ""
    assert not works(machine.lab)
    machine.ctl("start", UNIT)
    wait_until(lambda: works(machine.lab), "started again, it works", 20)
