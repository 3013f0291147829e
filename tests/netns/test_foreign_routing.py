"""Whatever `ip` can put in our way, we see as it is and can take away again, and nothing else goes with it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

#: Adds what a line says, deletes what is new since before, and answers: how much was new, how much is left of it.
WORKER = """
import json, os, sys
from init_wg.kernel import netlink, rtnetlink_write, rtnetlink_read
from init_wg.model.state import Rule
for line in sys.stdin:
    with netlink.Socket() as kernel:
        def now():
            seen = rtnetlink_read.snapshot(kernel)
            return {*seen.rules, *seen.routes}
        before = now()
        os.system("ip " + json.loads(line))
        added = now() - before
        problems = []
        for thing in added:
            write = rtnetlink_write.write_rule if isinstance(thing, Rule) else rtnetlink_write.write_route
            try:
                write(kernel, thing, add=False)
            except Exception as error:
                problems.append(f"{thing}: {error!r}")
        after = now()
        print(json.dumps([len(added), len(after - before), len(before - after), problems]), flush=True)
"""
SETUP = """
set -e
ip link set lo up
ip link add eth0 type veth peer name eth1
ip link set eth0 addrgenmode none up
ip link set eth1 addrgenmode none up
ip addr add 10.9.0.1/24 dev eth0
ip addr add fd09::1/64 dev eth0 nodad
ip nexthop add id 1 via 10.9.0.2 dev eth0
ip nexthop add id 2 via fd09::2 dev eth0
ip rule add pref 300 not fwmark 51820 lookup 51820
ip -6 rule add pref 300 not fwmark 51820 lookup 51820
ip route add table 51820 unreachable default metric 4278198272
ip -6 route add table 51820 unreachable default metric 4278198272
exec "$@"
"""
RULES = (
    "lookup main", "not lookup main", "unreachable", "prohibit", "blackhole", "nop", "goto 32766",
    "fwmark 1/0xff lookup main", "fwmark 0/0x1 lookup main", "tos 0x10 lookup main",
    "iif lo lookup main", "oif lo lookup main", "uidrange 0-100 lookup main", "ipproto udp dport 53 lookup main",
    "lookup main suppress_ifgroup 3", "lookup main tun_id 7",
)  # fmt: skip
RULES_4 = ("from 10.0.0.0/8 lookup main", "to 10.0.0.0/8 lookup main", "to 10.1.2.3 fwmark 7/0xf iif lo lookup 99")
RULES_6 = ("from fd00::/8 lookup main", "from fd00::1 to fd00::2 lookup main")
ROUTES = ("throw default", "blackhole default", "prohibit default", "local default dev lo", "default dev eth0")
ROUTES_4 = (
    "default via 10.9.0.2 tos 0x10", "default via 10.9.0.2 mtu 1400", "default via 10.9.0.2 src 10.9.0.1 realm 3",
    "default nexthop via 10.9.0.2 nexthop via 10.9.0.3", "default via inet6 fe80::1 dev eth0", "default nhid 1",
    "default via 192.0.2.1 dev eth0 onlink", "multicast 224.0.0.0/4 dev eth0", "broadcast 10.9.9.9 dev eth0",
)  # fmt: skip
ROUTES_6 = (
    "default from fd09::/64 via fd09::2 dev eth0", "default via fd09::2 dev eth0 expires 1000", "default nhid 2",
    "anycast fd09::5 dev eth0", "multicast ff05::/16 dev eth0",
)  # fmt: skip
COMMANDS = (
    [f"{family} rule add pref {pref} {rule}" for family in ("-4", "-6") for pref in (10, 301) for rule in RULES]
    + [f"-4 rule add pref 10 {rule}" for rule in RULES_4]
    + [f"-6 rule add pref 10 {rule}" for rule in RULES_6]
    + [f"{family} route add table 51820 {route}" for family in ("-4", "-6") for route in ROUTES]
    + [f"-4 route add table {table} {route}" for table in ("main", "51820") for route in ROUTES_4]
    + [f"-6 route add table {table} {route}" for table in ("main", "51820") for route in ROUTES_6]
    # Ours, with one selector more: seen as another, and ours is still there afterwards.
    + [f"-4 rule add pref 300 not fwmark 51820 {more} lookup 51820" for more in ("tos 0x10", "iif lo", "to 10.0.0.0/8")]
)


@pytest.fixture(scope="module")
def undone() -> Iterator[Callable[[str], list[object]]]:
    """Run an `ip` command in a network namespace of its own, and undo it."""
    argv = ["unshare", "--net", "sh", "-c", SETUP, "sh", sys.executable, "-c", WORKER]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        requests, answers = worker.stdin, worker.stdout
        assert requests and answers

        def exchange(command: str) -> list[object]:
            requests.write(json.dumps(command) + "\n")
            requests.flush()
            return list(json.loads(answers.readline()))

        yield exchange
        requests.close()


@pytest.mark.parametrize("command", COMMANDS)
def test_what_somebody_adds_is_seen_and_can_be_deleted(undone: Callable[[str], list[object]], command: str) -> None:
    assert undone(command) == [1, 0, 0, []]
