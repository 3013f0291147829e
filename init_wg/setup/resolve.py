"""An endpoint's name -> addresses, asked of the pod's own resolvers from one known socket."""

from __future__ import annotations

import socket
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from init_wg.design.dns import ResolvConf, is_address, spelled_out
from init_wg.errors import HandshakeError, KernelError
from init_wg.model.state import FWMARK

if TYPE_CHECKING:
    from collections.abc import Iterator

    import dns.message

_TIMEOUT, _TRIES = 2.0, 2  # seconds per query, rounds over all resolvers
_SILENCE = "nobody answers"
HOSTS = "/etc/hosts"


def from_hosts(host: str) -> list[str]:
    """The name's addresses in /etc/hosts, which comes before any query; IPv4 first. [] where it is not in there."""
    wanted = host.rstrip(".").lower()
    try:
        with open(HOSTS, encoding="utf-8", errors="replace") as file:
            lines = [line.partition("#")[0].lower().split() for line in file]
    except OSError:
        return []
    found = [words[0] for words in lines if wanted in words[1:] and is_address(words[0])]
    return sorted(dict.fromkeys(found), key=lambda address: ":" in address)


def resolvers(pod: ResolvConf) -> list[str]:
    """The nameservers of resolv.conf, in its order. Raises KernelError when there are none."""
    if not pod.nameservers:
        none = f"no nameserver that can be used ({', '.join(pod.left_out)})" if pod.left_out else "no nameserver"
        raise KernelError(f"/etc/resolv.conf names {none}: write the endpoint as an address")
    return list(pod.nameservers)


@contextmanager
def query_socket() -> Iterator[tuple[socket.socket, int]]:
    """A UDP socket for both families, and its port. Its mark takes main's default route, not the tunnel's."""
    try:
        query = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        query.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    except OSError:
        query = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with query:
        query.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, FWMARK)
        query.bind(("", 0))
        yield query, query.getsockname()[1]


def resolve(query: socket.socket, host: str, pod: ResolvConf, where: str) -> list[str]:
    """All addresses, IPv4 first. Raises HandshakeError when the name has none or nobody answers.

    As the system's resolver does it: the names of the search list in turn, until one has an address.
    """
    servers, said, tried = resolvers(pod), "", []
    for name in spelled_out(host, pod):
        found, said = _addresses(query, name, servers)
        tried.append(name)
        if found:
            return found
        if said == _SILENCE:  # there is nobody who could know another name
            break
    names = f" for {', '.join(tried)}" if len(tried) > 1 else ""
    raise HandshakeError(
        f"{where}: the endpoint's name {host} does not resolve ({said}; asked {', '.join(servers)}{names}): "
        "is the name right? An address instead of a name needs no resolver"
    )


def _addresses(query: socket.socket, name: str, servers: list[str]) -> tuple[list[str], str]:
    """The addresses of this very name, and what was said about it."""
    import dns.exception
    import dns.rcode

    found: list[str] = []
    said, tries = _SILENCE, _TRIES
    for kind in ("A", "AAAA"):
        try:
            answer = _whole(query, name, kind, servers * tries)
        except dns.exception.DNSException:
            return [], "no possible name"
        if answer is None:
            if not found:
                break
            continue
        said, tries = dns.rcode.to_text(answer.rcode()) + ", cut off" * _is_cut(answer), 1
        found += _listed(answer, kind)
    return list(dict.fromkeys(found)), said


def _whole(query: socket.socket, name: str, kind: str, servers: list[str]) -> dns.message.Message | None:
    """One type's answer. Plain DNS, as the C libraries ask: there are resolvers that refuse EDNS, or never answer it.
    It is used where an answer was cut off for its size. TCP is not, so the hole is for UDP only."""
    import dns.message

    answer = _ask(query, dns.message.make_query(name, kind, use_edns=-1), servers)
    if answer is None or not _is_cut(answer):
        return answer
    larger = _ask(query, dns.message.make_query(name, kind, use_edns=0, payload=1232), servers[:1])
    return larger if larger and len(_listed(larger, kind)) > len(_listed(answer, kind)) else answer


def _listed(answer: dns.message.Message, kind: str) -> list[str]:
    """The addresses in it, whatever aliases lead there."""
    return [item.address for rrset in answer.answer for item in rrset if item.rdtype.name == kind]


def _is_cut(answer: dns.message.Message) -> bool:
    import dns.flags

    return bool(answer.flags & dns.flags.TC)


def _ask(query: socket.socket, question: dns.message.Message, servers: list[str]) -> dns.message.Message | None:
    """The first answer to this very question from a server that was asked; errors of one lead to the next."""
    import dns.exception
    import dns.message
    import dns.rcode

    wide = query.family == socket.AF_INET6
    answer = None
    for server in servers:
        target = f"::ffff:{server}" if wide and ":" not in server else server
        deadline = time.monotonic() + _TIMEOUT
        try:
            query.sendto(question.to_wire(), (target, 53))
            while (left := deadline - time.monotonic()) > 0:
                query.settimeout(left)
                data, source = query.recvfrom(4096)
                if source[0] != target:
                    continue
                answer = dns.message.from_wire(data, ignore_trailing=True)
                if not question.is_response(answer):
                    continue
                if answer.rcode() in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
                    return answer
                break
        except (OSError, dns.exception.DNSException):
            continue
    return answer
