"""A Docker daemon of our own: in namespaces of its own, so that it meets no other daemon and leaves nothing behind.

It lives in new network, mount and process namespaces. Its bridges, firewall rules and containers are all in there,
and ending its first process ends every one of them at once: that is also what a power failure looks like. What
stays is the folder with its images (.cache/containers), so that the second run builds nothing.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Self

from tests.lab.needs import Needs, tun
from tests.lab.patience import LabError
from tests.lab.patience import wait_until as wait_until

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache/containers"
BASES = {"debian:bookworm-slim": "bookworm", "debian:trixie-slim": "trixie"}
IMAGE, LAB_IMAGE = "init-wg", "init-wg-lab"

# The first process in the namespaces. It waits for a line before it starts the daemon: time to begin a capture.
# /run/containerd is hidden, or the daemon would take another's containerd, which lives in another mount namespace.
_INIT = """
set -eu
mkdir -p /run/containerd
mount -t tmpfs tmpfs /run/containerd
mount --bind "$1/resolv.conf" /etc/resolv.conf
ip link set lo up
read -r _
dockerd --data-root "$2" --exec-root "$1/exec" --pidfile "$1/pid" --host "unix://$1/socket" \
    --storage-driver overlay2 >>"$1/log" 2>&1 &
daemon=$!
trap 'kill -TERM "$daemon"' TERM
while kill -0 "$daemon" 2>/dev/null; do wait "$daemon" || :; done
"""


class EngineError(LabError):
    """The engine, not what is tested with it, does not work."""


def docker_command() -> str:
    """The client that belongs to Debian's daemon, if that is what is installed."""
    return "/usr/bin/docker" if Path("/usr/bin/docker").exists() else "docker"


def compose_command() -> list[str] | None:
    """Compose: version 2, a plugin, or else version 1."""
    plugin = [docker_command(), "compose"]
    if subprocess.run([*plugin, "version"], capture_output=True, check=False).returncode == 0:
        return plugin
    alone = shutil.which("docker-compose")
    return [alone] if alone else None


def some_compose() -> str | None:
    """For NEEDS."""
    return None if compose_command() else "the Debian package docker-compose, or Docker's compose plugin"


NEEDS = Needs(
    {
        "dockerd": "docker.io",
        "docker": "docker.io",
        "mmdebstrap": "mmdebstrap",
        "slirp4netns": "slirp4netns",
        "tcpdump": "tcpdump",
        "unshare": "util-linux",
    },
    root=True,
    others=(tun, some_compose),
)


