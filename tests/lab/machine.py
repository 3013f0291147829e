"""A machine with a cluster and a host VPN that behaves as the Mullvad app does, as seen from its pods, its LAN and the
internet. It is no machine, but a network namespace with what a node has: a bridge called cni0.

  ext 198.51.100.77 ---- router ---- lan 192.168.1.50
                        /      \\ \\---- node 192.168.1.100 [wg0-mullvad] cni0 10.244.0.1 -- pods a .10, b .11, dns .53
  relay 203.0.113.1, 10.64.0.1        web 203.0.113.80

The router forwards 164.43.59.135 to the node, and gives what leaves the LAN that address; IPv6 it only routes.
The VPN's rules are written from what talpid-core/src/firewall/linux.rs says it does.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Literal, NamedTuple, Self

from . import reaper
from .lab import HTTP, Family, Lab, LabError, Member, ip_batch, kernel_wireguard

State = Literal["off", "connecting", "connected", "blocked"]
MARK, LICENCE, TUNNEL, RELAY_PORT = 0x6D6F6C65, 0xF41, "wg0-mullvad", 51820
PUBLIC: dict[Family, str] = {4: "164.43.59.135", 6: "2001:db8:1::100"}
#: What the LAN calls the node. Neighbours with public addresses are none that the app lets in.
AT_HOME: dict[Family, str] = {4: "192.168.1.100", 6: "fd01::100"}
RELAY: dict[Family, str] = {4: "203.0.113.1", 6: "2001:db8:113::1"}
RESOLVER: dict[Family, str] = {4: "10.64.0.1", 6: "fc00:bbbb:bbbb:bb01::1"}
INSIDE: dict[Family, str] = {4: "10.99.0.2", 6: "fc00:bbbb:bbbb:bb01::99"}
ISP_DNS: dict[Family, str] = {4: "198.51.100.53", 6: "2001:db8:198::53"}
#: Services: CoreDNS, one of pod b, and one whose endpoint is on the internet.
CLUSTER_DNS: dict[Family, str] = {4: "10.96.0.10", 6: "fd96::10"}
OF_A_POD: dict[Family, str] = {4: "10.96.0.80", 6: "fd96::80"}
OF_THE_INTERNET: dict[Family, str] = {4: "10.96.5.5", 6: "fd96::5:5"}
PODS: dict[Family, str] = {4: "10.244.0.0/16", 6: "fd44::/56"}
#: Node ports with externalTrafficPolicy Cluster (of pod a) and Local (of pod b); a host port; one that nobody named.
CLUSTER, LOCAL, HOST_PORT, UNNAMED = 30080, 30081, 8443, 2222
INBOUND = f"tcp/{HOST_PORT},tcp/30000-32767"
LAN: dict[Family, str] = {4: "10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 169.254.0.0/16", 6: "fe80::/10, fc00::/7"}
MULTICAST: dict[Family, str] = {4: "224.0.0.0/24, 239.0.0.0/8, 255.255.255.255", 6: "ff02::/16, ff05::/16"}
_NETS: tuple[tuple[Family, str], ...] = ((4, "ip"), (6, "ip6"))


class Seen(NamedTuple):
    """A packet that left the machine beside the VPN, and is neither the LAN's nor an answer to somebody outside."""

    source: str
    destination: str
    protocol: int
    port: int


