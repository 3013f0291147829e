"""`init-wg node` on a machine with a cluster and a host VPN: who reaches whom in each state of the VPN, by either
family, and that nothing leaves beside the VPN for that. Each way to be reached has its control: without the table, or
without a part of it, it is not so."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from init_wg.node.design import ruleset
from tests.lab.lab import FAMILIES, HTTP, Family, Member, wait_until
from tests.lab.machine import (
    AT_HOME,
    CLUSTER,
    CLUSTER_DNS,
    HOST_PORT,
    ISP_DNS,
    LOCAL,
    OF_A_POD,
    OF_THE_INTERNET,
    PUBLIC,
    RELAY,
    RESOLVER,
    TUNNEL,
    UNNAMED,
    MachineLab,
    State,
    mullvad,
)

NAME = "db.default.svc.cluster.local"
STATES: tuple[State, ...] = ("off", "connecting", "connected", "blocked")
ADDRESS = "10.96.0.80"
#: Seconds for an answer that has to come, and for one that must not.
PATIENCE, SOON = 10.0, 0.3

Check = Callable[[float], str | None]
Checks = dict[str, Check]
Answers = dict[str, str | None]


MACHINES: dict[str, dict[str, Any]] = {
    "a bridge": {},
    "a bridge without br_netfilter": {"bridge_filter": False},
    "a bridge, rp_filter 0": {"rp_filter": 0},
    "a bridge, strict rp_filter": {"rp_filter": 1},
    "a link for each pod": {"routed": True},
    "a link for each pod, strict rp_filter": {"routed": True, "rp_filter": 1},
}


@pytest.fixture(scope="module", params=MACHINES)
def each(request: pytest.FixtureRequest) -> Iterator[MachineLab]:
    with MachineLab(**MACHINES[request.param]) as made:
        yield made


@pytest.fixture(scope="module")
def lab() -> Iterator[MachineLab]:
    with MachineLab() as made:
        yield made


@pytest.fixture(scope="module")
def strict() -> Iterator[MachineLab]:
    with MachineLab(rp_filter=1) as made:
        yield made


def discovered(lab: MachineLab) -> None:
    """Neighbours of before would hide that nobody finds them now."""
    for member in lab.members:
        for word in ("-4", "-6"):
            member.run(["ip", word, "neighbour", "flush", "all"])


def within(lab: MachineLab, family: Family) -> Checks:
    """Who reaches whom in the cluster; IPv4's names."""
    a, b = lab.a.addresses[family], lab.b.addresses[family]
    found: Checks = {
        "machine -> CoreDNS": lambda seconds: lab.resolve(lab.node, CLUSTER_DNS[family], NAME, seconds),
        "pod -> pod": lambda seconds: lab.request(lab.a, b, HTTP, timeout=seconds),
        "probe": lambda seconds: lab.request(lab.node, a, HTTP, timeout=seconds),
    }
    if lab.services_of_neighbours:
        found["pod -> CoreDNS"] = lambda seconds: lab.resolve(lab.a, CLUSTER_DNS[family], NAME, seconds)
        found["pod -> Service"] = lambda seconds: lab.request(lab.a, OF_A_POD[family], HTTP, timeout=seconds)
    return found


def works_within(lab: MachineLab, family: Family) -> Answers:
    a = lab.a.addresses[family]
    found: Answers = {"machine -> CoreDNS": ADDRESS, "pod -> pod": a, "probe": lab.asks[family]}
    return found | ({"pod -> CoreDNS": ADDRESS, "pod -> Service": a} if lab.services_of_neighbours else {})


def inbound(lab: MachineLab, family: Family) -> Checks:
    """Whom the asked one sees when somebody from outside asks a port of this machine."""

    def asks(client: Member, address: str, port: int) -> Check:
        return lambda seconds: lab.request(client, address, port, timeout=seconds)

    ways = {"internet": (lab.ext, PUBLIC[family]), "LAN": (lab.lan, AT_HOME[family])}
    ports = {"node port, Cluster": CLUSTER, "node port, Local": LOCAL, "host port": HOST_PORT}
    return {f"{way} -> {name}": asks(*ways[way], port) for way in ways for name, port in ports.items()}


