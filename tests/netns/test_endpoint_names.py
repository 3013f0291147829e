"""An endpoint by name: the hole in the kill-switch, what fits through it, and what becomes of the answers.

The resolvers are threads of the test that answer when they are told to, so a query can be held while one looks around.
"""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Self

import dns.message
import dns.rcode
import dns.rrset
import pytest

from tests.lab.judge import Judge, for_lab
from tests.lab.lab import AF, AF_BITS, MARK, SEARCH, Family, Lab, Member, wait_until

NAME = "vpn.example"
ENDPOINT = f"{NAME}:51820"
SO_MARK = 36
Answer = Callable[[dns.message.Message], dns.message.Message | None]


class Resolver:
    """A DNS server of a member, on an address of its own. `held` queries wait until release()."""

    def __init__(self, member: Member, address: str, answer: Answer) -> None:
        family: Family = 6 if ":" in address else 4
        nodad = ["nodad"] if family == 6 else []
        member.run(["ip", "address", "replace", f"{address}/{AF_BITS[family]}", "dev", "eth0", *nodad])
        self.address = address
        self.answer = answer
        self.asked: list[tuple[str, str, int]] = []  # name, type, the client's port
        self.free = threading.Event()
        self.free.set()
        self.socket = member.socket(AF[family], socket.SOCK_DGRAM)
        self.socket.bind((address, 53))
        self.socket.settimeout(0.05)
        self.ended = False
        self.thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        while not self.ended:
            try:
                data, client = self.socket.recvfrom(4096)
            except TimeoutError:
                continue
            question = dns.message.from_wire(data)
            (asked,) = question.question
            self.asked.append((asked.name.to_text(omit_final_dot=True), dns.rdatatype.to_text(asked.rdtype), client[1]))
            self.free.wait(30)
            if (answer := self.answer(question)) and not self.ended:
                with contextlib.suppress(OSError):
                    self.socket.sendto(answer.to_wire(), client)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended = True
        self.free.set()
        self.thread.join()
        self.socket.close()


def answers(*addresses: str) -> Answer:
    """These, to whatever is asked."""

    def answer(question: dns.message.Message) -> dns.message.Message:
        response = dns.message.make_response(question)
        (asked,) = question.question
        kind = dns.rdatatype.to_text(asked.rdtype)
        fitting = [address for address in addresses if (":" in address) == (kind == "AAAA")]
        if fitting:
            response.answer.append(dns.rrset.from_text_list(asked.name, 1, "IN", kind, fitting))
        return response

    return answer


def fails(code: dns.rcode.Rcode) -> Answer:
    def answer(question: dns.message.Message) -> dns.message.Message:
        response = dns.message.make_response(question)
        response.set_rcode(code)
        return response

    return answer


def silence(_: dns.message.Message) -> None:
    """No answer at all."""


# --- the lab ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def machines() -> Iterator[tuple[Lab, Judge]]:
    with Lab() as lab:
        endpoints = [lab.provider.endpoint, lab.provider2.endpoint]
        endpoints += [end._replace(address=end_of[6]) for end in endpoints[:1] for end_of in (lab.provider.addresses,)]
        endpoints += [lab.provider.endpoint._replace(address=dead) for dead in lab.far.addresses.values()]
        with Judge(lab, for_lab(lab, endpoints=endpoints, lookups=[NAME])) as judge:
            yield lab, judge


@pytest.fixture
def sealed(machines: tuple[Lab, Judge]) -> tuple[Lab, Judge]:
    """A sealed pod that has never heard of a tunnel; judged from now on."""
    lab, judge = machines
    lab.init_wg("down")
    lab.config(endpoint=ENDPOINT)
    lab.init_wg("lockdown")
    judge.mark()
    return lab, judge


def nameservers(lab: Lab, *addresses: str) -> None:
    """The pod's resolv.conf. Written in place: it is mounted there as a file."""
    (lab.folder / "resolv.conf").write_text("".join(f"nameserver {address}\n" for address in addresses))


def ruleset(lab: Lab) -> str:
    return lab.pod.run(["nft", "--stateless", "list", "ruleset"]).stdout


