"""DNS in each mode: who is asked, who sees what, and that nothing leaks while everything is broken.

Judged by the captures on the node, and by what each resolver of the lab was asked.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import dns.exception
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype
import pytest

from tests.lab.faults import FAULTS, Fault
from tests.lab.judge import Judge, for_lab
from tests.lab.lab import CLUSTER_DNS, FAMILIES, NODE_DNS, PUBLIC_DNS, TUNNEL_DNS, Family, Lab, wait_until
from tests.lab.probes import Probes

NAME, ADDRESS = "www.example.com", "198.51.100.80"
SERVICE, CLUSTER_IP = "web.default.svc.cluster.local", "10.43.0.80"
GUESS = f"{NAME}.default.svc.cluster.local"
BIG = "big.example.com"
DOCKER = "127.0.0.11"
EVERYWHERE = [
    (where, family)
    for where in (CLUSTER_DNS, NODE_DNS, PUBLIC_DNS, TUNNEL_DNS)
    for family in FAMILIES
]  # fmt: skip
DNS_KINDS = ("dns-tunnel", "dns-node", "dns-cluster", "dns-public")


class Stack(NamedTuple):
    """A pod in one mode, and the forwarder's process if it has one."""

    lab: Lab
    judge: Judge
    mode: str


@contextlib.contextmanager
def stack(mode: str) -> Iterator[Stack]:
    """A lab that was sealed before anything, under strict rp_filter, with a forwarder where the mode wants it."""
    with Lab(rp_filter=1) as lab, contextlib.ExitStack() as ends:
        many = [f"198.51.100.{number}" for number in range(1, 120)]
        lab.zone({NAME: [ADDRESS, "2001:db8::80"], SERVICE: [CLUSTER_IP], BIG: many, "*": []})
        names = [SERVICE, GUESS, BIG, "80.0.43.10.in-addr.arpa"]
        # Its forwarder asks as it is asked, but for what it remembers: the lab's answers for a second.
        asked_by_tcp = CLUSTER_DNS.values() if mode == "split" else ()
        judge = ends.enter_context(Judge(lab, for_lab(lab, lookups=names, asked_by_tcp=asked_by_tcp)))
        lab.init_wg("lockdown", env={"DNS_MODE": mode})
        judge.mark()
        done = lab.init_wg("up", env={"DNS_MODE": mode})
        assert ("see every name" in done.stderr) == (mode == "cluster")
        here = Stack(lab, judge, mode)
        if mode == "split":
            ends.enter_context(forwarder(here))
        yield here


@contextlib.contextmanager
def forwarder(here: Stack) -> Iterator[None]:
    """`init_wg names`, as the watchdog runs it."""
    process = here.lab.pod.popen([sys.executable, "-m", "init_wg", "names"], env=environment(here))
    try:
        wait_until(lambda: ask(here, "127.0.0.1", NAME, port=10053) is not None, "the forwarder answers")
        yield
    finally:
        process.terminate()
        process.wait()


def environment(here: Stack) -> dict[str, str]:
    return {**here.lab.pod_env, "DNS_MODE": here.mode}


def ask(
    here: Stack, server: str, name: str, kind: str = "A", *, tcp: bool = False, port: int = 53, timeout: float = 2
) -> list[str] | None:
    """What a process of the pod is answered; None when there is no answer."""
    question = dns.message.make_query(name, kind, use_edns=0)
    try:
        with here.lab.pod.inside():
            by = dns.query.tcp if tcp else dns.query.udp
            answer = by(question, server, port=port, timeout=timeout)
    except (OSError, dns.exception.DNSException):
        return None
    return sorted(str(item) for rrset in answer.answer for item in rrset)


def asked(here: Stack, since: dict[str, int] | None = None) -> dict[str, list[str]]:
    """Who was asked what (since the given counts): member -> names."""
    logs = {member.name: here.lab.queries(member) for member in here.lab.members}
    return {name: [line.split()[2] for line in log[(since or {}).get(name, 0) :]] for name, log in logs.items() if log}


def counts(here: Stack) -> dict[str, int]:
    return {member.name: len(here.lab.queries(member)) for member in here.lab.members}


def seen(here: Stack, since: dict[str, int]) -> dict[str, set[str]]:
    return {member: set(names) for member, names in asked(here, since).items() if names}


@pytest.fixture(scope="module")
def tunnel() -> Iterator[Stack]:
    with stack("tunnel") as here:
        yield here


@pytest.fixture(scope="module")
def split() -> Iterator[Stack]:
    with stack("split") as here:
        yield here


@pytest.fixture(scope="module")
def cluster() -> Iterator[Stack]:
    with stack("cluster") as here:
        yield here


