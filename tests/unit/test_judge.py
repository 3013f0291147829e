"""The judge about packets that a lab rarely sees."""

from __future__ import annotations

import struct
from ipaddress import ip_address, ip_network

import pytest

from tests.lab.judge import ETH_IP, ICMP, UDP, Rules, Verdict

POD, PROVIDER, OTHER, PORT = "172.30.7.2", "198.51.100.2", "198.51.100.3", 51820
KEEPALIVE = b"\4\0\0\0" + bytes(28)


def packet(protocol: int, source: str, target: str, body: bytes) -> bytes:
    head = struct.pack("!BxHIBBH", 0x45, 20 + len(body), 0, 64, protocol, 0)
    return head + ip_address(source).packed + ip_address(target).packed + body


def message(source: str, target: str, port: int = PORT, payload: bytes = KEEPALIVE) -> bytes:
    return packet(UDP, source, target, struct.pack("!HHHH", port, 40000, 8 + len(payload), 0) + payload)


def unreachable(about: bytes, target: str = PROVIDER, code: int = 3) -> bytes:
    return packet(ICMP, POD, target, struct.pack("!BBHI", 3, code, 0, 0) + about)


def verdict(frame: bytes, *, allow_returns: bool = True) -> Verdict:
    network = ip_network("172.30.7.0/24")
    rules = Rules(
        endpoints=[(PROVIDER, PORT)], on_link=[network], sources=[network], bypass=[], clients=[], ports={},
        resolvers={}, allow_returns=allow_returns,
    )  # fmt: skip
    found = Verdict()
    rules.weigh(found, 0.0, ETH_IP, frame, counts=True)
    return found


def test_a_new_network_may_return_the_providers_own_message() -> None:
    returned = unreachable(message(PROVIDER, POD))
    assert verdict(returned).allowed == {"return": 1}
    assert verdict(returned, allow_returns=False).leaked == 1


@pytest.mark.parametrize(
    "frame",
    [
        unreachable(message(OTHER, POD), OTHER),
        unreachable(message(PROVIDER, POD), OTHER),
        unreachable(message(PROVIDER, POD, PORT + 1)),
        unreachable(message(PROVIDER, POD, payload=b"hello, this is in clear......")),
        unreachable(message(POD, PROVIDER)),
        unreachable(message(PROVIDER, POD), code=1),
        unreachable(b""),
    ],
)
def test_anything_else_of_that_kind_is_a_leak(frame: bytes) -> None:
    assert verdict(frame).leaked == 1