def holes(lab: Lab) -> set[int]:
    """The source ports that may ask."""
    text = ruleset(lab)
    return {int(port) for port in re.findall(r"udp sport (\d+) ct original proto-dst 53", text)}


def start(lab: Lab) -> subprocess.Popen[bytes]:
    return lab.pod.popen([sys.executable, "-m", "init_wg", "up"], env=lab.pod_env)


def ask(lab: Lab, resolver: str, name: str, mark: int = 0) -> bool:
    """Can another program of the pod send a query there?"""
    family = AF[6 if ":" in resolver else 4]
    with lab.pod.socket(family, socket.SOCK_DGRAM) as other:
        if mark:
            other.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
        try:
            other.sendto(dns.message.make_query(name, "A").to_wire(), (resolver, 53))
        except OSError:
            return False
        return True


def nothing_leaked(judge: Judge, queries: int) -> None:
    verdict = judge.verdict()
    assert not verdict.leaked, str(verdict)
    assert verdict.allowed["endpoint's name"] == queries, str(verdict)


WHERE: dict[str, tuple[str, str]] = {
    "in a bypass network": ("service", "10.43.0.53"),
    "in a bypass network, IPv6": ("service", "fd43::53"),
    "public": ("web", "203.0.113.54"),
    "public, IPv6": ("web", "2001:db8:113::54"),
}


def resolver_in(lab: Lab, where: str, answer: Answer) -> Resolver:
    member, address = WHERE[where]
    nameservers(lab, address)
    return Resolver(getattr(lab, member), address, answer)


# --- the hole --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", WHERE)
def test_the_hole_is_for_one_query_and_for_its_time(sealed: tuple[Lab, Judge], where: str) -> None:
    lab, judge = sealed
    with resolver_in(lab, where, answers(lab.provider.addresses[4])) as resolver:
        assert not holes(lab)
        resolver.free.clear()
        up = start(lab)
        wait_until(lambda: resolver.asked, "the query")
        assert len(holes(lab)) == 1
        # The same resolver at the same time, by others; also with the mark, which root can set.
        for mark in (0, MARK, MARK + 1):
            assert not ask(lab, resolver.address, "secret.example", mark)
        assert not ask(lab, lab.web.addresses[4], "secret.example", MARK)
        assert lab.traffic_source(4, timeout=0.3) is None
        open_for = holes(lab)
        resolver.free.set()
        assert up.wait(60) == 0
        assert not holes(lab)
        assert lab.flows()
        assert {name for name, _, _ in resolver.asked} == {NAME}
        assert {kind for _, kind, _ in resolver.asked} == {"A", "AAAA"}
        assert {port for _, _, port in resolver.asked} == open_for
        nothing_leaked(judge, queries=len(resolver.asked))


def test_the_hole_in_an_opened_killswitch(sealed: tuple[Lab, Judge]) -> None:
    """The peer's name has to be asked again: who comes in is answered meanwhile, and nothing else gets out."""
    lab, judge = sealed
    with resolver_in(lab, "public", answers(lab.provider.addresses[4])) as resolver:
        lab.init_wg("up")
        asked = len(resolver.asked)
        lab.pod.run(["wg", "set", "wg0", "peer", lab.provider.public_key, "remove"])
        resolver.free.clear()
        up = start(lab)
        wait_until(lambda: len(resolver.asked) > asked, "the query")
        assert len(holes(lab)) == 1
        assert not ask(lab, resolver.address, "secret.example", MARK)
        assert lab.inbound(lab.node, 4)
        assert lab.inbound(lab.far, 6)
        resolver.free.set()
        assert up.wait(60) == 0
        assert not holes(lab)
        assert lab.flows()
        nothing_leaked(judge, queries=len(resolver.asked))


def test_killed_while_asking_the_next_one_closes_the_hole(sealed: tuple[Lab, Judge]) -> None:
    lab, judge = sealed
    with resolver_in(lab, "public", answers(lab.provider.addresses[4])) as resolver:
        resolver.free.clear()
        up = start(lab)
        wait_until(lambda: resolver.asked, "the query")
        up.send_signal(signal.SIGKILL)
        up.wait()
        assert not ask(lab, resolver.address, "secret.example", MARK)
        resolver.free.set()
        lab.init_wg("up")
        assert not holes(lab)
        assert lab.flows()
        nothing_leaked(judge, queries=len(resolver.asked))