# --- tunnel ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_whomever_is_asked_the_tunnels_resolver_answers(tunnel: Stack, tcp: bool) -> None:
    before = counts(tunnel)
    for where, family in EVERYWHERE:
        assert ask(tunnel, where[family], NAME, tcp=tcp) == [ADDRESS], where[family]
    assert seen(tunnel, before) == {"provider": {NAME}}
    assert not tunnel.judge.verdict().leaked


def test_long_answers_come_whole(tunnel: Stack) -> None:
    """Too long for UDP: the answer says so, and TCP has it."""
    assert ask(tunnel, CLUSTER_DNS[4], BIG) == []
    assert len(ask(tunnel, CLUSTER_DNS[4], BIG, tcp=True) or []) == 119


@pytest.mark.parametrize("family", FAMILIES)
def test_dns_over_tls_beside_the_tunnel_is_refused_at_once(tunnel: Stack, family: Family) -> None:
    started = time.monotonic()
    with pytest.raises(OSError), tunnel.lab.pod.inside():
        socket.create_connection((CLUSTER_DNS[family], 853), timeout=5)
    assert time.monotonic() - started < 1
    assert not tunnel.judge.verdict().leaked


def test_multicast_names_stay_in_the_pod(tunnel: Stack) -> None:
    """mDNS and LLMNR, both families, on the uplink by its index."""
    query = dns.message.make_query("printer.local", "A").to_wire()
    index = int(tunnel.lab.pod.run(["cat", "/sys/class/net/eth0/ifindex"]).stdout)
    for group, port in (("224.0.0.251", 5353), ("224.0.0.252", 5355), ("ff02::fb", 5353), ("ff02::1:3", 5355)):
        family = socket.AF_INET6 if ":" in group else socket.AF_INET
        with tunnel.lab.pod.socket(family, socket.SOCK_DGRAM) as sender, contextlib.suppress(OSError):
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
            sender.sendto(query, (group, port, 0, index) if ":" in group else (group, port))
    assert not tunnel.judge.verdict().leaked


def test_docker_resolver_is_never_asked(tunnel: Stack) -> None:
    """It would ask from the host. Without the forwarder there is no answer; with it, the tunnel's."""
    assert ask(tunnel, DOCKER, NAME) is None
    with docker_resolver(tunnel) as questions:
        assert ask(tunnel, DOCKER, NAME) is None
        assert questions() == 0


def test_the_redirection_is_part_of_the_state(tunnel: Stack) -> None:
    lab = tunnel.lab
    lab.pod.run(["nft", "flush", "chain", "inet", "init_wg", "names"])
    found = lab.init_wg("check", check=False, env={"DNS_MODE": "tunnel"})
    assert found.returncode == 5
    assert "kill-switch" in found.stdout
    assert ask(tunnel, CLUSTER_DNS[4], NAME) is None, "not redirected, so refused"
    lab.init_wg("up")
    assert ask(tunnel, CLUSTER_DNS[4], NAME) == [ADDRESS]
    assert not tunnel.judge.verdict().leaked


def test_status_shows_what_was_redirected_and_refused(tunnel: Stack) -> None:
    def dns_facts() -> dict[str, object]:
        facts: dict[str, object] = json.loads(tunnel.lab.init_wg("status", "--json").stdout)["dns"]
        return facts

    before = dns_facts()
    ask(tunnel, PUBLIC_DNS[4], NAME)
    with contextlib.suppress(OSError), tunnel.lab.pod.inside():
        socket.create_connection((CLUSTER_DNS[4], 853), timeout=2)
    after = dns_facts()
    assert after["mode"] == "tunnel"
    assert after["resolvers"] == [TUNNEL_DNS[4], TUNNEL_DNS[6]]
    assert int(str(after["redirected_queries"])) == int(str(before["redirected_queries"])) + 1
    assert int(str(after["refused_queries"])) > int(str(before["refused_queries"]))


def test_without_dns_in_the_file_queries_go_through_the_tunnel_to_whom_they_name() -> None:
    with Lab(rp_filter=1) as lab, Judge(lab) as judge:
        lab.zone({NAME: [ADDRESS]})
        lab.config(lab.config_path, dns=False)
        lab.init_wg("lockdown")
        judge.mark()
        lab.init_wg("up")
        here = Stack(lab, judge, "tunnel")
        before = counts(here)
        assert ask(here, PUBLIC_DNS[4], NAME) == [ADDRESS]
        assert ask(here, CLUSTER_DNS[4], NAME) is None
        assert seen(here, before) == {"web": {NAME}}
        assert lab.queries(lab.web)[-1].split()[1] == lab.provider.addresses[4], "it came out at the provider's"
        assert not judge.verdict().leaked


