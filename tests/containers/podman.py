"""Podman 4.3.1, Debian 12's, in namespaces of its own, as the node of a lab (tests/lab) runs its pods.

Its storage, its configuration and its mounts are its own, and its bridge is in the node's network namespace: that is
where the judge listens. What `podman kube play` of this version cannot do is in for_podman(), one reason each.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import IO, Any, Self

from tests.containers.engine import CACHE
from tests.lab.judge import Judge, Rules
from tests.lab.lab import CLUSTER_NETWORKS, SERVICE_NETWORKS, Lab, ip_batch
from tests.lab.needs import Needs, tun
from tests.lab.reaper import NETNS

NETAVARK = ("/usr/lib/podman/netavark", "/usr/libexec/podman/netavark")

IMAGE = "localhost/init-wg-pod"
NETWORK, BRIDGE = "pods", "pods0"
SUBNETS = (ip_network("10.42.9.0/24"), ip_network("fd42:1:0:9::/64"))  # in the lab's cluster networks
POD_ADDRESS = "10.42.9.10"

PYTHON = "/opt/init-wg/bin/python"
# The image under test, and what podman's probes run where a kubelet asks by itself: a shell and curl.
_CONTAINERFILE = """\
FROM {base}
COPY busybox /bin/sh
COPY curl /usr/bin/curl
"""
_CURL = f"""\
#!{PYTHON} -I
import socket, sys
host, _, path = sys.argv[-1].removeprefix("http://").partition("/")
name, _, port = host.partition(":")
with socket.create_connection((name, int(port)), 2) as asker:
    asker.sendall(f"GET /{{path}} HTTP/1.0\\r\\n\\r\\n".encode())
    answer = b"".join(iter(lambda: asker.recv(4096), b"")).decode()
