"""init_wg.reach: what lies inside the tunnel, whom a packet provokes, and what is said of the rest. Pure."""

from __future__ import annotations

from ipaddress import IPv4Network, collapse_addresses, ip_address, ip_interface, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from init_wg.config.tunnel import Peer, Tunnel
from init_wg.design import reach
from init_wg.model import networks
from tests.unit import build

V4_ONLY = (ip_interface("10.64.0.2/32"),)
WITHOUT_PRIVATE = (
    "0.0.0.0/5", "8.0.0.0/7", "11.0.0.0/8", "12.0.0.0/6", "16.0.0.0/4", "32.0.0.0/3", "64.0.0.0/2", "128.0.0.0/3",
    "160.0.0.0/5", "168.0.0.0/6", "172.0.0.0/12", "172.32.0.0/11", "172.64.0.0/10", "172.128.0.0/9", "173.0.0.0/8",
    "174.0.0.0/7", "176.0.0.0/4", "192.0.0.0/9", "192.128.0.0/11", "192.160.0.0/13", "192.169.0.0/16",
    "192.170.0.0/15", "192.172.0.0/14", "192.176.0.0/12", "192.192.0.0/10", "193.0.0.0/8", "194.0.0.0/7",
    "196.0.0.0/6", "200.0.0.0/5", "208.0.0.0/4",
)  # fmt: skip


def tunnel(*allowed: str, **changes: Any) -> Tunnel:
    """The ordinary file with these AllowedIPs."""
    return build.tunnel(peers=(peer(*allowed),), **changes)


def peer(*allowed: str) -> Peer:
    return build.tunnel().peers[0]._replace(allowed_ips=tuple(map(ip_network, allowed)))


@pytest.mark.parametrize(
    ("allowed", "addresses", "inside"),
    [
        pytest.param(("0.0.0.0/0", "::/0"), None, ("0.0.0.0/0", "::/0"), id="everything"),
        pytest.param(("128.0.0.0/1", "0.0.0.0/1"), None, ("0.0.0.0/0",), id="in halves"),
        pytest.param(("::/0", "10.0.0.0/8"), V4_ONLY, ("10.0.0.0/8",), id="no address of the family"),
        pytest.param(("10.0.0.0/9", "10.128.0.0/9", "192.0.2.7/32"), None, ("10.0.0.0/8", "192.0.2.7"), id="some"),
    ],
)
def test_inside(allowed: tuple[str, ...], addresses: Any, inside: tuple[str, ...]) -> None:
    changes = {"addresses": addresses} if addresses else {}
    assert networks.spelled(reach.inside(tunnel(*allowed, **changes))) == inside


def test_only_resolvers_inside_are_asked() -> None:
    dns = tuple(map(ip_address, ("192.168.1.1", "10.64.0.1", "fc00:bbbb::1")))
    assert reach.resolvers(tunnel("10.64.0.0/24", dns=dns)) == (ip_address("10.64.0.1"),)
    assert reach.resolvers(tunnel("0.0.0.0/0", "::/0", dns=dns)) == dns
    assert reach.resolvers(tunnel("0.0.0.0/0", "::/0", dns=dns, addresses=V4_ONLY)) == dns[:2]


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        pytest.param(
            ("0.0.0.0/0",), ["10.64.0.1", "0.0.0.1", "0.0.0.2", "0.0.0.3", "128.0.0.0"], id="the resolver first"
        ),
        pytest.param(
            ("10.64.1.0/24",), ["10.64.1.1", "10.64.1.2", "10.64.1.3", "10.64.1.128"], id="no resolver of its own"
        ),
        pytest.param(("10.64.0.0/30",), ["10.64.0.1", "10.64.0.1", "10.64.0.3"], id="not the tunnel's own address"),
        pytest.param(("10.64.0.2/32",), [], id="nothing but the tunnel's own address"),
        pytest.param(("192.0.2.8/31",), ["192.0.2.8", "192.0.2.9"], id="two"),
        pytest.param(("fc00:bbbb::/64",), ["fc00:bbbb::1", "fc00:bbbb::3", "fc00:bbbb:0:0:8000::"], id="IPv6"),
    ],
)
def test_targets(allowed: tuple[str, ...], expected: list[str]) -> None:
    here = tunnel(*allowed)
    assert list(reach.targets(here, here.peers[0])) == expected


