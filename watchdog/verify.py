"""`python -m watchdog.verify URL EXPECTED INTERFACE [RESOLVER ...]`: from where does the world see us?

A child of the watchdog. Its sockets are bound to the tunnel, those that ask the tunnel's resolvers for the name too; so
that nothing it is told can lead it past. It follows no redirection: the answer of another server is no proof.

Exit status 0: through the tunnel, as far as that can be told. 1: not, or nobody answered; the last line on
stderr says which.
"""

from __future__ import annotations

import json
import socket
import sys
from ipaddress import ip_address
from itertools import islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import requests

#: Seconds for the connection, and between two pieces of the answer.
_TIMEOUT = (10, 10)
#: Of the answer, so many pieces of so many bytes are read.
_PIECES, _PIECE = 16, 4096
#: Seconds for one resolver's answer.
_DNS_TIMEOUT = 3


def judge(answer: str, expected: str) -> tuple[bool, str]:
    """The meaning of an answer: whether it is fine, and a sentence. Pure.

    Mullvad's JSON says itself whether the exit is one of theirs. Any other answer has to be, or to contain as
    "ip", an address: the expected one if there is one, else any public one.
    """
    try:
        found = json.loads(answer)
    except ValueError:
        found = answer.strip()
    address = found
    if isinstance(found, dict):
        address = found.get("ip", found.get("origin", found.get("query", "")))
        if not expected and "mullvad_exit_ip" in found:
            if found["mullvad_exit_ip"] is True:
                return True, f"the exit is {address}"
            return False, f"traffic leaves from {address}, which is not one of Mullvad's exits"
    try:
        seen = ip_address(str(address).strip())
    except ValueError:
        return False, "the answer of the exit check has no address in it: is VERIFY_URL right?"
    if expected:
        try:
            right = any(seen == ip_address(each) for each in expected.replace(",", " ").split())
        except ValueError:
            return False, "VERIFY_EXPECT is not an address"
        return right, f"the exit is {seen}" if right else f"traffic leaves from {seen}, expected was {expected}"
    if not seen.is_global:
        return False, f"the exit check saw {seen}, which is not a public address"
    return True, f"the exit is {seen}"


def main(arguments: list[str]) -> int:
    """Ask, judge, tell."""
    import requests

    url, expected, interface, *resolvers = arguments
    if resolvers:
        ask_only(interface, resolvers)
    try:
        options: dict[str, Any] = {"stream": True, "allow_redirects": False, "headers": {"Accept": "application/json"}}
        with session(interface) as asker, asker.get(url, timeout=_TIMEOUT, **options) as reply:
            if 300 <= reply.status_code < 400:
                print("the exit check was redirected: set VERIFY_URL to the address it leads to", file=sys.stderr)
                return 1
            reply.raise_for_status()
            pieces = islice(reply.iter_content(_PIECE), _PIECES)
            answer = b"".join(pieces).decode(errors="replace")
    except (requests.RequestException, OSError) as error:
        print(f"the exit check got no answer: {type(error).__name__}", file=sys.stderr)
        return 1
    fine, sentence = judge(answer, expected)
    print(sentence, file=sys.stderr)
    return 0 if fine else 1


def session(interface: str) -> requests.Session:
    """All its connections leave by this interface, whatever the routes say (Linux 5.7; with NET_RAW before)."""
    import requests
    from requests.adapters import HTTPAdapter

    class Bound(HTTPAdapter):
        def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
            options["socket_options"] = [bound_to(interface)]
            super().init_poolmanager(*arguments, **options)

    made = requests.Session()
    made.trust_env = False  # no proxy from the environment: the question is where the tunnel's traffic leaves
    made.mount("http://", Bound())
    made.mount("https://", Bound())
    return made


def bound_to(interface: str) -> tuple[int, int, bytes]:
    """The socket option."""
    return socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode() + b"\0"


def ask_only(interface: str, resolvers: list[str]) -> None:
    """From now on this process finds addresses by asking these resolvers through the tunnel, whatever DNS_MODE says."""
    by_libc = socket.getaddrinfo

    def found(host: str, port: int, family: int = 0, *rest: Any, **options: Any) -> Any:
        if is_address(host):
            return by_libc(host, port, family, *rest, **options)
        results = [
            each
            for address in look_up(host, interface, resolvers)
            for each in by_libc(address, port, 0, *rest, **options)
        ]
        if not results:
            raise socket.gaierror(socket.EAI_NONAME, "the tunnel's resolvers do not know this name")
        return results

    socket.getaddrinfo = found  # type: ignore[assignment]


def look_up(host: str, interface: str, resolvers: list[str]) -> list[str]:
    """All addresses that the first resolver knows that answers, IPv4 first."""
    import dns.exception
    import dns.message
    import dns.query

    for resolver in resolvers:
        found: list[str] = []
        try:
            for kind in ("A", "AAAA"):
                with socket.socket(socket.AF_INET6 if ":" in resolver else socket.AF_INET, socket.SOCK_DGRAM) as asker:
                    asker.setblocking(False)
                    asker.setsockopt(*bound_to(interface))
                    query = dns.message.make_query(host, kind)
                    answer = dns.query.udp(query, resolver, timeout=_DNS_TIMEOUT, sock=asker)
                found += [item.address for rrset in answer.answer for item in rrset if item.rdtype.name == kind]
        except (OSError, dns.exception.DNSException):
            continue
        return found
    return []


def is_address(host: str) -> bool:
    """An address, rather than a name?"""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
