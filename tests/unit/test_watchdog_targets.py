"""watchdog.targets: only what the peer's AllowedIPs cover is asked. Pure."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from watchdog import targets

SPLIT = ["10.64.0.1", "10.64.0.2", "10.64.0.3", "10.64.0.128"]


@pytest.mark.parametrize(
    ("resolvers", "networks", "asked"),
    [
        pytest.param(("10.64.0.1",), ("0.0.0.0/0",), [["10.64.0.1"], ["192.0.2.1"]], id="everything"),
        pytest.param((), ("0.0.0.0/1", "128.0.0.0/1", "::/0"), [["192.0.2.1"], ["2001:db8::1"]], id="halves"),
        pytest.param((), ("0.0.0.0/1",), [["0.0.0.1", "0.0.0.2", "0.0.0.3", "64.0.0.0"]], id="one half"),
        pytest.param(("10.65.0.1",), ("10.64.0.0/24",), [SPLIT], id="split"),
        pytest.param(("10.64.0.1",), ("10.64.0.0/24",), [["10.64.0.1"], SPLIT], id="a resolver in it"),
        pytest.param((), ("192.0.2.7/32", "192.0.2.8/31"), [["192.0.2.8", "192.0.2.9", "192.0.2.7"]], id="few hosts"),
        pytest.param((), ("fd00::/64",), [["fd00::1", "fd00::2", "fd00::3", "fd00::8000:0:0:0"]], id="IPv6"),
        pytest.param(("1.1.1.1", "1.0.0.1", "9.9.9.9"), ("0.0.0.0/1",),
                     [["1.1.1.1"], ["1.0.0.1"], ["0.0.0.1", "0.0.0.2", "0.0.0.3", "64.0.0.0"]], id="two resolvers"),
        pytest.param(("10.64.0.1",), (), [], id="nothing"),
    ],
)  # fmt: skip
def test_choose(resolvers: tuple[str, ...], networks: tuple[str, ...], asked: list[list[str]]) -> None:
    found = targets.choose(resolvers, networks)
    assert [[target.address for target in question] for question in found] == asked


def test_only_what_nobody_owns_travels_as_an_application_does() -> None:
    """A host of a split tunnel may lie in a network of the pod's own, where an ordinary packet would end up."""
    found = targets.choose(("10.64.0.1",), ("10.64.0.0/24", "::/0"))
    assert {target for question in found for target in question if target.ordinary} == {
        targets.Target("2001:db8::1", 33434, 1, ordinary=True)
    }


def test_of_nested_networks_the_longest_prefix_decides() -> None:
    def asked(mine: str, others: str) -> list[str]:
        return [question[0].address for question in targets.choose(("10.64.0.1",), (mine,), (others,))]

    assert asked("10.64.0.0/10", "10.64.0.0/24") == ["10.96.0.0"]
    assert asked("10.64.0.0/24", "10.64.0.0/10") == ["10.64.0.1", "10.64.0.1"]
    assert asked("0.0.0.0/0", "192.0.2.0/24") == ["10.64.0.1", "0.0.0.1"]


networks = st.sets(
    st.builds(
        lambda number, length: str(ip_network((number, length), strict=False)),
        st.integers(0, 2**32 - 1),
        st.integers(0, 32),
    )
    | st.builds(
        lambda number, length: str(ip_network((number << 64, length), strict=False)),
        st.integers(2**63, 2**64 - 1),
        st.integers(0, 128),
    ),
    max_size=5,
)
resolvers = st.lists(st.integers(0, 2**32 - 1).map(lambda number: str(ip_address(number))), max_size=3)


@settings(deadline=None)
@given(resolvers, networks)
def test_nothing_else_is_ever_asked(some: list[str], allowed: set[str]) -> None:
    found = targets.choose(some, allowed)
    assert all(
        any(ip_address(target.address) in ip_network(network) for network in allowed)
        for question in found
        for target in question
    )
    assert {ip_network(network).version for network in allowed} == {
        ip_address(question[0].address).version for question in found if question[0].hops
    }