def test_interrupted_while_asking_it_closes_the_hole_itself(sealed: tuple[Lab, Judge]) -> None:
    lab, judge = sealed
    before = ruleset(lab)
    with resolver_in(lab, "public", silence) as resolver:
        up = start(lab)
        wait_until(lambda: resolver.asked, "the query")
        assert holes(lab)
        up.send_signal(signal.SIGINT)
        assert up.wait(60) == 130
        assert ruleset(lab) == before
        nothing_leaked(judge, queries=len(resolver.asked))


# --- the answers -----------------------------------------------------------------------------------------------------


def endpoint(lab: Lab) -> str:
    return lab.pod.run(["wg", "show", "wg0", "endpoints"]).stdout.split()[-1]


def test_a_name_is_not_asked_again_while_its_session_lives(sealed: tuple[Lab, Judge]) -> None:
    lab, judge = sealed
    with resolver_in(lab, "public", answers(lab.provider.addresses[4])) as resolver:
        lab.init_wg("up")
        asked = len(resolver.asked)
        for words in (("up",), ("check",), ("status",)):
            lab.init_wg(*words)
        assert len(resolver.asked) == asked
        assert lab.flows()
        nothing_leaked(judge, queries=asked)


ADDRESSES: dict[str, tuple[Callable[[Lab], tuple[str, ...]], Callable[[Lab], str]]] = {
    "A only": (lambda lab: (lab.provider.addresses[4],), lambda lab: "203.0.113.51:51820"),
    "AAAA only": (lambda lab: (lab.provider.addresses[6],), lambda lab: "[2001:db8:113::51]:51820"),
    "both, IPv4 first": (lambda lab: tuple(lab.provider.addresses.values()), lambda lab: "203.0.113.51:51820"),
    "a dead A, then a live one": (
        lambda lab: (lab.far.addresses[4], lab.provider.addresses[4]),
        lambda lab: "203.0.113.51:51820",
    ),
    "a dead A, then a live AAAA": (
        lambda lab: (lab.far.addresses[4], lab.provider.addresses[6]),
        lambda lab: "[2001:db8:113::51]:51820",
    ),
}


@pytest.mark.parametrize("case", ADDRESSES)
def test_the_first_address_that_shakes_hands_wins(sealed: tuple[Lab, Judge], case: str) -> None:
    lab, judge = sealed
    addresses, wins = ADDRESSES[case]
    with resolver_in(lab, "public", answers(*addresses(lab))) as resolver:
        lab.init_wg("up", env={"HANDSHAKE_TIMEOUT": "4"})
        assert endpoint(lab) == wins(lab)
        assert lab.flows()
        assert "everything is as it should be" in lab.init_wg("check").stdout
        nothing_leaked(judge, queries=len(resolver.asked))


def test_the_second_resolver_is_asked_when_the_first_fails(sealed: tuple[Lab, Judge]) -> None:
    lab, judge = sealed
    with (
        Resolver(lab.service, "10.43.0.53", fails(dns.rcode.SERVFAIL)) as first,
        Resolver(lab.web, "203.0.113.54", answers(lab.provider.addresses[4])) as second,
    ):
        nameservers(lab, first.address, second.address)
        lab.init_wg("up")
        assert first.asked
        assert second.asked
        assert lab.flows()
        nothing_leaked(judge, queries=len(first.asked) + len(second.asked))


# --- as the system's resolver does it --------------------------------------------------------------------------------


def without_edns(refusal: Answer, *addresses: str) -> Answer:
    """An old router's resolver."""
    plain = answers(*addresses)
    return lambda question: refusal(question) if question.edns >= 0 else plain(question)


@pytest.mark.parametrize("refusal", [fails(dns.rcode.FORMERR), fails(dns.rcode.NOTIMP), silence])
def test_a_resolver_without_edns(sealed: tuple[Lab, Judge], refusal: Answer) -> None:
    lab, judge = sealed
    with resolver_in(lab, "public", without_edns(refusal, lab.provider.addresses[4])) as resolver:
        lab.init_wg("up")
        assert lab.flows()
        nothing_leaked(judge, queries=len(resolver.asked))


