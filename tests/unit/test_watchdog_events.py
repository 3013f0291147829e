"""Netlink datagrams as bytes, and the fingerprint's pure parts."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from init_wg.model.wireguard import show_endpoint
from watchdog.events import Author, parse
from watchdog.facts import Fingerprint


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def message(kind: int, body: bytes = b"", port: int = 0) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, port) + body + bytes(-len(body) % 4)


def generation(number: int, pid: int, name: bytes) -> bytes:
    parts = attribute(1, struct.pack(">I", number)) + attribute(2, struct.pack(">I", pid))
    return message(10 << 8 | 15, b"\0\0\0\0" + parts + attribute(3, name + b"\0"))


def test_a_generation_says_who() -> None:
    assert parse(generation(7, 4711, b"nft")) == (1, [Author(4711, "nft")])


def test_several_messages_in_one_datagram() -> None:
    data = message(24, b"x" * 5, port=123) + message(16) + message(24, port=2**32 - 4096)
    assert parse(data) == (3, [Author(123, ""), Author(0, "")])


@given(st.binary(max_size=300))
def test_any_bytes_are_borne(data: bytes) -> None:
    count, authors = parse(data)
    assert count >= 0
    assert len(authors) <= count


def test_differences_are_named() -> None:
    one = Fingerprint(1, 2, 3, 4, 5, 6)
    assert one.differences(one) == ()
    assert one.differences(one._replace(rules=0, device=0)) == ("rules", "device")


@pytest.mark.parametrize(
    ("endpoint", "shown"),
    [(None, ""), (("203.0.113.1", 51820), "203.0.113.1:51820"), (("2001:db8::1", 1), "[2001:db8::1]:1")],
)
def test_endpoints_as_people_write_them(endpoint: tuple[str, int] | None, shown: str) -> None:
    assert show_endpoint(endpoint) == shown
