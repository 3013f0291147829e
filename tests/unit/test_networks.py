"""init_wg.model.networks: sets of networks, spelled as nft spells them."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from init_wg.model import networks
from tests.unit import build


@pytest.mark.parametrize(
    ("given_networks", "expected"),
    [
        ([], ()),
        (["10.0.0.1/32"], ("10.0.0.1",)),
        (["fd00::1/128"], ("fd00::1",)),
        (["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32"], ("10.0.0.0/8",)),
        (["10.0.0.0/25", "10.0.0.128/25"], ("10.0.0.0/24",)),  # they touch, and are one prefix
        (["10.0.1.0/24", "10.0.2.0/24"], ("10.0.1.0-10.0.2.255",)),  # they touch, and are none
        (["10.0.0.0/24", "10.0.2.0/24"], ("10.0.0.0/24", "10.0.2.0/24")),
        (["192.168.0.0/16", "10.0.0.0/8"], ("10.0.0.0/8", "192.168.0.0/16")),  # by number, not by text
        (["fd00::/8", "10.0.0.0/8"], ("10.0.0.0/8", "fd00::/8")),  # IPv4 first
        (["255.255.255.255/32", "::/128"], ("255.255.255.255", "::")),  # the last and the first do not touch
        (["10.0.0.2/31", "10.0.0.4/32"], ("10.0.0.2-10.0.0.4",)),
        (["fd00:0:0:1::/64", "fd00:0:0:2::/64"], ("fd00:0:0:1::-fd00::2:ffff:ffff:ffff:ffff",)),
        (["128.0.0.0/1", "0.0.0.0/1"], ("0.0.0.0/0",)),
        (["::ffff:0a00:0/104"], ("::ffff:10.0.0.0/104",)),  # as inet_ntop(3) shows it
    ],
)
def test_spelling(given_networks: list[str], expected: tuple[str, ...]) -> None:
    assert networks.spelled(map(networks.interval, given_networks)) == expected


@pytest.mark.parametrize(
    ("given_networks", "expected"),
    [
        ([], ()),
        (["10.0.0.1", "fd00::1"], ("10.0.0.1/32", "fd00::1/128")),
        (["10.0.0.0/25", "10.0.0.128/25"], ("10.0.0.0/24",)),
        (["10.0.1.0/24", "10.0.2.0/24", "10.0.3.0"], ("10.0.1.0/24", "10.0.2.0/24", "10.0.3.0/32")),
        (["0.0.0.0/8", "1.0.0.0/8", "2.0.0.0/8"], ("0.0.0.0/7", "2.0.0.0/8")),
        (["255.255.255.254/31", "255.255.255.253"], ("255.255.255.253/32", "255.255.255.254/31")),
        (["::/1", "8000::/1"], ("::/0",)),
    ],
)
def test_prefixes(given_networks: list[str], expected: tuple[str, ...]) -> None:
    assert networks.prefixes(map(networks.interval, given_networks)) == expected


@pytest.mark.parametrize(
    ("network", "local"),
    [
        ("10.0.0.0/8", True), ("10.1.2.3/32", True), ("172.16.0.0/12", True), ("172.32.0.0/16", False),
        ("172.0.0.0/8", False), ("192.168.1.0/24", True), ("192.169.0.0/16", False), ("100.64.0.0/10", True),
        ("100.0.0.0/8", False), ("169.254.1.1/32", True), ("fc00::/7", True), ("fd12::/48", True), ("fe80::/64", True),
        ("2001:db8::/32", False), ("0.0.0.0/0", False), ("::/0", False), ("8.8.8.8/32", False), ("9.0.0.0/7", False),
        ("34.118.224.0/20", False),
    ],
)  # fmt: skip
def test_what_is_nobodys_on_the_internet(network: str, local: bool) -> None:
    assert networks.is_local(ip_network(network, strict=False)) is local


@pytest.mark.parametrize(
    ("network", "address", "expected"),
    [
        ("10.0.0.0/8", "10.64.0.1", True),
        ("10.0.0.0/16", "10.64.0.1", False),
        ("::/0", "10.64.0.1", False),
        ("0.0.0.0/0", "fd00::1", False),
        ("fd00::/8", "fd00::1", True),
    ],
)
def test_covers(network: str, address: str, expected: bool) -> None:
    assert networks.covers(ip_network(network), ip_address(address)) is expected


#: A few letters that networks are made of, and what they may be confused with.
scribbles = st.text("0123456789abf.:/%- +_٣\0", max_size=20)


@st.composite
def written(draw: st.DrawFn) -> str:
    """A network as people write it: with host bits, a netmask instead of a length, in capitals, or with a mistake."""
    network = draw(build.network())
    host = network[draw(st.integers(0, network.num_addresses - 1))]
    form = draw(
        st.sampled_from(("{0}/{1}", "{0}", "{2}/{1}", "{0}/0{1}", "{0}/{3}", "{0}/{4}", "{0}/", "{0}//{1}", "{0}/ {1}"))
    )
    text = form.format(host, network.prefixlen, host.exploded, network.netmask, network.hostmask)
    return draw(st.sampled_from((text, text.upper(), f"{text}{draw(scribbles)}")))


@settings(max_examples=500, deadline=None)
@given(text=written() | scribbles)
def test_any_text_means_what_ipaddress_takes_it_for(text: str) -> None:
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        with pytest.raises(ValueError):
            networks.interval(text)
    else:
        assert networks.interval(text) == (network.version, int(network[0]), int(network[-1]))
        assert networks.interval(network) == networks.interval(text)


@given(wide=st.lists(build.network(), max_size=6), holes=st.lists(build.ipv4 | build.ipv6, max_size=4))
def test_without_cuts_exactly_the_holes(wide: list[networks.Network], holes: list[networks.Address]) -> None:
    holes = [*holes, *(network.network_address for network in wide[:2])]  # so that some are inside
    left = networks.without(wide, holes)
    assert not any(networks.covers(network, hole) for network in left for hole in holes)
    inside = {hole for hole in holes if any(networks.covers(network, hole) for network in wide)}
    whole, cut = networks.merge(map(networks.interval, wide)), networks.merge(map(networks.interval, left))
    assert sum(last - first + 1 for _, first, last in whole) - len(inside) == sum(
        last - first + 1 for _, first, last in cut
    )


@given(several=st.lists(build.network(), max_size=12))
def test_all_spellings_mean_the_same_set(several: list[networks.Network]) -> None:
    intervals = [networks.interval(network) for network in several]
    merged = networks.merge(intervals)
    assert merged == sorted(merged)
    for (version, _, last), (other_version, first, _) in pairwise(merged):
        assert version != other_version or last + 1 < first  # disjoint, and with a gap
    prefixes = [networks.interval(prefix) for prefix in networks.prefixes(intervals)]
    assert networks.merge(prefixes) == merged
    assert networks.spelled(prefixes) == networks.spelled(intervals)
    assert all(any(n.version == v and f <= int(n[0]) and int(n[-1]) <= last for v, f, last in merged) for n in several)


@given(several=st.lists(build.network(), max_size=12))
def test_order_does_not_matter(several: list[networks.Network]) -> None:
    """Otherwise the kill-switch would differ from run to run."""
    intervals = [networks.interval(network) for network in several]
    assert networks.spelled(intervals) == networks.spelled(list(reversed(intervals)))