def works_inbound(lab: MachineLab, family: Family) -> Answers:
    clients = {"internet": lab.ext.addresses[family], "LAN": lab.lan.addresses[family]}
    own = ("node port, Local", "host port")
    return {
        **{f"{way} -> node port, Cluster": lab.asks[family] for way in clients},
        **{f"{way} -> {name}": client for way, client in clients.items() for name in own},
    }


def outward(lab: MachineLab, family: Family) -> Checks:
    """With which address the web is reached."""
    web, own = lab.web.addresses[family], lab.node.addresses[family]
    return {
        "machine -> web": lambda seconds: lab.request(lab.node, web, HTTP, timeout=seconds),
        "pod -> web": lambda seconds: lab.request(lab.a, web, HTTP, timeout=seconds),
        "pod -> Service of the internet": lambda s: lab.request(lab.a, OF_THE_INTERNET[family], HTTP, timeout=s),
        "pod -> resolver of the internet": lambda seconds: lab.resolve(lab.a, ISP_DNS[family], NAME, seconds),
        "machine -> web, from a node port": lambda seconds: lab.from_port(family, own, 30500, seconds),
        "machine -> web, from another port": lambda seconds: lab.from_port(family, own, 61500, seconds),
    }


STOPPED_OUTWARD: Answers = dict.fromkeys(
    ("machine -> web", "pod -> web", "pod -> Service of the internet", "pod -> resolver of the internet",
     "machine -> web, from a node port", "machine -> web, from another port")
)  # fmt: skip


def by_the_vpn(family: Family) -> Answers:
    reached = ("machine -> web", "pod -> web", "pod -> Service of the internet")
    return {**STOPPED_OUTWARD, **dict.fromkeys(reached, RELAY[family])}


def hold(checks: Checks, expected: Answers) -> None:
    """Is each answer as expected?"""
    found = {name: checks[name](PATIENCE if answer else SOON) for name, answer in expected.items()}
    assert found == expected


def prepared(lab: MachineLab, state: State, *, lan: bool = True) -> None:
    lab.init_node("down")
    lab.vpn(state, lan=lan)
    if state == "connected":
        seen = lab.web.addresses[4], RELAY[4]
        wait_until(lambda: lab.request(lab.node, seen[0], HTTP) == seen[1], "the VPN works")
    discovered(lab)


@pytest.mark.parametrize("lan", [False, True], ids=["alone", "LAN sharing"])
@pytest.mark.parametrize("state", STATES)
def test_the_cluster_works_and_nothing_leaves_beside_the_vpn(each: MachineLab, state: State, lan: bool) -> None:
    lab = each
    prepared(lab, state, lan=lan)
    assert lab.init_node("up").returncode == 0
    with lab.judged() as seen:
        # The app refuses neighbour discovery from the pods' networks, and no mark of a connection changes that.
        for family in FAMILIES if lan or state == "off" else FAMILIES[:1]:
            hold(within(lab, family), works_within(lab, family))
            hold(inbound(lab, family), works_inbound(lab, family))
            if state == "connected":
                hold(outward(lab, family), by_the_vpn(family))
                assert lab.resolve(lab.a, RESOLVER[family], "example.org", PATIENCE) == "203.0.113.80"
            elif state != "off":
                hold(outward(lab, family), STOPPED_OUTWARD)
            unnamed = lab.request(lab.ext, PUBLIC[family], UNNAMED, timeout=PATIENCE if state == "off" else SOON)
            assert bool(unnamed) == (state == "off")
    assert not seen
    assert "ct mark" not in marked(lab)


def marked(lab: MachineLab) -> str:
    """Connections that have kept one of our marks."""
    ours = [f"mark={mark} " for mark in (ruleset.LICENCE, ruleset.MASQUERADED)]
    lines = lab.node.run(["cat", "/proc/net/nf_conntrack"], check=False).stdout.splitlines()
    return "\n".join(f"ct mark {line}" for line in lines if any(mark in line for mark in ours))


