"""What leaves the pods, judged on the node's ends of their links, which no pod can fool.

One tcpdump on every interface of the node, those to come too. Every frame that comes in from a pod's link counts,
whatever its source address is; the judge of tests/lab decides about it.
"""

from __future__ import annotations

import signal
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Iterable
from ipaddress import ip_network
from typing import TYPE_CHECKING, Self

from tests.lab.judge import ETH_ARP, ETH_IP, ETH_IPV6, OUTGOING, SNAPLEN, Rules, Verdict, segment_of
from tests.lab.pcap import packets, require_complete, wait_for_start

from .cluster import DNS, NODE, NODE6, PODS, PODS6, PROVIDERS, SERVICES, SERVICES6, WEB, WEB6, to_child

if TYPE_CHECKING:
    from .cluster import Cluster

GATEWAYS = ("10.42.0.1", "fd42::1")  # of the pods: the node's end of each link
LINK_LOCAL = "fe80::/10"
#: Packets of pods that all captures judged: "allowed", "leaked", and those in clear that the controls saw, "control".
JUDGED: Counter[str] = Counter()


def rules(lookups: Iterable[str] = ()) -> Rules:
    """What may leave a tunnelled pod: WireGuard to a provider, answers, and the cluster's networks without DNS.

    lookups: names of endpoints, which may be asked for.
    """
    bypass = [*map(ip_network, (PODS, PODS6, SERVICES, SERVICES6))]
    return Rules(
        endpoints=[(f"203.0.113.{number}", 51820) for number in PROVIDERS],
        on_link=[*map(ip_network, (*GATEWAYS, PODS, PODS6, LINK_LOCAL))],
        sources=[*map(ip_network, (PODS, PODS6, LINK_LOCAL))],
        bypass=bypass,
        clients=[*GATEWAYS, NODE, NODE6, WEB, WEB6],
        ports={},
        resolvers={DNS: "dns-cluster", NODE: "dns-node"},
        lookups=lookups,
        # A pod's own kernel says it while its link comes up, before any container runs.
        allow_mld=True,
    )


class Capture:
    """From `with` to its end. between() judges a stretch of it, as often as one likes."""

    def __init__(self, cluster: Cluster, name: str, also: Iterable[int] = (), *, control: bool = False) -> None:
        """also: the numbers of other links of the node, whose packets are kept, but not judged. control: its leaks are
        on purpose."""
        self.control = control
        self.cluster = cluster
        self.left_out = cluster.not_pods - set(also)
        self.file = cluster.folder / f"{name}.pcap"
        self.errors = cluster.folder / f"{name}.capture"
        #: Addresses of pods that are open on purpose.
        self.lenient: Iterable[str] = ()
        #: Names of endpoints.
        self.lookups: Iterable[str] = ()

    def __enter__(self) -> Self:
        # In the process namespace, too: whatever ends these tests, tcpdump ends with the cluster.
        argv = ["nsenter", f"--target={self.cluster.first}", "--net", "--pid", "--", "tcpdump"]
        argv += ["-i", "any", "-y", "LINUX_SLL2"]
        argv += ["-p", "-n", "-s", str(SNAPLEN), "-B", "65536", "--immediate-mode", "-U", "-Z", "root"]
        argv += ["-w", str(self.file), " and ".join(f"not ifindex {link}" for link in sorted(self.left_out))]
        with self.errors.open("wb") as errors:
            self.tcpdump = subprocess.Popen(argv, stderr=errors, stdout=subprocess.DEVNULL)
        wait_for_start(self.tcpdump, self.errors)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        to_child(self.tcpdump, signal.SIGINT)
        self.tcpdump.wait(20)
        if kind is None:
            require_complete(self.errors)
        verdict = self.judged()
        JUDGED["allowed"] += verdict.allowed.total()
        JUDGED["control" if self.control else "leaked"] += verdict.leaked
        self.file.unlink(missing_ok=True)

    def judged(self, since: float = 0.0, until: float = float("inf")) -> Verdict:
        """All that came from pods in that stretch (Unix seconds)."""
        time.sleep(0.3)  # tcpdump writes each packet at once, but takes them from the kernel in blocks
        judge, verdict = rules(self.lookups), Verdict(since=since)
        open_pods = {ip_network(each).network_address.packed for each in self.lenient}
        for moment, packet in packets(self.file.read_bytes()):
            self._packet(judge, verdict, moment, packet, open_pods, counts=since <= moment <= until)
        return verdict

    def _packet(
        self,
        judge: Rules,
        verdict: Verdict,
        moment: float,
        packet: bytes,
        open_pods: set[bytes],
        *,
        counts: bool,
    ) -> None:
        protocol, link, direction = struct.unpack_from("!HxxIxxB", packet)
        if link in self.cluster.not_pods or protocol not in (ETH_IP, ETH_IPV6, ETH_ARP):
            return
        data = packet[20:]
        segment = segment_of(protocol, data)
        if direction == OUTGOING:
            if segment:
                judge.seen_inbound(segment)
            return
        if segment and segment.source in open_pods:
            return
        judge.weigh(verdict, moment, protocol, data, counts=counts)
