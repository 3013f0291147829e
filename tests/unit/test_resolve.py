"""init_wg.setup.resolve: one name, the pod's resolvers, and answers of every kind. Real sockets on the loopback."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from init_wg.design import dns as pod_dns
from init_wg.errors import HandshakeError, KernelError
from init_wg.model import networks
from init_wg.setup import observe, resolve

Answer = Callable[[dns.message.Message], list[bytes]]
NAME = "vpn.example.net"


class Query(socket.socket):
    """Asks the port that a test's resolver really has, instead of 53, which only root may have."""

    ports: dict[str, int]

    def sendto(self, data: Any, address: Any) -> int:  # type: ignore[override]
        return super().sendto(data, (address[0], self.ports[address[0]]))


class Resolver:
    """Answers on an address of the loopback as it is told to."""

    def __init__(self, address: str, answer: Answer) -> None:
        self.asked: list[str] = []
        self._answer = answer
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((address, 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while data := self._socket.recvfrom(4096):
            if not data[0]:
                return
            question = dns.message.from_wire(data[0])
            self.asked.append(question.question[0].to_text())
            for packet in self._answer(question):
                self._socket.sendto(packet, data[1])

    def close(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self._socket.getsockname())
        self._thread.join(5)
        self._socket.close()


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[str]]]:
    """Resolve NAME with resolvers that answer so."""
    monkeypatch.setattr(resolve, "_TIMEOUT", 0.2)
    running: list[Resolver] = []

    def asked(*answers: Answer, search: tuple[str, ...] = (), ndots: int = 1) -> list[str]:
        running.extend(Resolver(f"127.0.0.{number}", answer) for number, answer in enumerate(answers, 1))
        with Query(socket.AF_INET, socket.SOCK_DGRAM) as query:
            query.ports = {f"127.0.0.{n}": resolver.port for n, resolver in enumerate(running, 1)}
            query.bind(("127.0.0.1", 0))
            pod = pod_dns.ResolvConf(tuple(query.ports), search, ndots)
            return resolve.resolve(query, NAME, pod, "/etc/wireguard/wg0.conf")

    yield asked
    for resolver in running:
        resolver.close()


def response(question: dns.message.Message, *records: tuple[str, str, str], code: str = "NOERROR") -> bytes:
    message = dns.message.make_response(question)
    message.set_rcode(dns.rcode.from_text(code))
    for name, kind, value in records:
        message.answer.append(dns.rrset.from_text(f"{name}.", 60, "IN", kind, value))
    return message.to_wire()


def kind_of(question: dns.message.Message) -> str:
    return dns.rdatatype.to_text(question.question[0].rdtype)


def both(question: dns.message.Message) -> list[bytes]:
    """Two IPv4 addresses and one IPv6 address."""
    if kind_of(question) == "A":
        return [response(question, (NAME, "A", "192.0.2.1"), (NAME, "A", "192.0.2.2"))]
    return [response(question, (NAME, "AAAA", "2001:db8::1"))]


def only_ipv4(question: dns.message.Message) -> list[bytes]:
    return both(question) if kind_of(question) == "A" else [response(question)]


def nothing(question: dns.message.Message) -> list[bytes]:
    return []


def failing(code: str) -> Answer:
    return lambda question: [response(question, code=code)]


def by_alias(question: dns.message.Message) -> list[bytes]:
    alias = (NAME, "CNAME", "a.example.net.")
    address = [("a.example.net", "A", "192.0.2.9")] if kind_of(question) == "A" else []
    return [response(question, alias, *address)]


def after_junk(question: dns.message.Message) -> list[bytes]:
    """Garbage that is no DNS, an answer to another query, and one to another name, before the right one."""
    other_id = dns.message.from_wire(question.to_wire())
    other_id.id = question.id ^ 1
    other_name = dns.message.make_query("evil.example.net", kind_of(question), id=question.id)
    forged = [(NAME, "A", "203.0.113.66")] if kind_of(question) == "A" else []
    return [response(other_id, *forged), response(other_name, *forged), *both(question)]