def test_without_the_table_nothing_of_that_works(lab: MachineLab) -> None:
    """The control: the app alone."""
    prepared(lab, "connected", lan=False)
    hold(within(lab, 4), dict.fromkeys(works_within(lab, 4)))
    hold(inbound(lab, 4), dict.fromkeys(works_inbound(lab, 4)))
    lab.vpn("connected", lan=True)
    hold({**within(lab, 4), **inbound(lab, 4)}, {"pod -> CoreDNS": None, "internet -> node port, Local": None})


def test_without_the_vpn_the_judge_sees_what_leaves(lab: MachineLab) -> None:
    prepared(lab, "off")
    with lab.judged() as seen:
        for family in FAMILIES:
            assert all(check(PATIENCE) for check in outward(lab, family).values())
    assert {packet.destination for packet in seen} >= {*lab.web.addresses.values(), *ISP_DNS.values()}


def test_pods_ipv6_needs_the_apps_local_network_sharing_and_check_says_so(lab: MachineLab) -> None:
    prepared(lab, "connected", lan=False)
    lab.init_node("up")
    assert lab.request(lab.a, OF_A_POD[6], HTTP, timeout=SOON) is None
    assert "switch on the app's local network sharing" in lab.init_node("check").stdout
    lab.vpn("connected", lan=True)
    assert "local network sharing" not in lab.init_node("check").stdout


# --- each part is needed --------------------------------------------------------------------------------------------


def without(text: str, *chains: str) -> str:
    """The table without the rules of these chains."""
    kept, skipped = [], False
    for line in text.splitlines():
        if line.startswith("\tchain "):
            skipped = line.split()[1] in chains
        if not skipped or not line.startswith("\t\t") or "policy" in line:
            kept.append(line)
    return "\n".join([*kept, ""])


LOOSE: dict[str, tuple[tuple[str, ...], Answers]] = {
    "the mark that stays on connections": (
        ("forward_after", "input_after", "output_after"),
        {"pod -> pod": "10.244.0.1", "pod -> Service": "10.244.0.1"},
    ),
    "the mark that stays on packets": (("unmark",), {"internet -> node port, Local": "10.244.0.1"}),
    "the mark of replies": (
        ("replies_of_pods", "replies_of_host"),
        {"internet -> node port, Local": None, "internet -> host port": None},
    ),
}


def differs(lab: MachineLab, chains: tuple[str, ...], wrong: Answers) -> None:
    """Without the rules of these chains this is so; with them it is not."""
    prepared(lab, "connected", lan=False)
    lab.init_node("up")
    text = without(lab.init_node("print").stdout, *chains)
    lab.node.run(["nft", "-f", "-"], stdin=ruleset.replacement(text))
    checks = {**within(lab, 4), **inbound(lab, 4)}
    hold(checks, wrong)
    assert lab.init_node("check", check=False).returncode == 5
    lab.init_node("up")
    hold(checks, {**works_within(lab, 4), **works_inbound(lab, 4)})


@pytest.mark.parametrize("part", LOOSE)
def test_without_a_part_it_is_not_so(lab: MachineLab, part: str) -> None:
    differs(lab, *LOOSE[part])


def test_without_the_mark_strict_rp_filter_lets_nobody_in(strict: MachineLab) -> None:
    differs(strict, ("came_in",), {"internet -> node port, Local": None, "internet -> host port": None})


def test_a_mark_of_somebody_else_survives_and_is_told(lab: MachineLab) -> None:
    prepared(lab, "off")
    lab.init_node("up")
    assert "a mark of somebody else" not in lab.init_node("check").stdout
    lab.node.run(["nft", "-f", "-"], stdin="""
        table inet foreign { chain f { type filter hook forward priority -30; tcp dport 80 ct mark set 0x77; }
                             chain g { type filter hook forward priority 30; ct mark 0x77 counter; }
        }""")  # fmt: skip
    try:
        assert lab.request(lab.a, OF_A_POD[4], HTTP, timeout=PATIENCE) == lab.a.addresses[4]
        told = lab.node.run(["nft", "list", "chain", "inet", "foreign", "g"]).stdout
        assert "packets 0 " not in told
        assert re.search(
            r"note: \d+ connections? bears? a mark of somebody else \(0x77\)", lab.init_node("check").stdout
        )
    finally:
        lab.node.run(["nft", "delete", "table", "inet", "foreign"])