def test_each_peer_is_provoked_where_its_own_networks_are() -> None:
    here = build.tunnel(peers=(peer("10.64.0.0/24"), peer("10.65.0.0/24"), peer("::/0")), addresses=V4_ONLY)
    assert [next(reach.targets(here, each), None) for each in here.peers] == ["10.64.0.1", "10.65.0.1", None]


def test_of_nested_networks_the_longest_prefix_decides() -> None:
    here = build.tunnel(peers=(peer("10.64.0.0/24"), peer("10.0.0.0/8")), addresses=V4_ONLY)
    assert [next(reach.targets(here, each), None) for each in here.peers] == ["10.64.0.1", "10.0.0.1"]
    here = build.tunnel(peers=(peer("10.64.0.0/10"), peer("10.64.0.0/24")), addresses=V4_ONLY)
    assert [next(reach.targets(here, each), None) for each in here.peers] == ["10.96.0.0", "10.64.0.1"]


@pytest.mark.parametrize(
    ("allowed", "changes", "bypass", "said"),
    [
        pytest.param(("0.0.0.0/0", "::/0"), {}, (), [], id="nothing to say"),
        pytest.param(("0.0.0.0/1", "128.0.0.0/1"), {"addresses": V4_ONLY}, (), [], id="halves"),
        pytest.param(
            WITHOUT_PRIVATE,
            {"addresses": V4_ONLY},
            None,
            ["DNS 10.64.0.1 is in no AllowedIPs", "10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, unless BYPASS_CIDRS"],
            id="check FILE",
        ),
        pytest.param(
            WITHOUT_PRIVATE,
            {"addresses": V4_ONLY, "dns": ()},
            ("10.0.0.0/8", "192.168.0.0/17"),
            ["172.16.0.0/12, 192.168.128.0/17, and BYPASS_CIDRS does not name them"],
            id="what BYPASS_CIDRS names is none of it",
        ),
        pytest.param(WITHOUT_PRIVATE, {"addresses": V4_ONLY, "dns": ()}, ("10.0.0.0/8", "172.16.0.0/12",
                     "192.168.0.0/16"), [], id="all named"),
        pytest.param(WITHOUT_PRIVATE, {"addresses": V4_ONLY, "dns": ()}, ("10.0.0.0/10", "10.64.0.0/31",
                     "10.64.0.3/32", "10.64.0.4/30", "10.64.0.8/29", "10.64.0.16/28", "10.64.0.32/27", "10.64.0.64/26",
                     "10.64.0.128/25", "10.64.1.0/24", "10.64.2.0/23", "10.64.4.0/22", "10.64.8.0/21", "10.64.16.0/20",
                     "10.64.32.0/19", "10.64.64.0/18", "10.64.128.0/17", "10.65.0.0/16", "10.66.0.0/15", "10.68.0.0/14",
                     "10.72.0.0/13", "10.80.0.0/12", "10.96.0.0/11", "10.128.0.0/9", "172.16.0.0/12",
                     "192.168.0.0/16"), [], id="BYPASS_CIDRS=private leaves out the tunnel's own address"),
        pytest.param(("0.0.0.0/0",), {"dns": ()}, ("fc00::/7",), ["leave out 2000::/3: connections"], id="no IPv6"),
        pytest.param(
            ("10.0.0.0/8",),
            {"addresses": V4_ONLY},
            ("172.16.0.0/12", "192.168.0.0/16"),
            ["only 10.0.0.0/8 is inside the tunnel: all else is refused"],
            id="a split tunnel",
        ),
    ],
)  # fmt: skip
def test_notes(allowed: tuple[str, ...], changes: dict[str, Any], bypass: Any, said: list[str]) -> None:
    notes = list(reach.notes(tunnel(*allowed, **changes), bypass))
    assert len(notes) == len(said), notes
    assert all(words in note for words, note in zip(said, notes, strict=True)), notes


narrow = st.builds(
    lambda number, length: IPv4Network((number, length), strict=False), st.integers(0, 1 << 12), st.integers(20, 32)
)


@settings(deadline=None)
@given(st.lists(narrow, max_size=6), st.lists(narrow, max_size=6))
def test_subtract_is_what_ipaddress_makes_of_it(wide: list[IPv4Network], holes: list[IPv4Network]) -> None:
    found = networks.subtract(map(networks.interval, wide), map(networks.interval, holes))
    numbers = {n for _, first, last in found for n in range(first, last + 1)}
    assert found == networks.merge(found)
    assert numbers == {int(a) for n in collapse_addresses(wide) for a in n} - {int(a) for n in holes for a in n}
