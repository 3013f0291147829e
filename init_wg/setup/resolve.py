"""An endpoint's name -> addresses, asked of the pod's own resolvers from one known socket."""

from __future__ import annotations

import socket
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from init_wg.design.dns import RESOLV_CONF, read
from init_wg.errors import HandshakeError, KernelError
from init_wg.model.state import FWMARK

if TYPE_CHECKING:
    from collections.abc import Iterator

    import dns.message

_TIMEOUT, _TRIES = 2.0, 2  # seconds per query, rounds over all resolvers


def resolvers() -> list[str]:
    """The nameservers of resolv.conf, in its order. Raises KernelError when there are none."""
    found = list(read().nameservers)
    if not found:
        raise KernelError(f"{RESOLV_CONF} names no nameserver: write the endpoint as an address")
    return found


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


def resolve(query: socket.socket, host: str, servers: list[str], where: str) -> list[str]:
    """All addresses, IPv4 first. Raises HandshakeError when the name has none or nobody answers."""
    import dns.message
    import dns.rcode

    found: list[str] = []
    said = "nobody answers"
    for kind in ("A", "AAAA"):
        answer = _ask(query, dns.message.make_query(host, kind, use_edns=0, payload=1232), servers)
        if answer is None:
            continue
        said = dns.rcode.to_text(answer.rcode())
        found += [item.address for rrset in answer.answer for item in rrset if item.rdtype.name == kind]
    if not found:
        raise HandshakeError(
            f"{where}: the endpoint's name {host} does not resolve ({said}; asked {', '.join(servers)}): "
            "is the name right? An address instead of a name needs no resolver"
        )
    return found


def _ask(query: socket.socket, question: dns.message.Message, servers: list[str]) -> dns.message.Message | None:
    """The first answer to this very question from a server that was asked; errors of one lead to the next."""
    import dns.exception
    import dns.message
    import dns.rcode

    wide = query.family == socket.AF_INET6
    answer = None
    for server in servers * _TRIES:
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