BOTH = ["192.0.2.1", "192.0.2.2", "2001:db8::1"]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ((both,), BOTH),
        ((only_ipv4,), BOTH[:2]),
        ((by_alias,), ["192.0.2.9"]),
        ((after_junk,), BOTH),
        ((lambda question: both(question) * 2,), BOTH),  # twice: the second answer to A is none to AAAA
        ((lambda question: [both(question)[0] + b"trailing"],), BOTH),
        ((failing("SERVFAIL"), both), BOTH),
        ((failing("REFUSED"), both), BOTH),
        ((nothing, both), BOTH),
        ((lambda question: [b"no DNS at all"], both), BOTH),
    ],
)
def test_on_linux_what_a_name_resolves_to(
    ask: Callable[..., list[str]], answers: tuple[Answer, ...], expected: list[str]
) -> None:
    assert ask(*answers) == expected


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ((failing("NXDOMAIN"), both), "NXDOMAIN"),  # an answer: nobody else is asked
        ((lambda question: [response(question)],), "NOERROR"),
        ((failing("SERVFAIL"), failing("SERVFAIL")), "SERVFAIL"),
        ((nothing,), "nobody answers"),
    ],
)
def test_on_linux_a_name_that_does_not_resolve(
    ask: Callable[..., list[str]], answers: tuple[Answer, ...], said: str
) -> None:
    with pytest.raises(HandshakeError) as caught:
        ask(*answers)
    message = str(caught.value)
    assert message.startswith(f"/etc/wireguard/wg0.conf: the endpoint's name {NAME} does not resolve ({said}; ")
    assert "127.0.0.1" in message
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nameserver 10.96.0.10\n", ["10.96.0.10"]),
        ("search a b\nnameserver 10.96.0.10\nnameserver fd00::a\noptions ndots:5\n", ["10.96.0.10", "fd00::a"]),
        ("nameserver 10.96.0.10\nnameserver 10.96.0.10\n", ["10.96.0.10"]),
        ("nameserver\t10.96.0.10   # the cluster's\n", ["10.96.0.10"]),
        ("#nameserver 10.0.0.1\n;nameserver 10.0.0.2\nnameserver nonsense\nnameserver\nnameserver 10.0.0.3",
         ["10.0.0.3"]),
    ],
)  # fmt: skip
def test_the_pods_resolvers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: list[str]) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text(text)
    monkeypatch.setattr(observe, "RESOLV_CONF", str(file))
    assert resolve.resolvers(observe.resolv_conf()) == expected


@pytest.mark.parametrize("text", [None, "", "search a\n", "nameserver localhost\n"])
def test_a_pod_without_resolvers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    file = tmp_path / "resolv.conf"
    if text is not None:
        file.write_text(text)
    monkeypatch.setattr(observe, "RESOLV_CONF", str(file))
    with pytest.raises(KernelError, match="names no nameserver"):
        resolve.resolvers(observe.resolv_conf())


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("192.0.2.1", True),
        ("2001:db8::1", True),
        (NAME, False),
        ("192.0.2", False),
        ("", False),
        ("::g", False),
        ("fe80::1%eth0", False),
    ],
)
def test_a_name_is_no_address(host: str, expected: bool) -> None:
    assert pod_dns.is_address(host) is expected


def test_an_address_has_one_spelling() -> None:
    assert networks.hosts(["2001:DB8:0::0001"]) == ("2001:db8::1",)


# --- as the system's resolver does it ----------------------------------------------------------------------------


def without_edns(refusal: Answer) -> Answer:
    """An old router, or a filter: plain queries only."""
    return lambda question: refusal(question) if question.edns >= 0 else both(question)


def knows(*names: str) -> Answer:
    """These, and no other name."""

    def answer(question: dns.message.Message) -> list[bytes]:
        name = question.question[0].name.to_text(omit_final_dot=True)
        if name not in names:
            return [response(question, code="NXDOMAIN")]
        return [response(question, *([(name, "A", "192.0.2.1")] if kind_of(question) == "A" else []))]

    return answer


def cut_off(question: dns.message.Message) -> list[bytes]:
    """More than 512 bytes for those who take no more."""
    message = dns.message.make_response(question)
    if question.edns < 0:
        message.flags |= dns.flags.TC
        return [message.to_wire()]
    return both(question)


def cut_off_for_good(question: dns.message.Message) -> list[bytes]:
    message = dns.message.make_response(question)
    message.flags |= dns.flags.TC
    return [message.to_wire()]


def chain(question: dns.message.Message) -> list[bytes]:
    """An alias of an alias."""
    aliases = [(NAME, "CNAME", "a.example.net."), ("a.example.net", "CNAME", "b.example.org.")]
    address = [("b.example.org", "A", "192.0.2.9")] if kind_of(question) == "A" else []
    return [response(question, *aliases, *address)]


