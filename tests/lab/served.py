"""A lab whose pod is a server, with two clients on the internet. See lab.py for the picture of the rest.

roadwarrior   203.0.113.70, 2001:db8:113::70     a laptop or a phone
lan           203.0.113.71, 2001:db8:113::71     a router; behind it 192.168.77.0/24
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from init_wg.config import server_settings
from init_wg.server import enrol, keys
from init_wg.server.design import peerfile

from .lab import CLUSTER_DNS, Family, Lab, Member, ip_batch

SUBNET = "10.13.13.0/24"
SUBNET6 = "fd13:13::/64"
OWN: dict[Family, str] = {4: "10.13.13.1", 6: "fd13:13::1"}
PORT = 51820
HEALTH = 9999  # it answers whoever asks how it is
ETH_ALL = 3
#: What an orchestrator leaves to a container: one capability, and a /proc/sys that cannot be written.
CONFINED = (
    "unshare", "--mount", "sh", "-c",
    ("mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && "
     'exec setpriv --bounding-set=-all,+net_admin --inh-caps=-all --ambient-caps=-all -- "$@"'),
    "confined",
)  # fmt: skip


PROGRAM = (sys.executable, "-m", "init_wg")


class Forwarded(NamedTuple):
    """A packet that left the pod by its uplink for a peer: no WireGuard, no question of the pod's own for a name."""

    moment: float  # Unix seconds
    source: str
    destination: str
    protocol: int
    port: int