# --- split -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_the_cluster_is_asked_for_its_own_names_only(split: Stack, tcp: bool) -> None:
    time.sleep(1.1)  # the forwarder has forgotten what the test before asked
    before = counts(split)
    for where, family in EVERYWHERE:
        if where is not TUNNEL_DNS:
            assert ask(split, where[family], NAME, tcp=tcp) == [ADDRESS], where[family]
            assert ask(split, where[family], SERVICE, tcp=tcp) == [CLUSTER_IP], where[family]
    told = seen(split, before)
    assert told == {"service": {SERVICE}, "provider": {NAME}}
    assert not split.judge.verdict().leaked


def test_guesses_and_reverse_names(split: Stack) -> None:
    """What `ndots` makes of an external name is the cluster's alone; the bare name never is."""
    before = counts(split)
    ask(split, CLUSTER_DNS[4], GUESS)
    ask(split, CLUSTER_DNS[4], "80.0.43.10.in-addr.arpa", "PTR")
    ask(split, CLUSTER_DNS[4], "80.100.51.198.in-addr.arpa", "PTR")
    told = seen(split, before)
    assert told["service"] == {GUESS, "80.0.43.10.in-addr.arpa"}
    assert told["provider"] == {"80.100.51.198.in-addr.arpa"}
    assert not split.judge.verdict().leaked


def test_long_answers_come_whole_through_the_forwarder(split: Stack) -> None:
    assert ask(split, CLUSTER_DNS[4], BIG) == []
    assert len(ask(split, CLUSTER_DNS[4], BIG, tcp=True) or []) == 119


def test_a_thousand_queries_at_once(split: Stack) -> None:
    """Different names, so that none is answered from the forwarder's memory."""
    split.lab.zone({f"n{number}.example.com": [ADDRESS] for number in range(1000)})

    def one(number: int) -> bool:
        return ask(split, CLUSTER_DNS[4], f"n{number}.example.com", timeout=10) == [ADDRESS]

    with ThreadPoolExecutor(32) as pool:
        assert all(pool.map(one, range(1000)))
    assert not split.judge.verdict().leaked


def test_names_fail_without_the_forwarder_and_come_back_with_it() -> None:
    with stack("split") as here:
        (forwarding,) = forwarders(here)
        here.lab.pod.run(["kill", "-KILL", forwarding])
        wait_until(lambda: ask(here, "127.0.0.1", NAME, port=10053, timeout=0.2) is None, "the forwarder is gone")
        before = counts(here)
        for where, family in EVERYWHERE:
            if where is not TUNNEL_DNS:
                assert ask(here, where[family], NAME, timeout=0.5) is None
        assert seen(here, before) == {}
        with forwarder(here):
            assert ask(here, CLUSTER_DNS[4], NAME) == [ADDRESS]
        assert not here.judge.verdict().leaked


def test_the_watchdog_keeps_the_forwarder() -> None:
    """Started with the setup, started again when it is killed, gone with the watchdog; and never a leak."""
    with Lab(rp_filter=1) as lab, Judge(lab, for_lab(lab, lookups=[SERVICE])) as judge:
        here = Stack(lab, judge, "split")
        lab.zone({NAME: [ADDRESS], SERVICE: [CLUSTER_IP]})
        lab.init_wg("lockdown")
        judge.mark()
        watchdog = lab.pod.popen([sys.executable, "-m", "watchdog"], env=environment(here))
        try:
            resolves = "cluster names resolve"
            wait_until(lambda: ask(here, CLUSTER_DNS[4], SERVICE, timeout=0.5) == [CLUSTER_IP], resolves)
            assert ask(here, CLUSTER_DNS[4], NAME) == [ADDRESS]
            (forwarding,) = forwarders(here)
            lab.pod.run(["kill", "-KILL", forwarding])
            wait_until(lambda: forwarders(here) not in ([], [forwarding]), "another forwarder runs")
            wait_until(lambda: ask(here, CLUSTER_DNS[4], SERVICE, timeout=0.5) == [CLUSTER_IP], resolves)
        finally:
            watchdog.terminate()
            watchdog.wait()
        assert forwarders(here) == []
        assert not judge.verdict().leaked


def forwarders(here: Stack) -> list[str]:
    """The process numbers of the pod's own."""
    return [pid for pid in here.lab.pod.run(["pidof", "dnsmasq"], check=False).stdout.split() if in_pod(here, pid)]