@pytest.mark.parametrize("refusal", [failing("FORMERR"), failing("NOTIMP"), failing("BADVERS"), nothing])
def test_on_linux_a_resolver_without_edns_is_enough(ask: Callable[..., list[str]], refusal: Answer) -> None:
    assert ask(without_edns(refusal)) == BOTH


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (chain, ["192.0.2.9"]),
        (cut_off, BOTH),
        (lambda question: both(question) if kind_of(question) == "A" else nothing(question), BOTH[:2]),
        (lambda question: nothing(question) if kind_of(question) == "AAAA" else both(question), BOTH[:2]),
    ],
)
def test_on_linux_answers_of_every_kind(ask: Callable[..., list[str]], answer: Answer, expected: list[str]) -> None:
    assert ask(answer) == expected


def test_on_linux_an_answer_that_is_cut_off_and_empty_is_told(ask: Callable[..., list[str]]) -> None:
    with pytest.raises(HandshakeError, match=r"does not resolve \(NOERROR, cut off; "):
        ask(cut_off_for_good)


def test_on_linux_the_search_list_leads_to_the_name(ask: Callable[..., list[str]]) -> None:
    assert ask(knows(f"{NAME}.svc.cluster.local"), search=("svc.cluster.local",), ndots=5) == ["192.0.2.1"]
    with pytest.raises(HandshakeError, match=f"for {NAME}.a, {NAME}.b, {NAME}") as caught:
        ask(knows(), search=("a", "b"), ndots=5)
    assert "NXDOMAIN" in str(caught.value)


def test_on_linux_where_nobody_answers_no_other_name_is_asked(ask: Callable[..., list[str]]) -> None:
    with pytest.raises(HandshakeError, match=r"\(nobody answers; asked 127.0.0.1\)"):
        ask(nothing, search=("a", "b"), ndots=5)


@pytest.mark.parametrize(
    ("host", "search", "ndots", "expected"),
    [
        ("vpn", (), 1, ["vpn"]),
        ("vpn", ("a", "b"), 1, ["vpn.a", "vpn.b", "vpn"]),
        ("vpn.example", ("a",), 1, ["vpn.example", "vpn.example.a"]),
        ("vpn.example", ("a",), 2, ["vpn.example.a", "vpn.example"]),
        ("vpn.example.", ("a",), 5, ["vpn.example"]),
        ("vpn", ("a",), 0, ["vpn", "vpn.a"]),
        ("vpn", ("", "a", "a"), 1, ["vpn.a", "vpn"]),
    ],
)
def test_the_names_that_are_tried(host: str, search: tuple[str, ...], ndots: int, expected: list[str]) -> None:
    assert list(pod_dns.spelled_out(host, pod_dns.ResolvConf((), search, ndots))) == expected


@pytest.mark.parametrize(
    ("options", "ndots"),
    [
        ("", 1),
        ("options ndots:5\n", 5),
        ("options timeout:1\tndots:0 rotate\n", 0),
        ("options ndots:99\n", 15),
        ("options ndots:\noptions ndots:x ndots:2\n", 2),
        ("options ndots:5\noptions edns0\n", 5),
        ("#options ndots:5\n", 1),
    ],
)
def test_how_many_dots_a_name_has_to_have(options: str, ndots: int) -> None:
    assert pod_dns.parse(f"nameserver 10.96.0.10\nsearch a B.\n{options}")[:3] == (
        ("10.96.0.10",),
        ("a", "b"),
        ndots,
    )


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("vpn.example", ["192.0.2.1", "192.0.2.2", "2001:db8::1"]),
        ("VPN.example.", ["192.0.2.1", "192.0.2.2", "2001:db8::1"]),
        ("alias", ["192.0.2.2"]),
        ("commented", []),
        ("192.0.2.1", []),
        ("zoned", []),
    ],
)
def test_the_hosts_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, expected: list[str]) -> None:
    file = tmp_path / "hosts"
    file.write_bytes(
        b"127.0.0.1 localhost\n# 192.0.2.9 vpn.example\n2001:db8::1 vpn.example\n192.0.2.1\tVpn.Example # commented\n"
        b"192.0.2.2  vpn.example alias\n192.0.2.2 vpn.example\nfe80::1%eth0 zoned\n\xe9t\xe9 vpn.example\nnothing\n\n"
    )
    monkeypatch.setattr(resolve, "HOSTS", str(file))
    assert resolve.from_hosts(host) == expected


def test_no_hosts_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "HOSTS", str(tmp_path / "none"))
    assert resolve.from_hosts("vpn.example") == []