class MachineLab(Lab):
    """rp_filter: of the node, in all its interfaces. routed: each pod is alone on a link, as Calico has it; else they
    are on a bridge. bridge_filter: does what the bridge passes on go through iptables and nftables, too?"""

    def __init__(self, *, rp_filter: Literal[0, 1, 2] = 2, routed: bool = False, bridge_filter: bool = True) -> None:
        super().__init__(rp_filter=rp_filter)
        self.routed = routed
        self.bridge_filter = bridge_filter
        #: Without it, an answer from pod to pod takes the bridge and no Service translates it back.
        self.services_of_neighbours = routed or (bridge_filter and Path("/proc/sys/net/bridge").exists())
        #: With which address the machine asks a pod.
        self.asks: dict[Family, str] = AT_HOME if routed else {4: "10.244.0.1", 6: "fd44::1"}
        self.router, self.ext, self.relay = (Member(self, name) for name in ("router", "ext", "relay"))
        self.lan, self.a, self.b, self.dns = (Member(self, name) for name in ("lan", "a", "b", "dns"))
        self.pods = (self.a, self.b, self.dns)
        self.members = [self.node, self.router, self.ext, self.relay, self.web, self.lan, *self.pods]
        for member, four, six in (
            (self.node, "192.168.1.100", PUBLIC[6]),
            (self.lan, "192.168.1.50", "fd01::50"),
            (self.ext, "198.51.100.77", "2001:db8:198::77"),
            (self.relay, RELAY[4], RELAY[6]),
            (self.web, "203.0.113.80", "2001:db8:113::80"),
            (self.a, "10.244.0.10", "fd44::10"),
            (self.b, "10.244.0.11", "fd44::11"),
            (self.dns, "10.244.0.53", "fd44::53"),
        ):
            member.addresses = {4: four, 6: six}

    def __enter__(self) -> Self:
        reaper.sweep(Path(tempfile.gettempdir()))
        self.folder.mkdir(mode=0o700)
        argv = [sys.executable, "-I", "-S", reaper.__file__, self.name, str(self.folder)]
        self.reaper = subprocess.Popen(argv, stdin=subprocess.PIPE, start_new_session=True)
        try:
            self.kernel_wireguard = kernel_wireguard()
            self._namespaces()
            self._network()
            self._cluster()
            self._tunnel()
            self._services()
        except BaseException:
            self.close()
            raise
        return self

    def _namespaces(self) -> None:
        ip_batch(*(f"netns add {member.netns}" for member in self.members))
        resolv_conf = self.folder / "resolv.conf"
        resolv_conf.write_text(f"nameserver {RESOLVER[4]}\n")
        for member in self.members:
            member.hold(str(resolv_conf) if member is self.node else "")
        for member in self.members:
            member.sysctl(ipv6__conf__default__accept_dad=0, ipv6__conf__default__dad_transmits=0)
            member.sysctl(ipv6__conf__default__accept_ra=0)
            rp_filter = self.rp_filter if member is self.node else 0
            member.sysctl(ipv4__conf__all__rp_filter=rp_filter, ipv4__conf__default__rp_filter=rp_filter)
        for member in (self.node, self.router, self.relay):
            member.sysctl(ipv4__ip_forward=1, ipv6__conf__all__forwarding=1)
        for member in self.members:
            member.held()
        # Which plugins have files on the machine of these tests must not matter.
        for folder in ("/etc/cni", "/run/flannel"):
            if Path(folder).exists():
                self.node.run(["mount", "-t", "tmpfs", "tmpfs", folder])

    def _network(self) -> None:
        node, router = self.node.netns, self.router.netns
        ip_batch(
            *(
                f"link add name eth0 netns {member.netns} type veth peer {member.name} netns {router}"
                for member in (self.node, self.lan, self.ext, self.relay, self.web)
            ),
            *(f"link add name eth0 netns {pod.netns} type veth peer cali{pod.name} netns {node}" for pod in self.pods),
        )
        ip_batch(
            "link set lo up",
            "link add lan0 type bridge",
            "link add inet0 type bridge",
            *(f"link set {port} master lan0 up" for port in ("node", "lan")),
            *(f"link set {port} master inet0 up" for port in ("relay", "web")),
            *(f"link set {port} up" for port in ("lan0", "inet0", "ext")),
            "address add 192.168.1.1/24 dev lan0",
            "address add 2001:db8:1::1/64 dev lan0 nodad",
            "address add fd01::1/64 dev lan0 nodad",
            "address add 203.0.113.254/24 dev inet0",
            "address add 2001:db8:113::254/64 dev inet0 nodad",
            "address add 198.51.100.1/24 dev ext",
            "address add 2001:db8:198::1/64 dev ext nodad",
            f"address add {PUBLIC[4]}/32 dev lo",
            *(f"address add {address} dev lo" for address in ISP_DNS.values()),
            netns=router,
        )
        self.router.run(["nft", "-f", "-"], stdin=f"""
            table ip home {{
                chain in {{ type nat hook prerouting priority dstnat; ip daddr {PUBLIC[4]} dnat to 192.168.1.100; }}
                chain out {{ type nat hook postrouting priority srcnat;
                    ip saddr 192.168.1.0/24 oifname {{ "ext", "inet0" }} snat to {PUBLIC[4]}; }}
            }}""")  # fmt: skip
        for member, four, six in (
            (self.node, "192.168.1.1", "2001:db8:1::1"),
            (self.lan, "192.168.1.1", "fd01::1"),
            (self.ext, "198.51.100.1", "2001:db8:198::1"),
            (self.relay, "203.0.113.254", "2001:db8:113::254"),
            (self.web, "203.0.113.254", "2001:db8:113::254"),
        ):
            ip_batch(
                "link set lo up",
                "link set eth0 up",
                f"address add {member.addresses[4]}/24 dev eth0",
                f"address add {member.addresses[6]}/64 dev eth0 nodad",
                f"route add default via {four}",
                f"route add default via {six}",
                netns=member.netns,
            )
        ip_batch(f"address add {AT_HOME[6]}/64 dev eth0 nodad", netns=node)
        for pod in self.pods:
            ip_batch("link set lo up", "link set eth0 up", netns=pod.netns)
        (self._on_links if self.routed else self._on_a_bridge)()

    def _on_a_bridge(self) -> None:
        ip_batch(
            "link add cni0 type bridge",
            "address add 10.244.0.1/24 dev cni0",
            "address add fd44::1/64 dev cni0 nodad",
            *(f"link set cali{pod.name} master cni0 up" for pod in self.pods),
            "link set cni0 up",
            netns=self.node.netns,
        )
        for pod in self.pods:
            self.node.run(["bridge", "link", "set", "dev", f"cali{pod.name}", "hairpin", "on"])
            ip_batch(
                f"address add {pod.addresses[4]}/24 dev eth0",
                f"address add {pod.addresses[6]}/64 dev eth0 nodad",
                "route add default via 10.244.0.1",
                "route add default via fd44::1",
                netns=pod.netns,
            )
        if Path("/proc/sys/net/bridge").exists():  # br_netfilter
            for name in ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables"):
                self.node.sysctl(**{f"bridge__{name}": int(self.bridge_filter)})

    def _on_links(self) -> None:
        for pod in self.pods:
            device = f"cali{pod.name}"
            ip_batch(
                f"link set {device} up",
                f"route add {pod.addresses[4]}/32 dev {device}",
                f"route add {pod.addresses[6]}/128 dev {device}",
                f"address add fe80::1/64 dev {device} nodad",
                netns=self.node.netns,
            )
            # As Calico does it: by default the kernel waits up to 0.8 s before it answers for somebody else.
            self.node.sysctl(**{f"ipv4__conf__{device}__proxy_arp": 1, f"ipv4__neigh__{device}__proxy_delay": 0})
            ip_batch(
                f"address add {pod.addresses[4]}/32 dev eth0",
                f"address add {pod.addresses[6]}/128 dev eth0 nodad",
                "route add 169.254.1.1 dev eth0",
                "route add default via 169.254.1.1 dev eth0",
                "route add default via fe80::1 dev eth0",
                netns=pod.netns,
            )

    def _cluster(self) -> None:
        """What kube-proxy and a CNI's portmap do: Services, node ports, masquerade by the mark's bit 0x4000."""
        for family, word in _NETS:
            local, inside = {4: ("127.0.0.0/8", "10.244.0.0/24"), 6: ("::1", "fd44::/64")}[family]
            a, b, dns, web = (
                f"[{address}]" if family == 6 else address
                for address in (m.addresses[family] for m in (self.a, self.b, self.dns, self.web))
            )
            everybody = f"{{ {PODS[family]}, {'224.0.0.0/4' if family == 4 else 'ff00::/8'} }}"
            mine = f"fib daddr type local {word} daddr != {local} tcp dport"
            self.node.run(["nft", "-f", "-"], stdin=f"""
                table {word} kube-proxy {{
                    chain services {{
                        {word} daddr {CLUSTER_DNS[family]} meta l4proto {{ tcp, udp }} th dport 53 dnat to {dns}:53
                        {word} daddr {OF_A_POD[family]} tcp dport 80 dnat to {b}:{HTTP}
                        {word} daddr {OF_THE_INTERNET[family]} tcp dport 80 dnat to {web}:{HTTP}
                        {mine} {CLUSTER} meta mark set meta mark or 0x4000 dnat to {a}:{HTTP}
                        {mine} {LOCAL} dnat to {b}:{HTTP}
                    }}
                    chain pre {{ type nat hook prerouting priority dstnat; jump services; }}
                    chain out {{ type nat hook output priority -100; jump services; }}
                    chain post {{ type nat hook postrouting priority srcnat; meta mark and 0x4000 == 0 return;
                        meta mark set meta mark xor 0x4000; masquerade fully-random; }}
                }}
                table {word} cni {{
                    chain post {{ type nat hook postrouting priority srcnat;
                        {word} saddr {inside} {word} daddr != {everybody} masquerade; }}
                }}""")  # fmt: skip

    def _tunnel(self) -> None:
        public = []
        for member in (self.node, self.relay):
            key = subprocess.run(["wg", "genkey"], capture_output=True, check=True).stdout
            path = self.folder / f"{member.name}.key"
            path.touch(mode=0o600)
            path.write_bytes(key)
            public.append(
                subprocess.run(["wg", "pubkey"], input=key, capture_output=True, check=True).stdout.decode().strip()
            )
            if self.kernel_wireguard:
                ip_batch(f"link add name {TUNNEL} type wireguard", netns=member.netns)
            else:
                quiet = subprocess.DEVNULL
                member.popen(["wireguard-go", TUNNEL], stdout=quiet, stderr=quiet, new_session=True).wait(30)
            member.run(["wg", "set", TUNNEL, "private-key", path])
        self.relay.run(["wg", "set", TUNNEL, "listen-port", str(RELAY_PORT), "peer", public[0], "allowed-ips",
                        f"{INSIDE[4]}/32,{INSIDE[6]}/128"])  # fmt: skip
        self.node.run(["wg", "set", TUNNEL, "fwmark", str(MARK), "peer", public[1], "endpoint",
                       f"{RELAY[4]}:{RELAY_PORT}", "allowed-ips", "0.0.0.0/0,::/0"])  # fmt: skip
        for member, addresses in ((self.node, INSIDE), (self.relay, RESOLVER)):
            ip_batch(
                f"address add {addresses[4]}/32 dev {TUNNEL}",
                f"address add {addresses[6]}/128 dev {TUNNEL} nodad",
                f"link set {TUNNEL} mtu 1380 up",
                netns=member.netns,
            )
        ip_batch(*(f"route add {address} dev {TUNNEL}" for address in INSIDE.values()), netns=self.relay.netns)
        nat = "type nat hook postrouting priority srcnat; oifname eth0 iifname wg0-mullvad masquerade"
        self.relay.run(["nft", "-f", "-"], stdin=f"table inet nat {{ chain out {{ {nat}; }}; }}\n")

    def _services(self) -> None:
        self.folder.joinpath("zone.json").write_text("{}")
        self.zone({"*": ["203.0.113.80", "2001:db8:113::80"], "db.default.svc.cluster.local": ["10.96.0.80"]})
        started = []
        for member, what in (
            (self.web, [f"http:[{a}]:{port}" for a in self.web.addresses.values() for port in (HTTP, 443)]),
            (self.lan, [f"http:[{a}]:{HTTP}" for a in self.lan.addresses.values()]),
            (self.a, [f"http:[{a}]:{HTTP}" for a in self.a.addresses.values()]),
            (self.b, [f"http:[{a}]:{HTTP}" for a in self.b.addresses.values()]),
            (self.dns, [f"dns:[{a}]:53" for a in self.dns.addresses.values()]),
            (self.relay, [f"dns:[{a}]:53" for a in RESOLVER.values()]),
            (self.router, [f"dns:[{a}]:53" for a in ISP_DNS.values()]),
            (self.node, [f"http:[{a}]:{port}" for a in ("0.0.0.0", "::") for port in (HOST_PORT, UNNAMED, 10250)]),
        ):
            started.append((member, self.serve(member, *what)))
        for member, process in started:
            assert process.stdout
            if process.stdout.readline() != b"ready\n":
                raise LabError(f"{member.name}: its services did not start")

    @property
    def pod_env(self) -> dict[str, str]:
        """Nothing is given to a program on the machine."""
        return {}

    # --- the VPN -------------------------------------------------------------------------------------------

    def vpn(self, state: State, *, lan: bool = False) -> None:
        """Its rules for one of its states, in one transaction, as it puts them; its policy rules and its sysctls."""
        self.node.run(["nft", "-f", "-"], stdin="table inet mullvad\ndelete table inet mullvad\n")
        for word in ("-4", "-6"):
            for rule in (f"not from all fwmark {MARK} lookup {MARK}", "from all lookup main suppress_prefixlength 0"):
                self.node.run(["ip", word, "rule", "delete", *rule.split()], check=False)
        if state == "off":
            return
        self.node.run(["nft", "-f", "-"], stdin=mullvad(state, lan=lan))
        self.node.sysctl(ipv4__conf__all__src_valid_mark=1, ipv4__conf__all__arp_ignore=2)
        if state == "connected":
            for word in ("-4", "-6"):
                self.node.run(["ip", word, "route", "replace", "default", "dev", TUNNEL, "table", str(MARK)])
                self.node.run(
                    ["ip", word, "rule", "add", "not", "from", "all", "fwmark", str(MARK), "lookup", str(MARK)]
                )
                self.node.run(
                    ["ip", word, "rule", "add", "from", "all", "lookup", "main", "suppress_prefixlength", "0"]
                )

    def init_node(
        self, *words: str, env: Mapping[str, str] | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run the product on the machine."""
        given = {"NODE_INBOUND": INBOUND, **(env or {})}
        return self.node.run([sys.executable, "-m", "init_wg", "node", *words], env=given, check=check)

    def resolve(self, client: Member, server: str, name: str, timeout: float = 1.0) -> str | None:
        """The IPv4 address of a name by this resolver; None when it does not answer."""
        labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
        family = socket.AF_INET6 if ":" in server else socket.AF_INET
        with client.socket(family, socket.SOCK_DGRAM) as asker:
            asker.settimeout(timeout)
            try:
                asker.connect((server, 53))
                asker.send(struct.pack("!6H", 7, 256, 1, 0, 0, 0) + labels + b"\0\0\1\0\1")
                return socket.inet_ntoa(asker.recv(512)[-4:])
            except OSError:
                return None

    def from_port(self, family: Family, source: str, port: int, timeout: float = 0.5) -> str | None:
        """A connection of the machine itself to the web, from this address and port."""
        with self.node.socket(socket.AF_INET6 if family == 6 else socket.AF_INET, socket.SOCK_STREAM) as asker:
            asker.settimeout(timeout)
            asker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                asker.bind((source, port))
                asker.connect((self.web.addresses[family], 443))
            except OSError:
                return None
            return "connected"

    @contextlib.contextmanager
    def judged(self) -> Iterator[list[Seen]]:
        """All that leaves the machine meanwhile and should not, as the router sees it."""
        found: list[Seen] = []
        with self.router.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as tap:
            tap.bind(("node", 3))
            tap.setblocking(False)
            stop_reader, stop_writer = os.pipe()

            def watch() -> None:
                while True:
                    ready, _, _ = select.select([tap.fileno(), stop_reader], [], [])
                    while tap.fileno() in ready:
                        try:
                            data, where = tap.recvfrom(2048)
                        except BlockingIOError:
                            break
                        if where[2] != socket.PACKET_OUTGOING and (packet := _outsider(data)):
                            found.append(packet)
                    if stop_reader in ready:
                        return

            watcher = threading.Thread(target=watch)
            watcher.start()
            try:
                yield found
            finally:
                os.write(stop_writer, b".")
                watcher.join()
                os.close(stop_reader)
                os.close(stop_writer)


_LAN_NETWORKS = tuple(
    map(ip_network, ("192.168.1.0/24", "2001:db8:1::/64", "fd01::/64", "fe80::/10", "ff00::/8", "224.0.0.0/4"))
)
_EXT = frozenset(("198.51.100.77", "2001:db8:198::77"))


def _outsider(frame: bytes) -> Seen | None:
    kind, packet = frame[12:14], frame[14:]
    if kind == b"\x08\x00":
        source, destination = socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20])
        protocol, segment = packet[9], packet[(packet[0] & 15) * 4 :]
    elif kind == b"\x86\xdd":
        source, destination = (socket.inet_ntop(socket.AF_INET6, packet[at : at + 16]) for at in (8, 24))
        protocol, segment = packet[6], packet[40:]
    else:
        return None
    if any(ip_address(destination) in network for network in _LAN_NETWORKS):
        return None
    port = int.from_bytes(segment[2:4], "big") if protocol in (6, 17) else 0
    if (destination, protocol, port) == (RELAY[4], 17, RELAY_PORT):
        return None
    if destination in _EXT and not (protocol == 6 and segment[13] & 0x12 == 2):
        return None  # to who came from outside, and no new connection
    return Seen(source, destination, protocol, port)


def mullvad(state: State, *, lan: bool) -> str:
    """The app's table."""
    up, relay, tunnel = state == "connected", state in ("connected", "connecting"), f'oif "{TUNNEL}"'
    resolvers = [f"ip daddr {RESOLVER[4]}", f"ip6 daddr {RESOLVER[6]}"]
    dns = [f"{tunnel} {p} dport 53 {r} accept" for p in ("udp", "tcp") for r in resolvers] if up else []
    dns += ["udp dport 53 reject with icmpx port-unreachable", "tcp dport 53 reject with tcp reset"]
    to_lan = [f"{w} daddr {{ {each[f]} }} accept" for f, w in _NETS for each in (LAN, MULTICAST)] if lan else []
    from_lan = [f"{word} saddr {{ {LAN[family]} }} accept" for family, word in _NETS] if lan else []
    discovery_out = [
        "ip6 daddr { ff02::1:ff00:0/104, fe80::/10 } icmpv6 type nd-neighbor-solicit accept",
        "ip6 daddr fe80::/10 icmpv6 type nd-neighbor-advert accept",
    ]
    discovery_in = [
        "ip6 saddr fe80::/10 icmpv6 type nd-neighbor-solicit accept",
        "icmpv6 type nd-neighbor-advert accept",
    ]
    excluded = [f"ct mark {LICENCE:#x} accept"]
    reject = ["reject with icmpx port-unreachable"]
    chains: dict[str, tuple[str, list[str]]] = {
        "prerouting": ("filter hook prerouting priority -199", [
            *([f'iif != "{TUNNEL}" ct mark {LICENCE:#x} meta mark set {MARK}'] if up else []),
            *([f"ip saddr {RELAY[4]} udp sport {RELAY_PORT} meta mark set {MARK}"] if relay else []),
        ]),
        "output": ("filter hook output priority 0; policy drop", [
            'oif "lo" accept', *excluded, *discovery_out,
            *([f"ip daddr {RELAY[4]} udp dport {RELAY_PORT} meta mark {MARK} accept"] if relay else []),
            *dns, *([f"{tunnel} accept"] if up else []), *to_lan, *reject,
        ]),
        "input": ("filter hook input priority 0; policy drop", [
            'iif "lo" accept', *excluded, *discovery_in,
            *([f"ip saddr {RELAY[4]} udp sport {RELAY_PORT} ct state established accept"] if relay else []),
            *([f'iif "{TUNNEL}" accept'] if up else []), *from_lan,
        ]),
        "forward": ("filter hook forward priority 0; policy drop", [
            *excluded, *dns,
            *([f"{tunnel} accept", f'iif "{TUNNEL}" ct state established accept'] if up else []), *to_lan, *reject,
        ]),
        "mangle": ("route hook output priority -150", []),
        "nat": ("nat hook postrouting priority 100", [
            *([f"{tunnel} ct mark {LICENCE:#x} drop"] if up else []), f'oif != "lo" ct mark {LICENCE:#x} masquerade',
        ]),
    }  # fmt: skip
    body = "".join(
        f"chain {name} {{\ntype {hook};\n" + "".join(f"{rule}\n" for rule in rules) + "}\n"
        for name, (hook, rules) in chains.items()
    )
    return f"table inet mullvad\ndelete table inet mullvad\ntable inet mullvad {{\n{body}}}\n"