def in_pod(here: Stack, pid: str) -> bool:
    """Is this process in the pod's network?"""
    pod = here.lab.pod.run(["readlink", "/proc/self/ns/net"]).stdout
    return here.lab.pod.run(["readlink", f"/proc/{pid}/ns/net"], check=False).stdout == pod


@contextlib.contextmanager
def docker_resolver(here: Stack) -> Iterator[Callable[[], int]]:
    """Docker's embedded resolver as the pod sees it: 127.0.0.11, sent by Docker's own NAT rule to a high port."""
    hook = "type nat hook output priority -100;"
    rule = f"table ip docker {{ chain output {{ {hook} ip daddr {DOCKER} udp dport 53 dnat to {DOCKER}:40053; }}; }}"
    with here.lab.pod.socket(socket.AF_INET, socket.SOCK_DGRAM) as resolver:
        resolver.bind((DOCKER, 40053))
        resolver.setblocking(False)
        here.lab.pod.run(["nft", rule])
        questions = 0

        def answered() -> int:
            nonlocal questions
            with contextlib.suppress(BlockingIOError):
                while True:
                    data, client = resolver.recvfrom(4096)
                    questions += 1
                    answer = dns.message.make_response(dns.message.from_wire(data))
                    resolver.sendto(answer.to_wire(), client)
            return questions

        try:
            yield answered
        finally:
            here.lab.pod.run(["nft", "delete", "table", "ip", "docker"])


# --- cluster ---------------------------------------------------------------------------------------------------------


def test_in_cluster_mode_the_cluster_sees_every_name(cluster: Stack) -> None:
    """The control: what the other modes hide is seen here, by the cluster's resolver and by the judge."""
    before = counts(cluster)
    assert ask(cluster, CLUSTER_DNS[4], NAME) == [ADDRESS]
    assert seen(cluster, before) == {"service": {NAME}}
    assert {leak.kind for leak in cluster.judge.verdict().leaks} == {"dns-cluster"}


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["tunnel", "split"])
def test_no_query_leaks_while_things_break(mode: str) -> None:
    with stack(mode) as here, Probes(here.lab, DNS_KINDS, loose=False) as probes:
        for fault in FAULTS:
            if fault.possible(here.lab):
                hold(here, fault, probes)


def hold(here: Stack, fault: Fault, probes: Probes) -> None:
    fault.break_it(here.lab)
    probes.round(2)
    verdict = here.judge.verdict()
    assert not [leak for leak in verdict.leaks if leak.kind not in fault.spares], f"{fault}: {verdict}"
    fault.undo(here.lab)
    here.lab.init_wg("up", env={"DNS_MODE": here.mode})
    wait_until(lambda: ask(here, CLUSTER_DNS[4], NAME) == [ADDRESS], f"names resolve again after {fault}")


STEAL = """
import socket, sys
query = bytes.fromhex(sys.argv[1])
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
    asker.settimeout(1)
    if len(sys.argv) > 3:
        asker.bind((sys.argv[3], 0))
    try:
        asker.sendto(query, (sys.argv[2], 53))
        asker.recv(2000)
    except OSError:
        pass
"""


def steal(lab: Lab, *where: str) -> None:
    """Ask for a name as an application: another user, without capabilities."""
    query = dns.message.make_query("stolen.evil.example", "A").to_wire().hex()
    nobody = ["setpriv", "--reuid=65532", "--regid=65532", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]
    lab.pod.run([*nobody, sys.executable, "-c", STEAL, query, *where])


def test_only_the_forwarder_asks_the_clusters_resolver(split: Stack) -> None:
    """By the alias that it knows, any other process reaches the forwarder, and so the tunnel's resolver."""
    before = counts(split)
    steal(split.lab, "192.0.2.53")
    assert ask(split, CLUSTER_DNS[4], SERVICE) == [CLUSTER_IP]
    assert seen(split, before) == {"provider": {"stolen.evil.example"}, "service": {SERVICE}}


def test_only_the_forwarder_asks_the_engines_resolver() -> None:
    with Lab() as lab:
        (lab.folder / "resolv.conf").write_text(f"nameserver {DOCKER}\noptions ndots:0\n")
        engine = lab.serve(lab.pod, f"dns:[{DOCKER}]:53")
        assert engine.stdout
        assert engine.stdout.readline() == b"ready\n"
        here = Stack(lab, None, "split")  # type: ignore[arg-type]  # nothing is judged
        lab.init_wg("up", env=environment(here))
        with forwarder(here):
            steal(lab, DOCKER, "127.0.0.54")
            ask(here, DOCKER, "neighbour")
            asked_here = asked(here)
        assert asked_here["pod"] == ["neighbour"]
        assert asked_here["provider"].count("stolen.evil.example") == 1
