"""A lab whose pod is a server, with two clients on the internet. See lab.py for the picture of the rest.

roadwarrior   203.0.113.70, 2001:db8:113::70     a laptop or a phone
lan           203.0.113.71, 2001:db8:113::71     a router; behind it 192.168.77.0/24
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from init_wg.config import server_settings
from init_wg.server import enrol, keys
from init_wg.server.design import peerfile

from .lab import Family, Lab, Member, ip_batch

SUBNET = "10.13.13.0/24"
SUBNET6 = "fd13:13::/64"
OWN: dict[Family, str] = {4: "10.13.13.1", 6: "fd13:13::1"}
PORT = 51820
#: What an orchestrator leaves to a container: one capability, and a /proc/sys that cannot be written.
CONFINED = (
    "unshare", "--mount", "sh", "-c",
    ("mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && "
     'exec setpriv --bounding-set=-all,+net_admin --inh-caps=-all --ambient-caps=-all -- "$@"'),
    "confined",
)  # fmt: skip


PROGRAM = (sys.executable, "-m", "init_wg")


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
