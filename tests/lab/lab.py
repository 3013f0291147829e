"""The lab: a pod, its node and an internet, made of network namespaces, with real WireGuard on real kernels.

                                               internet: one link, 203.0.113.0/24, 2001:db8:113::/64
                                               ┌──────────────────────────────────────────────────────┐
  pod                   node (router)          │ .51 provider   WireGuard, NAT, DNS inside: 10.64.0.1 │
  ┌───────────────┐     ┌──────────────────┐   │ .52 provider2  the same again, for failover          │
  │ app :8080     │     │ its resolver:    │   │ .80 web        http, echo, streams that push         │
  │               │     │ 192.168.7.1      │   │ .53  "         a public resolver                     │
  │      eth0 .10 ├────>│ pod0 .1    inet0 ├───┤ .99 far        a client that connects into the pod   │
  │  10.42.1.0/24 │     │                  │   └──────────────────────────────────────────────────────┘
  │  fd42:1::/64  │     │             svc0 ├──── service  the cluster's services: 10.43.0.0/16, fd43::/112
  │      eth1 .10 ├····>│ pod1 .1          │              .10 cluster DNS, .80 http
  │  (hot-plugged)│ ^   └──────────────────┘
  └───────────────┘ └── the judge captures here, on the node's ends

What the far side sees tells how a request travelled: 10.42.1.10 is the pod in clear text (the node does no
NAT, so nothing hides), 203.0.113.51 is the provider's address, which is where a tunnelled request comes from.

Everything is torn down whatever happens: see reaper.py. Several labs run side by side. Nothing outside the
lab's namespaces is touched, except names in /run/netns and a temporary folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from types import TracebackType
from typing import IO, Literal, NamedTuple, Self

from . import reaper
from .needs import Needs
from .patience import LabError as LabError
from .patience import wait_until as wait_until

Family = Literal[4, 6]
FAMILIES: tuple[Family, Family] = (4, 6)
AF: dict[Family, socket.AddressFamily] = {4: socket.AF_INET, 6: socket.AF_INET6}
AF_BITS: dict[Family, int] = {4: 32, 6: 128}

PROJECT = Path(__file__).resolve().parents[2]
SERVICES = Path(__file__).with_name("services.py")
#: The image's wireguard-go, where tests/prepare.sh could build it; else Debian's is found, or with WIREGUARD_GO=debian.
IMAGES_WIREGUARD_GO = PROJECT / ".cache/wireguard-go/wireguard-go"
if os.environ.get("WIREGUARD_GO", "image") == "image":
    os.environ["PATH"] = f"{IMAGES_WIREGUARD_GO.parent}:{os.environ.get('PATH', os.defpath)}"
#: For wg-quick, by its path: it looks beside itself first, and would find Debian's.
QUICK_USERSPACE = {"WG_QUICK_USERSPACE_IMPLEMENTATION": shutil.which("wireguard-go") or "wireguard-go"}

WIREGUARD_PORT = 51820
MARK = 51820

HTTP, ECHO, STREAM, PUSH = 80, 7, 9000, 9001  # the web host's ports
PREOPENED = 9003  # one more stream, so that a bare ACK tells which probe it belongs to
PROBE_PORTS = range(
    8001, 8033
)  # more http ports of the web host: one per kind of TCP probe, so that a SYN tells who sent it
APP, APP_ANY = 8080, 8081  # the pod's own server; APP_ANY is UDP bound to no address

PUBLIC_DNS: dict[Family, str] = {4: "203.0.113.53", 6: "2001:db8:113::53"}
NODE_DNS: dict[Family, str] = {4: "192.168.7.1", 6: "fd07::1"}
CLUSTER_DNS: dict[Family, str] = {4: "10.43.0.10", 6: "fd43::10"}
SEARCH = ("default.svc.cluster.local", "svc.cluster.local", "cluster.local")  # with ndots:5, as the kubelet has it
TUNNEL_DNS: dict[Family, str] = {4: "10.64.0.1", 6: "fc00:bbbb:bbbb:bb01::1"}
INSIDE: dict[Family, str] = {
    4: "10.64.12.34",
    6: "fc00:bbbb:bbbb:bb01::2:1234",
}  # the pod's addresses in the tunnel
ON_LINK_GATEWAY: dict[Family, str] = {4: "169.254.1.1", 6: "fe80::1"}

SERVICE_NETWORKS = (ip_network("10.43.0.0/16"), ip_network("fd43::/112"))
POD_NETWORKS = (ip_network("10.42.1.0/24"), ip_network("fd42:1::/64"))
CLUSTER_NETWORKS = (ip_network("10.42.0.0/16"), ip_network("fd42:1::/48"))
SECOND_UPLINK_NETWORKS = (ip_network("10.44.1.0/24"), ip_network("fd44:1::/64"))

CLONE_NEWNET = 0x40000000
libc = ctypes.CDLL(None, use_errno=True)
counter = itertools.count(1)


def wireguard_go() -> str:
    """Which wireguard-go the labs use, in words."""
    found = shutil.which("wireguard-go")
    if found == str(IMAGES_WIREGUARD_GO):
        return "the image's"
    return f"{found}, not the image's (tests/prepare.sh builds that one where it finds a Go)" if found else "none"


def kernel_wireguard() -> bool:
    """Does this kernel have WireGuard? Asked in a namespace of its own: a trial in this one would show."""
    trial = ["unshare", "--net", "ip", "link", "add", "name", "trial", "type", "wireguard"]
    return subprocess.run(trial, capture_output=True, check=False).returncode == 0


def some_wireguard() -> str | None:
    """For NEEDS."""
    return None if shutil.which("wireguard-go") or kernel_wireguard() else "the Debian package wireguard-go"


NEEDS = Needs(
    {
        "ip": "iproute2",
        "nft": "nftables",
        "wg": "wireguard-tools",
        "tcpdump": "tcpdump",
        "ping": "iputils-ping",
        "nsenter": "util-linux",
        "mount": "mount",
    },
    root=True,
    others=(some_wireguard,),
)


def ip_batch(*lines: str, netns: str | None = None) -> None:
    """Many `ip` commands by one process."""
    argv = ["ip", *(["-netns", netns] if netns else []), "-batch", "-"]
    done = subprocess.run(argv, input="\n".join(lines) + "\n", text=True, capture_output=True, check=False)
    if done.returncode:
        raise LabError(f"{netns}: {done.stderr.strip()}\nin:\n" + "\n".join(lines))


class Member:
    """One machine: a network namespace, and a mount namespace (UAPI sockets and resolv.conf are files)."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab = lab
        self.name = name
        self.netns = f"{lab.name}-{name}"
        self.addresses: dict[Family, str] = {}
        self.holder: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"<{self.netns}>"

    def hold(self, resolv_conf: str = "") -> None:
        """Start the process that keeps the mount namespace alive; held() waits until it does."""
        script = """
            mkdir -p /run/wireguard && mount -t tmpfs -o mode=700 tmpfs /run/wireguard || exit 1
            if [ -n "$1" ] && [ -e /etc/resolv.conf ]; then
                mount --bind "$1" "$(readlink -f /etc/resolv.conf)" || exit 1
            fi
            echo ready; exec cat >/dev/null"""
        self.holder = subprocess.Popen(
            ["ip", "netns", "exec", self.netns, "sh", "-c", script, "holder", resolv_conf],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the owner
        )

    def held(self) -> None:
        assert self.holder and self.holder.stdout
        if self.holder.stdout.readline() != b"ready\n":
            raise LabError(f"{self.name}: no mount namespace of its own")

    def enter(self, argv: Sequence[str | Path]) -> list[str]:
        """The command line that runs `argv` in here. nsenter becomes that program and keeps its pid."""
        assert self.holder
        into = ["nsenter", f"--target={self.holder.pid}", "--net", "--mount", f"--wdns={PROJECT}", "--"]
        return [*into, *map(str, argv)]

    def popen(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
        new_session: bool = False,
    ) -> subprocess.Popen[bytes]:
        """Start a program in here. It ends with the lab at the latest."""
        process = subprocess.Popen(
            self.enter(argv),
            env={**os.environ, **(env or {})},
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=new_session,
        )
        self.lab.processes.append(process)
        return process

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        check: bool = True,
        timeout: float = 60,
        stdin: str = "",
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in here to its end. Failure (with check) is an exception that quotes its errors."""
        # Files, not pipes: a daemon left behind by the program would keep pipes open, and this would wait.
        with (
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as err,
            tempfile.TemporaryFile() as given,
        ):
            given.write(stdin.encode())
            given.seek(0)
            process = subprocess.Popen(
                self.enter(argv), env={**os.environ, **(env or {})}, stdin=given, stdout=out, stderr=err
            )
            try:
                code = process.wait(timeout)
            except BaseException:
                process.kill()
                process.wait()
                raise
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode(errors="replace"))
        if check and code:
            raise LabError(f"{self.name}: {' '.join(map(str, argv))}: exit {code}\n{texts[0]}{texts[1]}".rstrip())
        return subprocess.CompletedProcess(list(map(str, argv)), code, *texts)

    def ok(self, argv: Sequence[str | Path]) -> bool:
        return self.run(argv, check=False).returncode == 0

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """This thread is in the member's network namespace for a moment: sockets made there stay there."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        there = os.open(reaper.NETNS / self.netns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._set(there)
            try:
                yield
            finally:
                self._set(home)
        finally:
            os.close(home)
            os.close(there)

    @staticmethod
    def _set(namespace: int) -> None:
        if libc.setns(namespace, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """A socket of this member in the caller's hands: no process to start, no output to parse."""
        with self.inside():
            return socket.socket(family, kind, protocol)

    def sysctl(self, **values: int | str) -> None:
        """net.* settings, dots written as __: sysctl(ipv4__ip_forward=1)."""
        with self.inside():
            for key, value in values.items():
                Path("/proc/sys/net", *key.split("__")).write_text(str(value))

    def link_address(self, device: str) -> bytes:
        """A device's MAC address."""
        with self.socket(socket.AF_PACKET, socket.SOCK_RAW) as asker:
            asker.bind((device, 0))
            address: bytes = asker.getsockname()[4]
            return address


class Endpoint(NamedTuple):
    address: str
    port: int


class Provider(Member):
    """A WireGuard provider: knows the pod's key, NATs what comes through the tunnel, answers DNS."""

    public_key = ""

    def start(self, secret: Path) -> None:
        """Make wg0 with the key in this file."""
        self.secret = secret
        if self.lab.kernel_wireguard:
            ip_batch("link add name wg0 type wireguard", netns=self.netns)
        else:
            quiet = subprocess.DEVNULL
            daemon = self.popen(
                ["wireguard-go", "wg0"],
                env={"LOG_LEVEL": "error"},
                stdout=quiet,
                stderr=quiet,
                new_session=True,
            )
            daemon.wait(30)  # it goes to the background when its socket listens
        self.run(["wg", "set", "wg0", "private-key", secret, "listen-port", str(WIREGUARD_PORT)])
        self.admit()
        ip_batch(
            f"address add {TUNNEL_DNS[4]}/10 dev wg0",
            f"address add {TUNNEL_DNS[6]}/64 dev wg0 nodad",
            "link set wg0 mtu 1420 up",
            netns=self.netns,
        )
        nat = "type nat hook postrouting priority srcnat; oifname eth0 iifname wg0 masquerade"
        self.run(["nft", "-f", "-"], stdin=f"table inet nat {{ chain out {{ {nat}; }}; }}\n")

    def admit(self) -> None:
        """Let the pod's key in."""
        peer = ["peer", self.lab.pod_key, "allowed-ips", f"{INSIDE[4]}/32,{INSIDE[6]}/128"]
        self.run(["wg", "set", "wg0", *peer])

    def silence(self) -> None:
        """Hear and say nothing any more, like a server that has died: not even what others push to the pod."""
        chains = "".join(
            f"chain {hook} {{ type filter hook {hook} priority 0; udp {port} {WIREGUARD_PORT} drop; }}\n"
            for hook, port in (("input", "dport"), ("output", "sport"))
        )
        self.run(["nft", "-f", "-"], stdin=f"table inet silent {{\n{chains}}}\n")

    def speak(self) -> None:
        """The end of silence()."""
        self.run(["nft", "-f", "-"], stdin="table inet silent\ndelete table inet silent\n")

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(self.addresses[self.lab.endpoint_family], WIREGUARD_PORT)


class Lab:
    """A running lab; see the picture above. Use it as a context manager.

    rp_filter         the pod's reverse path filter: 0, 1 (strict) or 2 (loose)
    on_link_gateway   the pod has a /32, and an on-link gateway outside of it, as Calico gives it
    flannel           the pod's main table has 10.42.0.0/16 via the gateway too, as flannel's has
    mtu               of the pod's uplink; overlays have 1450
    tunnel_ipv6       does the WireGuard configuration have an IPv6 address?
    pod_ipv6          has the pod IPv6 at all?
    endpoint_family   does the pod reach its provider by IPv4 or by IPv6?
    """

    def __init__(
        self,
        *,
        rp_filter: Literal[0, 1, 2] = 2,
        on_link_gateway: bool = False,
        flannel: bool = False,
        mtu: int = 1500,
        tunnel_ipv6: bool = True,
        pod_ipv6: bool = True,
        endpoint_family: Family = 4,
    ) -> None:
        self.rp_filter = rp_filter
        self.on_link_gateway = on_link_gateway
        self.flannel = flannel
        self.mtu = mtu
        self.tunnel_ipv6 = tunnel_ipv6
        self.pod_ipv6 = pod_ipv6
        self.endpoint_family: Family = endpoint_family
        self.families: tuple[Family, ...] = FAMILIES if pod_ipv6 else (4,)
        self.tunnelled: tuple[Family, ...] = FAMILIES if tunnel_ipv6 else (4,)

        self.name = f"{reaper.PREFIX}-{os.getpid()}-{reaper.start_time(os.getpid())}-{next(counter)}"
        self.folder = Path(tempfile.gettempdir()) / self.name
        self.processes: list[subprocess.Popen[bytes]] = []
        self.reaper: subprocess.Popen[bytes] | None = None
        self.kernel_wireguard = False
        self.pod_key = ""

        self.pod = Member(self, "pod")
        self.node = Member(self, "node")
        self.internet = Member(self, "internet")
        self.provider = Provider(self, "provider")
        self.provider2 = Provider(self, "provider2")
        self.web = Member(self, "web")
        self.far = Member(self, "far")
        self.service = Member(self, "service")
        self.members = [
            self.pod,
            self.node,
            self.internet,
            self.provider,
            self.provider2,
            self.web,
            self.far,
            self.service,
        ]
        for number, member in (
            (51, self.provider),
            (52, self.provider2),
            (80, self.web),
            (99, self.far),
            (1, self.node),
        ):
            member.addresses = {4: f"203.0.113.{number}", 6: f"2001:db8:113::{number}"}
        self.pod.addresses = {4: "10.42.1.10", 6: "fd42:1::10"}
        self.service.addresses = {4: "10.43.0.80", 6: "fd43::80"}

    # --- up and down ---------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        reaper.sweep(Path(tempfile.gettempdir()))
        self.folder.mkdir(mode=0o700)
        self.reaper = subprocess.Popen(
            [sys.executable, "-I", "-S", reaper.__file__, self.name, str(self.folder)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            self.kernel_wireguard = kernel_wireguard()
            self._namespaces()
            self._network()
            self._secrets()
            for provider in (self.provider, self.provider2):
                provider.start(self.folder / f"{provider.name}.key")
            self._services()
            self._configs()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take everything down. Also called when the way up failed half-way; twice does no harm."""
        if not self.reaper or not self.reaper.stdin:
            return
        self.reaper.stdin.close()
        while True:  # a second Ctrl-C must not stop this; the reaper has its own limit
            try:
                self.reaper.wait()
                break
            except KeyboardInterrupt:
                continue
        holders = [member.holder for member in self.members if member.holder]
        for process in [*self.processes, *holders]:
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe:
                    with contextlib.suppress(OSError):
                        pipe.close()
            process.wait()
        self.reaper = None

    def _namespaces(self) -> None:
        ip_batch(*(f"netns add {member.netns}" for member in self.members))
        resolv_conf = self.folder / "resolv.conf"
        resolv_conf.write_text(f"nameserver {CLUSTER_DNS[4]}\nsearch {' '.join(SEARCH)}\noptions ndots:5\n")
        for member in self.members:
            member.hold(str(resolv_conf) if member is self.pod else "")
        for member in self.members:
            # No address is tentative: duplicate address detection would be a second to wait for.
            member.sysctl(ipv6__conf__default__accept_dad=0, ipv6__conf__default__dad_transmits=0)
            # A kernel tells its multicast groups twice, the second time up to a second later: in the middle of a test.
            member.sysctl(ipv6__conf__default__mldv2_unsolicited_report_interval=1)
            if member is not self.pod:
                member.sysctl(ipv6__conf__default__accept_ra=0)
                member.sysctl(ipv4__conf__all__rp_filter=0, ipv4__conf__default__rp_filter=0)
        for router in (self.node, self.provider, self.provider2):
            router.sysctl(ipv4__ip_forward=1, ipv6__conf__all__forwarding=1)
        self.pod.sysctl(ipv4__conf__all__rp_filter=self.rp_filter, ipv4__conf__default__rp_filter=self.rp_filter)
        self.pod.sysctl(ipv4__ping_group_range="0 0")
        if not self.pod_ipv6:
            self.pod.sysctl(ipv6__conf__all__disable_ipv6=1, ipv6__conf__default__disable_ipv6=1)
        for member in self.members:
            member.held()

    def _network(self) -> None:
        pod, node, internet = self.pod.netns, self.node.netns, self.internet.netns
        guests = (self.provider, self.provider2, self.web, self.far)
        ip_batch(
            f"link add name eth0 netns {pod} mtu {self.mtu} type veth peer pod0 netns {node} mtu {self.mtu}",
            # The pod's second uplink waits in the node: so the node's end is captured from the start.
            f"link add name eth1 netns {node} type veth peer name pod1 netns {node}",
            f"link add name inet0 netns {node} type veth peer name node netns {internet}",
            f"link add name svc0 netns {node} type veth peer name eth0 netns {self.service.netns}",
            *(
                f"link add name eth0 netns {guest.netns} type veth peer name {guest.name} netns {internet}"
                for guest in guests
            ),
        )
        ports = ["node", *(guest.name for guest in guests)]
        ip_batch(
            "link add name bridge0 type bridge",
            *(f"link set {port} master bridge0 up" for port in ports),
            "link set bridge0 up",
            netns=internet,
        )
        for guest in guests:
            extra = [f"address add {address} dev eth0" for address in PUBLIC_DNS.values()] if guest is self.web else []
            ip_batch(
                "link set lo up",
                "link set eth0 up",
                f"address add {guest.addresses[4]}/24 dev eth0",
                f"address add {guest.addresses[6]}/64 dev eth0 nodad",
                *extra,
                f"route add default via {self.node.addresses[4]}",
                f"route add default via {self.node.addresses[6]}",
                netns=guest.netns,
            )
        ip_batch(
            "link set lo up",
            "link set eth0 up",
            *(
                f"address add {CLUSTER_DNS[4]}/16 dev eth0",
                f"address add {CLUSTER_DNS[6]}/112 dev eth0 nodad",
            ),
            *(f"address add {self.service.addresses[4]}/16 dev eth0",),
            *(f"address add {self.service.addresses[6]}/112 dev eth0 nodad",),
            "route add default via 10.43.255.254",
            "route add default via fd43::fffe",
            netns=self.service.netns,
        )
        on_link = self.on_link_gateway
        ip_batch(
            "link set lo up",
            "link set pod0 up",
            "link set pod1 up",
            "link set inet0 up",
            "link set svc0 up",
            f"address add {NODE_DNS[4]}/32 dev lo",
            f"address add {NODE_DNS[6]}/128 dev lo",
            f"address add {self.node.addresses[4]}/24 dev inet0",
            f"address add {self.node.addresses[6]}/64 dev inet0 nodad",
            "address add 10.43.255.254/16 dev svc0",
            "address add fd43::fffe/112 dev svc0 nodad",
            "address add 10.44.1.1/24 dev pod1",
            "address add fd44:1::1/64 dev pod1 nodad",
            f"address add {ON_LINK_GATEWAY[6]}/64 dev pod0 nodad",
            *(
                [
                    f"address add {ON_LINK_GATEWAY[4]}/32 dev pod0 scope link",
                    f"route add {self.pod.addresses[4]}/32 dev pod0 src {self.node.addresses[4]}",
                    f"route add {self.pod.addresses[6]}/128 dev pod0 src {self.node.addresses[6]}",
                ]
                if on_link
                else ["address add 10.42.1.1/24 dev pod0", "address add fd42:1::1/64 dev pod0 nodad"]
            ),
            netns=node,
        )
        ip_batch("link set lo up", netns=pod)
        self.restore_uplink()

    def _secrets(self) -> None:
        self.folder.joinpath("zone.json").write_text("{}")
        for owner in ("pod", "provider", "provider2"):
            secret = subprocess.run(["wg", "genkey"], capture_output=True, check=True).stdout
            file = self.folder / f"{owner}.key"
            file.touch(mode=0o600)
            file.write_bytes(secret)
            public = (
                subprocess.run(["wg", "pubkey"], input=secret, capture_output=True, check=True).stdout.decode().strip()
            )
            if owner == "pod":
                self.pod_key = public
            else:
                {"provider": self.provider, "provider2": self.provider2}[owner].public_key = public

    def _services(self) -> None:
        web, pod, service = self.web.addresses, self.pod.addresses, self.service.addresses
        self.zone({"*": list(web.values())})
        started = []

        def start(member: Member, *what: str) -> None:
            started.append((member, self.serve(member, *what)))

        for provider in (self.provider, self.provider2):
            start(provider, *(f"dns:[{address}]:53" for address in TUNNEL_DNS.values()))
        ports = [f"http:[{a}]:{port}" for a in web.values() for port in (HTTP, *PROBE_PORTS)]
        dns = [f"dns:[{address}]:53" for address in PUBLIC_DNS.values()]
        others = (("echo", ECHO), ("stream", STREAM), ("stream", PREOPENED), ("push", PUSH))
        more = [f"{what}:[{address}]:{port}" for address in web.values() for what, port in others]
        start(self.web, *ports, *dns, *more)
        start(self.node, *(f"dns:[{address}]:53" for address in NODE_DNS.values()))
        start(
            self.service,
            *(f"dns:[{address}]:53" for address in CLUSTER_DNS.values()),
            *(f"http:[{address}]:{HTTP}" for address in service.values()),
        )
        anywhere: dict[Family, str] = {4: "0.0.0.0", 6: "::"}
        app = [
            text
            for f in self.families
            for text in (
                f"http:[{anywhere[f]}]:{APP}",
                f"echo:[{pod[f]}]:{APP}",
                f"echo:[{anywhere[f]}]:{APP_ANY}",
            )
        ]
        start(self.pod, *app)
        for member, process in started:
            assert process.stdout
            if process.stdout.readline() != b"ready\n":
                raise LabError(f"{member.name}: its services did not start")

    def serve(self, member: Member, *what: str) -> subprocess.Popen[bytes]:
        """Start services (see services.py) on a member; its first line of output is "ready"."""
        env = {
            "LAB_ZONE": str(self.folder / "zone.json"),
            "LAB_QUERIES": str(self.folder / f"queries-{member.name}"),
            "LAB_EXITS": " ".join([*self.provider.addresses.values(), *self.provider2.addresses.values()]),
        }
        argv = [sys.executable, "-I", "-S", str(SERVICES), *what]
        return member.popen(argv, env=env, stdout=subprocess.PIPE, new_session=True)

    def _configs(self) -> None:
        self.config_path = self.config()
        self.config_folder = self.folder / "servers"
        self.config(self.config_folder / "1-provider.conf")
        self.config(self.config_folder / "2-provider2.conf", provider=self.provider2)
        # For wg-quick, which calls the interface as the file, and would want resolvconf for a DNS line.
        self.quick_path = self.config(self.folder / "quick" / "wg0.conf", dns=False)

    # --- what users of the lab ask for ---------------------------------------------------------------------

    def gateway(self, family: Family) -> str:
        """The pod's gateway."""
        if self.on_link_gateway:
            return ON_LINK_GATEWAY[family]
        return {4: "10.42.1.1", 6: "fd42:1::1"}[family]

    def node_addresses(self, family: Family) -> tuple[str, ...]:
        """The addresses from which the node itself (the kubelet, say) may connect to the pod."""
        mine: dict[Family, tuple[str, ...]] = {
            4: ("10.42.1.1", "10.43.255.254"),
            6: ("fd42:1::1", "fd43::fffe"),
        }
        return (self.node.addresses[family], NODE_DNS[family], ON_LINK_GATEWAY[family], *mine[family])

    @property
    def bypass(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """The networks that the pod may reach beside the tunnel."""
        return (*CLUSTER_NETWORKS, *SERVICE_NETWORKS)

    @property
    def pod_env(self) -> dict[str, str]:
        """The environment of a container in the pod."""
        return {
            "WG_CONFIG": str(self.config_path),
            "KUBERNETES_SERVICE_HOST": "10.43.0.1",
            "KUBERNETES_SERVICE_PORT": "443",
        }

    def config(
        self,
        path: Path | None = None,
        *,
        provider: Provider | None = None,
        dns: bool = True,
        mtu: int | None = None,
        keepalive: int | None = 25,
        endpoint: str | None = None,
        secret: str | None = None,
    ) -> Path:
        """Write a wg-quick file as a provider hands it out (mode 0600) and return where it is.

        `endpoint` ("host:port") replaces the provider's address; `secret` the pod's private key.
        """
        provider = provider or self.provider
        path = path or self.folder / "config" / "wg0.conf"
        path.parent.mkdir(mode=0o700, exist_ok=True)
        host, port = provider.endpoint
        addresses = [f"{INSIDE[family]}/{AF_BITS[family]}" for family in self.tunnelled]
        lines = [
            "[Interface]",
            f"PrivateKey = {secret or (self.folder / 'pod.key').read_text().strip()}",
            f"Address = {','.join(addresses)}",
            *([f"DNS = {','.join(TUNNEL_DNS[f] for f in self.tunnelled)}"] if dns else []),
            *([f"MTU = {mtu}"] if mtu else []),
            "",
            "[Peer]",
            f"PublicKey = {provider.public_key}",
            f"AllowedIPs = {', '.join({4: '0.0.0.0/0', 6: '::/0'}[f] for f in self.tunnelled)}",
            f"Endpoint = {endpoint or (f'[{host}]:{port}' if ':' in host else f'{host}:{port}')}",
            *([f"PersistentKeepalive = {keepalive}"] if keepalive else []),
        ]
        new = path.with_suffix(".new")  # readers see the old file or the new one, never a half
        new.touch(mode=0o600)
        new.write_text("\n".join(lines) + "\n")
        new.rename(path)
        return path

    def zone(self, names: Mapping[str, Sequence[str]]) -> None:
        """What every DNS server here answers: name -> addresses; "*" for all others (first: the web host)."""
        file = self.folder / "zone.json"
        merged = {
            **json.loads(file.read_text()),
            **{name: list(addresses) for name, addresses in names.items()},
        }
        new = file.with_suffix(".new")
        new.write_text(json.dumps(merged))
        new.rename(file)

    def queries(self, member: Member) -> list[str]:
        """The DNS queries a member's resolvers were asked so far: lines of "resolver client name type"."""
        file = self.folder / f"queries-{member.name}"
        return file.read_text().splitlines() if file.exists() else []

    def init_wg(
        self, *words: str, env: Mapping[str, str] | None = None, check: bool = True, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run the product in the pod, as its container would."""
        argv = [sys.executable, "-m", "init_wg", *words]
        return self.pod.run(argv, env={**self.pod_env, **(env or {})}, check=check, timeout=timeout)

    def wg_quick(self, word: str = "up") -> None:
        """The same by wg-quick: what people do without init_wg, and a positive control for the judge."""
        env = {} if self.kernel_wireguard else QUICK_USERSPACE
        self.pod.run(["wg-quick", word, self.quick_path], env=env)

    def traffic_source(self, family: Family, timeout: float = 1.0) -> str | None:
        """The address the web host sees when the pod asks: the provider's, if tunnelled. None: no answer."""
        return self.request(self.pod, self.web.addresses[family], HTTP, timeout=timeout)

    def flows(self, timeout: float = 1.0) -> bool:
        """Does the pod's traffic of each tunnelled family arrive from a provider's address?"""
        exits = {*self.provider.addresses.values(), *self.provider2.addresses.values()}
        families = [family for family in self.families if family in self.tunnelled]
        return all(self.traffic_source(family, timeout) in exits for family in families)

    @staticmethod
    def request(client: Member, address: str, port: int, *, udp: bool = False, timeout: float = 1.0) -> str | None:
        """Ask a lab server which address it sees. One deadline for all of it."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        deadline = time.monotonic() + timeout
        with client.socket(family, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM) as asker:
            try:
                asker.settimeout(timeout)
                asker.connect((address, port))
                asker.send(b"GET / HTTP/1.0\r\n\r\n")
                answer = b""
                while not udp or not answer:
                    asker.settimeout(max(deadline - time.monotonic(), 0.001))
                    more = asker.recv(4096)
                    answer += more
                    if not more:
                        break
            except OSError:
                return None
        return answer.decode().strip().rpartition("\n")[2].strip() or None

    def inbound(
        self, client: Member, family: Family, *, port: int = APP, udp: bool = False, timeout: float = 2.0
    ) -> bool:
        """Does the pod answer a connection that comes in from this member?"""
        return self.request(client, self.pod.addresses[family], port, udp=udp, timeout=timeout) is not None

    def restore_uplink(self) -> None:
        """Give eth0 the addresses and routes that the container runtime gives it, whatever it has now."""
        on_link = self.on_link_gateway
        prefix: dict[Family, int] = {4: 32, 6: 128} if on_link else {4: 24, 6: 64}
        lines = [
            "link set eth0 up",
            "address flush dev eth0 scope global",
            *([f"route replace {self.gateway(4)} dev eth0 scope link"] if on_link else []),
        ]
        for family in self.families:
            nodad = " nodad" if family == 6 else ""
            lines.append(f"address replace {self.pod.addresses[family]}/{prefix[family]} dev eth0{nodad}")
        for family, network in zip(self.families, CLUSTER_NETWORKS, strict=False):
            lines.append(f"route replace default via {self.gateway(family)} dev eth0")
            if self.flannel:
                lines.append(f"route replace {network} via {self.gateway(family)} dev eth0")
        ip_batch(*lines, netns=self.pod.netns)

    def plug_second_uplink(self) -> None:
        """Hot-plug eth1 into the pod, with a default route better than eth0's."""
        ip_batch(f"link set eth1 netns {self.pod.netns}", netns=self.node.netns)
        ip_batch(
            "link set eth1 up",
            "address add 10.44.1.10/24 dev eth1",
            *(["address add fd44:1::10/64 dev eth1 nodad"] if self.pod_ipv6 else []),
            "route prepend default via 10.44.1.1 dev eth1",
            *(["route prepend default via fd44:1::1 dev eth1 metric 1"] if self.pod_ipv6 else []),
            netns=self.pod.netns,
        )

    def unplug_second_uplink(self) -> None:
        """Take eth1 away again; it waits in the node for the next time."""
        ip_batch(f"link set eth1 down netns {self.node.netns}", netns=self.pod.netns)
