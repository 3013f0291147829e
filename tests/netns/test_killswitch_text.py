"""Drift is text inequality: whatever the kill-switch says, any nft must list it back byte for byte.

nft prints one rule in other words from version to version. Each test runs with the system's nft, and with those that
tests/nft.sh has unpacked: `make test-nft`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from ipaddress import ip_network

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from init_wg.design.firewall.policy import Gate, Hole, Opened, Sealed
from init_wg.design.firewall.ruleset import text as ruleset
from init_wg.model import networks
from tests.lab.lab import PROJECT
from tests.unit import build
from tests.unit.test_killswitch import RULESETS

#: Every text arrives as a line of JSON, is loaded by the program's own code, and goes back as nft lists it.
WORKER = """
import json, sys
from init_wg.design.firewall import killswitch
from init_wg.kernel import nft
for line in sys.stdin:
    text = json.loads(line)
    try:
        if "table netdev" not in text:  # a gate once there is kept: see reconcile._compare
            nft.load(killswitch.removal())
        nft.load(killswitch.replacement(text))
        answer = nft.listing()
    except Exception as error:
        answer = str(error)
    print(json.dumps(answer), flush=True)
"""
#: Names that interfaces of pods have, and some that only a person would think of.
LINKS = ("eth0", "net1", "ens5.100", "a-b_c", "x", "veth0123456789a", "eth1", "ib0")


#: The folders in which an nft is, "" for the system's own.
NFT = ("", *map(str, sorted(PROJECT.glob(".cache/nft/*/bin"))))


@pytest.fixture(scope="module", params=NFT, ids=lambda folder: folder.split("/")[-2] if folder else "system")
def listed(request: pytest.FixtureRequest) -> Iterator[Callable[[str], str]]:
    """Load a text in a network namespace of its own, and list it."""
    pairs = "\n".join(f"link add {a} type veth peer name {b}" for a, b in zip(LINKS[::2], LINKS[1::2], strict=True))
    make = 'printf "%s\\n" "$1" | ip -batch - && exec "$2" -c "$3"'
    argv = ["unshare", "--net", "sh", "-c", make, "sh", pairs, sys.executable, WORKER]
    path = {"PATH": f"{request.param}:{os.environ['PATH']}" if request.param else os.environ["PATH"]}
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **path}
    ) as worker:
        requests, answers = worker.stdin, worker.stdout
        assert requests and answers

        def exchange(text: str) -> str:
            requests.write(json.dumps(text) + "\n")
            requests.flush()
            return str(json.loads(answers.readline()))

        yield exchange
        requests.close()


@pytest.mark.parametrize("name", RULESETS)
def test_every_golden_ruleset_is_listed_as_it_was_written(listed: Callable[[str], str], name: str) -> None:
    assert listed(RULESETS[name]) == RULESETS[name]


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(policy=build.opened(links=LINKS), hole=build.holes)
def test_any_opened_kill_switch_is_listed_as_it_was_written(
    listed: Callable[[str], str], policy: Opened, hole: Hole | None
) -> None:
    text = ruleset(build.resolving(policy, hole))
    assert listed(text) == text


@settings(max_examples=30, deadline=None)
@given(
    links=st.lists(st.sampled_from(LINKS), unique=True),
    hole=build.holes,
    routed=st.booleans(),
)
def test_any_lockdown_is_listed_as_it_was_written(
    listed: Callable[[str], str], links: list[str], hole: Hole | None, routed: bool
) -> None:
    gate = Gate(tuple(sorted(links)), routed) if links else None
    text = ruleset(build.resolving(Sealed(gate), hole))
    assert listed(text) == text


@pytest.mark.parametrize("step", [2, 3])
def test_2000_networks_of_each_family(listed: Callable[[str], str], step: int) -> None:
    """Neighbours that touch (step 2 leaves gaps, step 3 others) are merged as nft merges them."""
    wide = [ip_network((0x0A000000 + number * step * 128, 25)) for number in range(2000)]
    wide += [ip_network(((0xFD << 120) + (number * step << 64), 65)) for number in range(2000)]
    text = ruleset(
        Opened(
            tunnel="wg0",
            uplink="eth0",
            gate=Gate(("eth0",), routed=True),
            tunnel_addresses=("10.64.0.2", "fc00:bbbb::2"),
            inside=networks.spelled(map(networks.interval, wide)),
            pod_addresses=("10.244.1.7", "fd00:244:1::7"),
            endpoints=(("192.0.2.1", 51820),),
            bypass=networks.spelled(map(networks.interval, wide)),
            on_link=("10.244.1.0/24",),
            neighbours=("fe80::/10", "ff02::/16"),
            input_ports=(),
            dns=build.NAMES,
        )
    )
    assert listed(text) == text