def test_reloads_of_the_vpn_cut_nothing(lab: MachineLab) -> None:
    """Its table is replaced 500 times; meanwhile each kind of asker asks again and again, and every answer comes."""
    prepared(lab, "connected", lan=False)
    lab.init_node("up")
    kinds: dict[str, Callable[[], bool]] = {
        "pod -> CoreDNS": lambda: lab.resolve(lab.a, CLUSTER_DNS[4], NAME, PATIENCE) == ADDRESS,
        "internet -> node port": lambda: lab.request(lab.ext, PUBLIC[4], LOCAL, timeout=PATIENCE) is not None,
        "pod -> Service": lambda: lab.request(lab.a, OF_A_POD[4], HTTP, timeout=PATIENCE) is not None,
    }
    over = threading.Event()

    def ask(kind: Callable[[], bool]) -> Counter[bool]:
        answers: Counter[bool] = Counter()
        while not over.is_set():
            answers[kind()] += 1
        return answers

    tables = [mullvad("connected", lan=lan) for lan in (False, True)]
    with lab.judged() as seen, ThreadPoolExecutor() as pool:
        asked = {name: pool.submit(ask, kind) for name, kind in kinds.items()}
        try:
            for number in range(500):
                lab.node.run(["nft", "-f", "-"], stdin=tables[number % 2])
        finally:
            over.set()
        for name, answers in asked.items():
            assert answers.result()[False] == 0, name
            assert answers.result()[True] > 50, name
    assert not seen


def introduced(one: Member, its: str, other: Member, others: str) -> None:
    """The app refuses IPv6's neighbour discovery on the LAN without its sharing, so the two know each other before."""
    for asker, asked, address in ((one, other, others), (other, one, its)):
        link = json.loads(asked.run(["ip", "-json", "link", "show", "dev", "eth0"]).stdout)[0]["address"]
        entry = ["ip", "-6", "neighbour", "replace", address, "lladdr", link, "dev", "eth0", "nud", "permanent"]
        asker.run(entry)


#: The other node's, on the LAN: the app lets no LAN in without its local network sharing.
ASKED: dict[Family, str] = {4: "192.168.1.50", 6: "fd01::50"}


@pytest.mark.parametrize("state", ["connecting", "connected", "blocked"])
def test_other_nodes_are_reached_beside_the_vpn_when_they_are_named(lab: MachineLab, state: State) -> None:
    """Both ways, any port, and nobody else: the control is the same machine without NODE_PEERS."""
    peers = {"NODE_PEERS": ", ".join(ASKED.values())}
    prepared(lab, state, lan=False)

    def between(family: Family) -> Checks:
        return {
            "machine -> node": lambda seconds: lab.request(lab.node, ASKED[family], HTTP, timeout=seconds),
            "node -> machine": lambda seconds: lab.request(lab.lan, AT_HOME[family], UNNAMED, timeout=seconds),
        }

    introduced(lab.node, AT_HOME[6], lab.lan, ASKED[6])
    lab.init_node("up")
    for family in FAMILIES:
        hold(between(family), dict.fromkeys(between(family)))
    lab.init_node("up", env=peers)
    with lab.judged() as seen:
        for family in FAMILIES:
            hold(between(family), {"machine -> node": AT_HOME[family], "node -> machine": ASKED[family]})
        assert lab.request(lab.ext, PUBLIC[4], UNNAMED, timeout=SOON) is None
        hold(within(lab, 4), works_within(lab, 4))
        if state != "connected":
            hold(outward(lab, 4), STOPPED_OUTWARD)
    assert not seen
    assert not [line for line in marked(lab).splitlines() if ASKED[4] in line or ASKED[6] in line]
    assert lab.init_node("check", env=peers).returncode == 0


# --- the command ----------------------------------------------------------------------------------------------------