class ServerLab(Lab):
    """A running lab; the pod serves nobody yet. Settings are those of Lab."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.roadwarrior = Member(self, "roadwarrior")
        self.lan = Member(self, "lan")
        for number, member in ((70, self.roadwarrior), (71, self.lan)):
            member.addresses = {4: f"203.0.113.{number}", 6: f"2001:db8:113::{number}"}
            self.members.append(member)
        self.data = self.folder / "data"

    def _network(self) -> None:
        super()._network()
        internet = self.internet.netns
        for member, port in ((self.roadwarrior, "warrior"), (self.lan, "lan")):
            ip_batch(f"link add name eth0 netns {member.netns} type veth peer name {port} netns {internet}")
            ip_batch(f"link set {port} master bridge0 up", netns=internet)
            ip_batch(
                "link set lo up",
                "link set eth0 up",
                f"address add {member.addresses[4]}/24 dev eth0",
                f"address add {member.addresses[6]}/64 dev eth0 nodad",
                f"route add default via {self.node.addresses[4]}",
                f"route add default via {self.node.addresses[6]}",
                netns=member.netns,
            )
        # So long as nobody puts them into a tunnel, the internet has no way to these.
        ip_batch("address add 192.168.77.1/24 dev lo", netns=self.lan.netns)
        self.data.mkdir(mode=0o700)

    @property
    def server_env(self) -> dict[str, str]:
        """The environment of the server's container."""
        return {
            "WG_MODE": "server",
            "PEERS": "roadwarrior,lan",
            "SERVER_DATA": str(self.data),
            "SERVERURL": self.pod.addresses[4],
            "INTERNAL_SUBNET6": SUBNET6,
        }

    def run_server(
        self, *words: str, check: bool = True, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the product in the pod with one capability and a read-only /proc/sys."""
        argv = [*CONFINED, *PROGRAM, *words]
        return self.pod.run(argv, env={**self.server_env, **(env or {})}, check=check)

    def client_file(self, name: str, **environment: str) -> str:
        """The peer's file, of which the volume has the keys."""
        server = server_settings.read({**self.server_env, **environment})
        register = enrol.enrol(server, keep=False).register
        within = enrol.within(server, register)
        mtu = min(self.mtu - 80, 1420)
        return peerfile.text(register.peers[name], server, within, keys.public(register.key), server.url, mtu)

    def join(self, member: Member, text: str, mtu: int | None = None) -> None:
        """A plain client: what wg-quick would do, without a kill-switch. mtu: instead of the file's."""
        found = dict(line.split(" = ", 1) for line in text.splitlines() if " = " in line)
        path = self.folder / f"{member.name}.conf"
        path.touch(mode=0o600)
        kept = [line for line in text.splitlines() if line.partition(" ")[0] not in ("Address", "DNS", "MTU")]
        path.write_text("\n".join(kept) + "\n")
        if self.kernel_wireguard:
            ip_batch("link add name wg0 type wireguard", netns=member.netns)
        else:
            quiet = subprocess.DEVNULL
            member.popen(["wireguard-go", "wg0"], stdout=quiet, stderr=quiet, new_session=True).wait(30)
        member.run(["wg", "setconf", "wg0", path])
        host = found["Endpoint"].rpartition(":")[0]
        ip_batch(
            *(
                f"address add {address} dev wg0{' nodad' * (':' in address)}"
                for address in found["Address"].split(", ")
            ),
            f"link set wg0 mtu {mtu or found['MTU']} up",
            f"route replace {host} via {self.node.addresses[4]}",
            *(f"route replace {each} dev wg0 metric 1" for each in ("0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1")),
            # It is on the client's own link.
            *(f"route replace {address} dev wg0 metric 1" for address in self.web.addresses.values()),
            netns=member.netns,
        )

    def leave(self, member: Member) -> None:
        """The end of join()."""
        ip_batch("link delete wg0", netns=member.netns)

    @contextlib.contextmanager
    def forwarded(self) -> Iterator[list[Forwarded]]:
        """What leaves the pod for its peers meanwhile, as the node's end of its link sees it."""
        found: list[Forwarded] = []
        with self.node.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_ALL)) as tap:
            tap.bind(("pod0", ETH_ALL))
            tap.setblocking(False)
            over, end = os.pipe()

            def watch() -> None:
                while True:
                    ready, _, _ = select.select([tap.fileno(), over], [], [])
                    with contextlib.suppress(BlockingIOError):
                        while tap.fileno() in ready:
                            frame, where = tap.recvfrom(2048)
                            if where[2] != socket.PACKET_OUTGOING and (packet := self._for_a_peer(frame)):
                                found.append(packet)
                    if over in ready:
                        return

            watcher = threading.Thread(target=watch)
            watcher.start()
            try:
                yield found
            finally:
                os.write(end, b".")
                watcher.join()
                os.close(over)
                os.close(end)

    def _for_a_peer(self, frame: bytes) -> Forwarded | None:
        kind, packet = frame[12:14], frame[14:]
        if kind == b"\x08\x00":
            source, destination = (socket.inet_ntoa(packet[at : at + 4]) for at in (12, 16))
            protocol, segment = packet[9], packet[(packet[0] & 15) * 4 :]
        elif kind == b"\x86\xdd":
            source, destination = (socket.inet_ntop(socket.AF_INET6, packet[at : at + 16]) for at in (8, 24))
            protocol, segment = packet[6], packet[40:]
        else:
            return None
        ports = (int.from_bytes(segment[:2], "big"), int.from_bytes(segment[2:4], "big"))
        own = source in self.pod.addresses.values()
        if own and (protocol, ports[0]) in ((socket.IPPROTO_UDP, PORT), (socket.IPPROTO_TCP, HEALTH)):
            return None
        # Its own errors, as that nobody listens while wg0 is away. A peer's are echo requests, or not from its address.
        if own and protocol == socket.IPPROTO_ICMP and segment[0] != 8:
            return None
        # ICMPv6 of its own: neighbours and listeners. A peer's that was masqueraded is an echo request (RFC 4443).
        if protocol == socket.IPPROTO_ICMPV6 and segment[0] != 128:
            return None
        if destination in CLUSTER_DNS.values() and ports[1] == 53:
            return None
        port = ports[1] if protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP) else 0
        return Forwarded(time.time(), source, destination, protocol, port)

    def handshakes(self) -> dict[str, int]:
        """Unix seconds by public key, as the server's device has them."""
        told = self.pod.run(["wg", "show", "wg0", "latest-handshakes"]).stdout
        return {key: int(seconds) for key, seconds in (line.split() for line in told.splitlines())}

    def refusal(self, client: Member, address: str, port: int, timeout: float = 3.0) -> str:
        """How a TCP connection ends: "answered", "refused", "unreachable" or "silence"."""
        with client.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as asker:
            asker.settimeout(timeout)
            try:
                asker.connect((address, port))
            except ConnectionRefusedError:
                return "refused"
            except TimeoutError:
                return "silence"
            except OSError:
                return "unreachable"
            return "answered"

    def register(self) -> dict[str, Any]:
        """The server's volume."""
        found: dict[str, Any] = json.loads((self.data / "server.json").read_text())
        return found