print(answer.partition("\\r\\n\\r\\n")[2], end="")
sys.exit(" 200 " not in answer.partition("\\r\\n")[0] and 22)
"""


# The first process in podman's namespaces: when it ends, so does all that podman started. /run is podman's own; and
# without version 2 of cgroups beside version 1 (the "hybrid" mode) runc works.
_HOLDER = """
umount /sys/fs/cgroup/unified 2>/dev/null
mount -t tmpfs tmpfs /run
echo ready
cat >/dev/null
"""


class PodmanError(Exception):
    """Podman, not what is tested with it, does not work."""


def netavark() -> str | None:
    """For NEEDS: it lies where no search looks for programs."""
    return None if any(map(os.path.exists, NETAVARK)) else "the Debian package netavark"


NEEDS = Needs(
    {
        "podman": "podman",
        "catatonit": "catatonit",
        "iptables": "iptables",
        "busybox": "busybox-static",
        "runc": "runc",
        "unshare": "util-linux",
    },
    root=True,
    others=(netavark, tun),
)


class Podman:
    """Podman on the node of a running lab, from `with` to its end."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="init-wg-podman-"))
        # Not in /tmp: where the tests run in a container that is an overlay, which cannot carry another one.
        CACHE.mkdir(parents=True, exist_ok=True)
        self.images = Path(tempfile.mkdtemp(prefix="podman-", dir=CACHE))
        self._configure()
        argv = ["nsenter", f"--net={NETNS / self.lab.node.netns}", "--", "unshare", "--mount", "--pid", "--fork"]
        argv += ["--kill-child=SIGKILL", "--propagation=private", "--mount-proc", "--", "sh", "-c", _HOLDER]
        self._holder = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        if self._pipe(self._holder.stdout).readline() != b"ready\n":
            raise PodmanError("no namespaces for podman")
        # A bridge that stays: netavark's own would come and go with every pod, and each time be another one to the
        # judge. It is kept by a port: netavark takes away a bridge that has none left.
        addresses = [f"address add {net[1]}/{net.prefixlen} dev {BRIDGE}" for net in SUBNETS]
        ip_batch(
            f"link add name {BRIDGE} type bridge",
            "link add name keep0 type veth peer name keep1",
            f"link set keep0 master {BRIDGE} up",
            f"link set {BRIDGE} up",
            *(f"{line} nodad" if ":" in line else line for line in addresses),
            netns=self.lab.node.netns,
        )
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children")
        self.first = int(children.read_text().split()[0])
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.run("pod", "rm", "--all", "--force", "--time=0")
        finally:
            self._pipe(self._holder.stdin).close()
            self._holder.wait(30)
            self._pipe(self._holder.stdout).close()
            shutil.rmtree(self.folder, ignore_errors=True)
            shutil.rmtree(self.images, ignore_errors=True)

    @staticmethod
    def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
        assert pipe is not None
        return pipe

    def _configure(self) -> None:
        folder = self.folder
        (folder / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{self.images}"\nrunroot = "{folder}/run"\n'
        )
        (folder / "containers.conf").write_text(
            '[containers]\ndefault_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]\n'
            '[engine]\ncgroup_manager = "cgroupfs"\nruntime = "runc"\nevents_logger = "file"\n'
            f'[network]\nnetwork_backend = "netavark"\nnetwork_config_dir = "{folder}"\ndefault_network = "{NETWORK}"\n'
        )
        subnets = [{"subnet": str(subnet), "gateway": str(subnet[1])} for subnet in SUBNETS]
        network = {
            "name": NETWORK,
            "id": hashlib.sha256(NETWORK.encode()).hexdigest(),
            "driver": "bridge",
            "network_interface": BRIDGE,
            "created": "2026-01-01T00:00:00Z",
            "subnets": subnets,
            "ipv6_enabled": True,
            "internal": False,
            "dns_enabled": False,
            "ipam_options": {"driver": "host-local"},
        }
        (folder / f"{NETWORK}.json").write_text(json.dumps(network))
        self.environment = {
            **os.environ,
            "CONTAINERS_STORAGE_CONF": f"{folder}/storage.conf",
            "CONTAINERS_CONF": f"{folder}/containers.conf",
        }

    def run(self, *arguments: str | Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """A podman command, whatever it ends with."""
        argv = [
            "nsenter",
            f"--target={self.first}",
            "--mount",
            "--net",
            "--pid",
            f"--wdns={self.folder}",
            "--",
            "podman",
        ]
        return subprocess.run(
            [*argv, *map(str, arguments)],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def podman(self, *arguments: str | Path, timeout: float = 120) -> str:
        """The output of a podman command that has to succeed."""
        ended = self.run(*arguments, timeout=timeout)
        if ended.returncode:
            raise PodmanError(f"podman {' '.join(map(str, arguments))}: {(ended.stderr or ended.stdout).strip()}")
        return ended.stdout.strip()

    def inspect(self, container: str) -> Any:
        """All that podman knows about a container."""
        return json.loads(self.podman("inspect", container))[0]

    def load(self, archive: Path) -> None:
        """The image under test, from `docker save`, and on top of it what IMAGE has more."""
        loaded = self.podman("load", "--input", archive).rpartition(" ")[2]
        context = self.folder / "context"
        context.mkdir()
        shutil.copy(shutil.which("busybox") or "busybox", context / "busybox")
        (context / "curl").write_text(_CURL)
        (context / "curl").chmod(0o755)
        (context / "Containerfile").write_text(_CONTAINERFILE.format(base=loaded))
        self.podman("build", "--quiet", "--network=none", "--tag", IMAGE, context)

    def secret(self, name: str, files: Mapping[str, str]) -> None:
        """A Secret. This version would mount what a manifest's `data` says without decoding it, so it gets the text."""
        file = self.folder / "secret.json"
        file.touch(mode=0o600)
        file.write_text(
            json.dumps({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": dict(files)})
        )
        self.run("secret", "rm", name)
        self.podman("secret", "create", name, file)
        file.unlink()

    def play(self, pod: Mapping[str, Any]) -> subprocess.CompletedProcess[str]:
        """`podman kube play`: returns when the init containers have ended and the others were started."""
        file = self.folder / "play.yaml"
        file.write_text(json.dumps(pod))  # JSON is YAML
        return self.run("kube", "play", f"--network={NETWORK}:ip={POD_ADDRESS}", file)

    def remove_pods(self) -> None:
        self.podman("pod", "rm", "--all", "--force", "--time=0")

    def judge(self, lookups: Iterable[str] = ()) -> PodJudge:
        """A judge of what leaves this podman's pods. lookups: names that the cluster's resolver may be asked for."""
        return PodJudge(self.lab, lookups)


class PodJudge(Judge):
    """The lab's judge, at podman's bridge."""

    def __init__(self, lab: Lab, lookups: Iterable[str] = ()) -> None:
        gateways = [str(subnet[1]) for subnet in SUBNETS]
        link_local = ip_network("fe80::/10")
        rules = Rules(
            endpoints=[lab.provider.endpoint],
            on_link=(*SUBNETS, link_local),
            sources=(*SUBNETS, link_local),
            bypass=(*CLUSTER_NETWORKS, *SERVICE_NETWORKS),
            clients=gateways,
            ports={},
            resolvers={},
            lookups=lookups,
            # A kernel reports its multicast groups when an interface comes up, which is before any container runs.
            allow_mld=True,
        )
        super().__init__(lab, rules)

    def __enter__(self) -> Self:
        with self.lab.node.inside():
            number = socket.if_nametoindex(BRIDGE)
        super().__enter__()
        self.watched.add(number)
        self.mark()
        return self


def for_podman(pod: Mapping[str, Any], image: str = IMAGE) -> dict[str, Any]:
    """The manifest of a pod as podman 4.3.1 can play it, in nothing else changed."""
    made: dict[str, Any] = copy.deepcopy(dict(pod))
    spec = made["spec"]
    # It takes a native sidecar for an init container, and waits for its end.
    sidecars = [each for each in spec["initContainers"] if each.get("restartPolicy") == "Always"]
    spec["initContainers"] = [each for each in spec["initContainers"] if each not in sidecars]
    spec["containers"] = [*spec["containers"], *sidecars]
    for container in [*spec["initContainers"], *spec["containers"]]:
        container.pop("restartPolicy", None)
        container["image"], container["imagePullPolicy"] = image, "Never"
        # With an address of its own choice for the pod, it takes a declared port for a published one.
        container.pop("ports", None)
        # The kubelet tells every container where the API is.
        container["env"] = [
            *container.get("env", []),
            {"name": "KUBERNETES_SERVICE_HOST", "value": str(SERVICE_NETWORKS[0][1])},
        ]
    for volume in spec["volumes"]:
        if "secret" in volume:
            volume["secret"]["optional"] = False  # it does not know that this is the default
    # It removes init containers that have ended.
    made["metadata"]["annotations"] = {"io.podman.annotations.init.container.type": "always"}
    # An init container that fails is repeated without a pause, for ever.
    spec["restartPolicy"] = "Never"
    return made