class Engine:
    """One daemon, from `with` to its end. Only one at a time: they share the folder of the images."""

    def __enter__(self) -> Self:
        CACHE.mkdir(parents=True, exist_ok=True)
        self._lock = (CACHE / "lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.folder = Path(tempfile.mkdtemp(prefix="init-wg-docker-"))
        (self.folder / "resolv.conf").write_text("nameserver 10.0.2.3\n")  # slirp4netns's own
        self.environment = {
            **os.environ,
            "DOCKER_HOST": f"unix://{self.folder}/socket",
            "DOCKER_BUILDKIT": "1",
            "DOCKER_CONFIG": str(self.folder),
            "COMPOSE_INTERACTIVE_NO_CLI": "1",
        }
        try:
            self.prepare()
            self.boot()
            self._sweep()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self.running:
                self._sweep()
                os.kill(self.first, signal.SIGTERM)
                try:
                    self._unshare.wait(20)
                except subprocess.TimeoutExpired:
                    self.power_off()
        finally:
            if self.running:
                self.power_off()
            self._lock.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    # --- the daemon ------------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        return hasattr(self, "_unshare") and self._unshare.poll() is None

    def prepare(self) -> None:
        """New namespaces, and nothing in them: what begins to listen now misses nothing."""
        argv = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child=SIGKILL", "--propagation", "private"]
        argv += ["--mount-proc", "--", "sh", "-c", _INIT, "sh", str(self.folder), str(CACHE / "docker")]
        self._unshare = subprocess.Popen(argv, stdin=subprocess.PIPE, start_new_session=True)
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children")
        self.first = int(wait_until(lambda: children.read_text().split()[:1], "the first process", 10)[0])
        loopback = ["ip", "-brief", "address", "show", "lo", "up"]
        wait_until(lambda: self.inside(*loopback, quiet=True), "the namespaces", 10)

    def boot(self) -> None:
        """Start the daemon in them; it starts the containers that it was running when it ended."""
        if self._unshare.stdin is None:
            raise EngineError("the namespaces are not prepared")
        self._unshare.stdin.write(b"\n")
        self._unshare.stdin.close()

        def answers() -> bool:
            if not self.running:
                raise EngineError(f"the daemon ended:\n{self.last_words()}")
            return self.try_docker("version") is not None

        try:
            wait_until(answers, "the daemon answers", 60)
        except EngineError as error:
            raise EngineError(f"{error}\n{self.last_words()}") from None

    def power_off(self) -> None:
        """Everything ends at once, without a word: the daemon, every container, and the network."""
        self._unshare.kill()
        self._unshare.wait()
        wait_until(lambda: not Path(f"/proc/{self.first}/ns/net").exists(), "everything has ended", 30)
        shutil.rmtree(self.folder / "exec", ignore_errors=True)  # what lives in /run elsewhere
        for name in ("pid", "socket"):
            (self.folder / name).unlink(missing_ok=True)

    def last_words(self) -> str:
        try:
            return (self.folder / "log").read_text()[-2000:]
        except OSError:
            return ""

    def _sweep(self) -> None:
        """Remove containers and networks, whoever left them. The latest images stay, and what builds the next ones."""
        if containers := self.docker("ps", "-aq").split():
            self.docker("rm", "-f", "-v", *containers)
        self.docker("network", "prune", "-f")
        self.docker("volume", "prune", "-f")
        self.docker("image", "prune", "-f")
        self.docker("builder", "prune", "-f", "--keep-storage", "2GB")

    # --- commands --------------------------------------------------------------------------------------------------

    def inside(self, *argv: str, quiet: bool = False) -> str:
        """Run a program in the daemon's network; its output. quiet: "" instead of an error."""
        ended = subprocess.run([*self.enter, *argv], capture_output=True, text=True, check=False)
        if ended.returncode and not quiet:
            raise EngineError(f"{' '.join(argv)}: {ended.stderr.strip()}")
        return "" if ended.returncode else ended.stdout

    @property
    def enter(self) -> list[str]:
        """What to put before a command to run it in the daemon's network."""
        return ["nsenter", f"--net=/proc/{self.first}/ns/net", "--"]

    def run(self, *argv: str, timeout: float = 120, **more: str) -> subprocess.CompletedProcess[str]:
        """A program that talks to the daemon, whatever it ends with."""
        return subprocess.run(
            argv, env={**self.environment, **more}, capture_output=True, text=True, timeout=timeout, check=False
        )

    def docker(self, *arguments: str, timeout: float = 120) -> str:
        """The output of a docker command that has to succeed."""
        ended = self.run(docker_command(), *arguments, timeout=timeout)
        if ended.returncode:
            raise EngineError(f"docker {' '.join(arguments)}: {(ended.stderr or ended.stdout).strip()}")
        return ended.stdout.strip()

    def try_docker(self, *arguments: str) -> str | None:
        """The same, and None when it fails."""
        ended = self.run(docker_command(), *arguments)
        return None if ended.returncode else ended.stdout.strip()

    def inspect(self, container: str, template: str) -> str:
        """One fact about a container; "" when there is none of the name."""
        return self.try_docker("inspect", "--format", template, container) or ""

    # --- images ----------------------------------------------------------------------------------------------------

    @cached_property
    def images(self) -> Mapping[str, str]:
        """Build what is not built: the image under test, and the one of the lab. Name -> id."""
        slirp = ["slirp4netns", "--configure", "--mtu=65520", "--disable-host-loopback", "--ready-fd=1"]
        with subprocess.Popen([*slirp, str(self.first), "uplink0"], stdout=subprocess.PIPE) as uplink:
            try:
                if uplink.stdout is None or not uplink.stdout.read(1):
                    raise EngineError("slirp4netns does not start")
                for base, suite in BASES.items():
                    self._base(base, suite)
                for name, folder in {IMAGE: ROOT, LAB_IMAGE: ROOT / "tests/containers/lab"}.items():
                    self.docker(
                        "build", "--network", "host", "--build-arg", "GOPROXY", "--tag", name, str(folder), timeout=900
                    )
            finally:
                uplink.terminate()
        return {name: self.docker("image", "inspect", "--format", "{{.Id}}", name) for name in (IMAGE, LAB_IMAGE)}

    def _base(self, base: str, suite: str) -> None:
        """A public base image's name, for a smaller Debian made here from packages.

        Certificates that this machine trusts are part of it, so that pip and Go work behind a proxy as they do outside.
        """
        if self.try_docker("image", "inspect", base) is not None:
            return
        archive = CACHE / f"debian-{suite}-slim.tar"
        if not archive.exists():
            making = archive.with_suffix(".making.tar")
            hooks: list[str] = []
            if any(Path("/usr/local/share/ca-certificates").glob("*.crt")):
                hooks = [
                    "copy-in /usr/local/share/ca-certificates /usr/local/share",
                    'chroot "$1" update-ca-certificates',
                ]
            leave_out = ["path-exclude=/usr/share/man/*", "path-exclude=/usr/share/locale/*"]
            leave_out += ["path-exclude=/usr/share/doc/*", "path-include=/usr/share/doc/*/copyright"]
            argv = ["mmdebstrap", "--quiet", "--variant=minbase", "--include=ca-certificates"]
            argv += [f"--dpkgopt={option}" for option in leave_out] + [f"--customize-hook={hook}" for hook in hooks]
            subprocess.run([*argv, suite, str(making)], check=True, timeout=600)
            making.rename(archive)
        certificates = "ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt"
        self.docker("import", "--change", certificates, "--change", 'CMD ["bash"]', str(archive), base, timeout=300)