def test_the_search_list(sealed: tuple[Lab, Judge]) -> None:
    """A Service by its short name, with a kubelet's resolv.conf."""
    lab, judge = sealed
    known, unknown = answers(lab.provider.addresses[4]), fails(dns.rcode.NXDOMAIN)

    def cluster(question: dns.message.Message) -> dns.message.Message | None:
        return (known if str(question.question[0].name) == f"{NAME}.svc.cluster.local." else unknown)(question)

    with resolver_in(lab, "public", cluster) as resolver:
        more = f"search {' '.join(SEARCH)}\noptions ndots:5 timeout:1\n"
        (lab.folder / "resolv.conf").write_text(f"nameserver {resolver.address}\n{more}")
        lab.init_wg("up")
        assert lab.flows()
        assert {name for name, _, _ in resolver.asked} == {f"{NAME}.{domain}" for domain in SEARCH[:2]}
        lab.init_wg("check")
        nothing_leaked(judge, queries=len(resolver.asked))


def test_the_hosts_file_comes_first(sealed: tuple[Lab, Judge]) -> None:
    """No resolver has to be there, and no hole is opened. All of its addresses are tried."""
    lab, judge = sealed
    hosts = lab.folder / "hosts"
    hosts.write_text(f"127.0.0.1 localhost\n203.0.113.99 {NAME}\n{lab.provider.addresses[4]} {NAME.upper()}\n")
    nameservers(lab)
    lab.pod.run(["mount", "--bind", hosts, "/etc/hosts"])
    try:
        lab.init_wg("up", env={"HANDSHAKE_TIMEOUT": "4"})
        assert lab.flows()
        assert endpoint(lab) == "203.0.113.51:51820"
        lab.init_wg("check")
        nothing_leaked(judge, queries=0)
    finally:
        lab.pod.run(["umount", "/etc/hosts"])


# --- no answer -------------------------------------------------------------------------------------------------------

NO_ANSWER: dict[str, tuple[Answer, str]] = {
    "NXDOMAIN": (fails(dns.rcode.NXDOMAIN), "NXDOMAIN"),
    "no address": (answers(), "NOERROR"),
    "SERVFAIL": (fails(dns.rcode.SERVFAIL), "SERVFAIL"),
    "silence": (silence, "nobody answers"),
}


@pytest.mark.parametrize("case", NO_ANSWER)
def test_a_name_that_does_not_resolve(sealed: tuple[Lab, Judge], case: str) -> None:
    """Exit status 4, in bounded time, one line; sealed as before, and the hole closed."""
    lab, judge = sealed
    answer, says = NO_ANSWER[case]
    before = ruleset(lab)
    with resolver_in(lab, "public", answer) as resolver:
        started = time.monotonic()
        ended = lab.init_wg("up", check=False)
        took = time.monotonic() - started
    assert ended.returncode == 4, ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert re.search(rf"error: .*/wg0\.conf: the endpoint's name {NAME} does not resolve \({says}; asked ", last), last
    assert sum("error" in line for line in ended.stderr.splitlines()) == 1
    assert took < 20
    assert resolver.asked
    assert ruleset(lab) == before
    assert lab.traffic_source(4, timeout=0.3) is None
    nothing_leaked(judge, queries=len(resolver.asked))


def test_a_resolver_with_a_zone_is_told(sealed: tuple[Lab, Judge]) -> None:
    """As a router announces itself; no rule can name it, so it is not asked."""
    lab, judge = sealed
    nameservers(lab, "fe80::1%eth0")
    ended = lab.init_wg("up", check=False)
    assert ended.returncode == 3
    assert "names no nameserver that can be used (fe80::1%eth0): write" in ended.stderr.splitlines()[-1]
    nothing_leaked(judge, queries=0)


def test_no_resolver_at_all(sealed: tuple[Lab, Judge]) -> None:
    lab, judge = sealed
    nameservers(lab)
    ended = lab.init_wg("up", check=False)
    assert ended.returncode == 3
    assert "names no nameserver: write the endpoint as an address" in ended.stderr.splitlines()[-1]
    nothing_leaked(judge, queries=0)