def test_it_finds_out_what_it_needs(lab: MachineLab) -> None:
    prepared(lab, "connected", lan=False)
    told = json.loads(lab.init_node("status", "--json").stdout)
    assert {
        name: told[name] for name in ("up", "vpn", "mark", "tunnel", "uplinks", "addresses", "pods", "inbound")
    } == {
        "up": False,
        "vpn": "connected",
        "mark": "0x6d6f6c65",
        "tunnel": TUNNEL,
        "uplinks": ["eth0"],
        "addresses": ["192.168.1.100", "2001:db8:1::100", "fd01::100"],
        "pods": ["10.244.0.0/24", "fd44::/64"],
        "inbound": ["tcp/8443", "tcp/30000-32767"],
    }
    lab.init_node("up")
    text = lab.init_node("status").stdout
    assert "table:       in place" in text
    assert "VPN:         connected (wg0-mullvad, mark 0x6d6f6c65)" in text
    assert lab.init_node("print").stdout.startswith("table inet init_wg_node {\n")
    states: tuple[State, ...] = ("blocked", "off")
    for state in states:
        lab.vpn(state)
        assert json.loads(lab.init_node("status", "--json").stdout)["vpn"] == {"off": "absent"}.get(state, state)


def test_up_is_repeatable_and_down_takes_one_table_away(lab: MachineLab) -> None:
    prepared(lab, "connected", lan=False)
    lab.init_node("up")
    assert lab.init_node("up").stderr.count("pods may talk") == 0
    assert "everything is as it should be" in lab.init_node("check").stdout
    lab.node.run(["nft", "add", "rule", "inet", ruleset.NAME, "licence", "accept"])
    told = lab.init_node("check", check=False)
    assert (told.returncode, "wanted '}', found 'accept'" in told.stdout) == (5, True)
    lab.init_node("up")
    before = set(lab.node.run(["nft", "list", "tables"]).stdout.splitlines())
    lab.init_node("down")
    assert before - set(lab.node.run(["nft", "list", "tables"]).stdout.splitlines()) == {f"table inet {ruleset.NAME}"}
    assert lab.init_node("check", check=False).returncode == 5


def test_it_acts_on_no_pod(lab: MachineLab) -> None:
    told = lab.a.run([sys.executable, "-m", "init_wg", "node", "up"], check=False)
    assert told.returncode == 2
    assert "this is not the machine's own network" in told.stderr
    assert lab.a.run(["nft", "list", "tables"]).stdout == ""


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("NODE_PODS", "0.0.0.0/0", "is everything"),
        ("NODE_PODS", "8.8.8.0/24", "is public"),
        ("NODE_PODS", "10.0.0.0/8", "covers the VPN's own 10.64.0.0/10"),
        ("NODE_PODS", "10.64.0.0/24", "has the VPN's resolver 10.64.0.1 in it"),
        ("NODE_PODS", "192.168.1.64/26", "has this machine's own address 192.168.1.100 in it"),
        ("NODE_PODS", "192.168.1.0/28", "has the router 192.168.1.1 in it"),
        ("NODE_INBOUND", "tcp/20-30", "has 22 in it, the machine's shell: name 22 alone"),
        ("NODE_INBOUND", "udp/1-1024", "has 22 in it"),
        ("NODE_INBOUND", "443", "is not understood: it may be ports as tcp/443"),
        ("NODE_VPN", "wg0-mullvad", "is not understood: it may be auto, or a mark"),
    ],
)
def test_what_would_open_too_much_is_refused(lab: MachineLab, name: str, value: str, words: str) -> None:
    prepared(lab, "connected", lan=False)
    told = lab.init_node("up", env={name: value}, check=False)
    assert (told.returncode, told.stderr.count("\n")) == (2, 1), told.stderr
    assert words in told.stderr
    assert ruleset.NAME not in lab.node.run(["nft", "list", "tables"]).stdout


def test_a_vpn_that_accepts_no_marked_forwarding_is_refused(lab: MachineLab) -> None:
    prepared(lab, "connected", lan=False)
    lab.node.run(["nft", "flush", "chain", "inet", "mullvad", "forward"])
    told = lab.init_node("up", check=False)
    assert told.returncode == 2
    assert "Mullvad's app does since 2023.6" in told.stderr
