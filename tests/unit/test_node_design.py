"""init_wg.node.design and its settings: the table, what is found out about a machine, and what is refused.

golden/node/*.nft are whole tables, to be read by people; `WRITE_GOLDEN=1 pytest tests/unit/test_node_design.py` writes
them anew. tests/netns/test_server_text.py gives them to nft.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from init_wg.config import node_settings
from init_wg.config.node_settings import NodeSettings, Ports, Vpn
from init_wg.errors import ConfigError
from init_wg.model.snapshot import Interface, InterfaceAddress, Snapshot
from init_wg.model.state import DEFAULT, INET, INET6, MAIN_TABLE, Address, Route, Rule
from init_wg.node.design import cni, facts, ruleset
from init_wg.node.design.facts import MULLVAD, Machine
from init_wg.node.design.ruleset import Policy

GOLDEN = Path(__file__).parent / "golden/node"
INBOUND = (Ports("tcp", ("443", "30000-32767")), Ports("udp", ("443",)))
BOTH = Policy(
    ("eth0",), ("192.168.1.100", "2001:db8:1::100"), ("10.244.0.0/16", "fd44::/56"), INBOUND, (), *MULLVAD
)  # fmt: skip
TABLES = {
    "both-families": BOTH,
    "v4-only": BOTH._replace(machine=("192.168.1.100",), pods=("10.244.0.0/16", "172.17.0.0/16")),
    "nothing-inbound": BOTH._replace(inbound=()),
    "several-uplinks-and-peers": BOTH._replace(uplinks=("eth0", "wlan0"), peers=("192.168.1.101", "192.168.1.102")),
    "before-the-network": BOTH._replace(uplinks=(), machine=()),
    "nothing-known": Policy((), (), (), (), (), *MULLVAD),
}


@pytest.mark.parametrize("name", TABLES)
def test_golden(name: str) -> None:
    path, text = GOLDEN / f"{name}.nft", ruleset.text(TABLES[name])
    if os.environ.get("WRITE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("name", TABLES)
def test_no_licence_outlives_the_vpns_look(name: str) -> None:
    """Each hook that gives one takes it away, before the VPN's masquerade at 100 and after its chains at 0."""
    chains = {each.split(" {")[0]: each for each in ruleset.text(TABLES[name]).split("chain ")[1:]}
    for hook in ("forward", "input", "output"):
        assert f"hook {hook} priority -20;" in chains[f"{hook}_before"]
        assert (
            f"hook {hook} priority 20; policy accept;\n\t\tct mark 0x00000f41 ct mark set 0x00000000"
            in (chains[f"{hook}_after"])
        )
    givers = {name for name, text in chains.items() if "licence" in text and name != "licence"}
    assert givers <= {"licence_named", "forward_before", "input_before", "output_before"}


def settings(**environment: str) -> NodeSettings:
    return node_settings.read(environment)


def snapshot(*routes: Route, rules: tuple[Rule, ...] = ()) -> Snapshot:
    names = ("lo", "eth0", "cni0", "wg0-mullvad", "wg9")
    return Snapshot(
        tuple(Interface(number, name, "", 1500, up=True) for number, name in enumerate(names, 1)),
        (
            InterfaceAddress(2, Address(INET, "192.168.1.100", 24), 0),
            InterfaceAddress(2, Address(INET6, "fe80::1", 64), 253),
            InterfaceAddress(2, Address(INET6, "2001:db8:1::100", 64), 0),
            InterfaceAddress(3, Address(INET, "10.244.0.1", 24), 0),
        ),
        routes,
        rules,
    )


def to(destination: str, device: str, gateway: str | None = None, table: int = MAIN_TABLE) -> Route:
    return Route(INET6 if ":" in destination else INET, table, destination, device, gateway)


HOME = (to(DEFAULT[INET], "eth0", "192.168.1.1"), to("192.168.1.0/24", "eth0"), to("10.244.0.0/24", "cni0"))


def test_a_machine_is_told_by_its_routes() -> None:
    more = (
        to("fd44::/64", "cni0"),
        to("fe80::/64", "cni0"),
        to("10.64.0.1/32", "wg0-mullvad"),
        to("127.0.0.0/8", "lo"),
    )
    found = facts.discover(snapshot(*HOME, *more), settings(), "")
    assert found == Machine(
        ("eth0",),
        ("192.168.1.100", "2001:db8:1::100"),
        ("192.168.1.1",),
        found.pods,
        MULLVAD,
        "absent",
        (),
    )
    assert list(map(str, found.pods)) == ["10.244.0.0/24", "fd44::/64"]


FLANNEL_ENV = (
    "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.0.1/24\nFLANNEL_IPV6_NETWORK=fd42::/56\nFLANNEL_MTU=1450\n"
)
CONFLIST = """{"cniVersion": "0.4.0", "name": "bridge", "plugins": [
  {"type": "bridge", "bridge": "cni0", "ipam": {"type": "host-local",
    "ranges": [[{"subnet": "10.244.0.0/16", "gateway": "10.244.0.1"}], [{"subnet": "fd44::/56"}]]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}"""
CONF = '{"type": "macvlan", "master": "eth0", "ipam": {"type": "host-local", "subnet": "192.168.1.0/24"}}'


@pytest.mark.parametrize(
    ("flannel", "files", "expected"),
    [
        ("", (), ()),
        (FLANNEL_ENV, (), ("10.42.0.0/16", "fd42::/56")),
        ("FLANNEL_NETWORK=10.42.0.0/16,10.43.0.0/17\n", (), ("10.42.0.0/16", "10.43.0.0/17")),
        ("", (CONFLIST, CONF), ("10.244.0.0/16", "fd44::/56", "192.168.1.0/24")),
        ("", ('{"delegate": {"ipam": {"subnet": "10.5.0.0/16"}}}',), ("10.5.0.0/16",)),
        ("nonsense", ("{", "[]", "null", '{"ipam": {"subnet": "usePodCidr"}}', "[" * 5000), ()),
        ("FLANNEL_NETWORK=10.42.0.1/16", ('{"other": {"subnet": "10.6.0.0/16"}}',), ()),
    ],
)
def test_what_network_plugins_have_written_down(
    flannel: str, files: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    assert tuple(map(str, cni.networks(flannel, files))) == expected


def test_written_networks_count_unless_they_are_the_machines_own_or_public() -> None:
    written = cni.networks(FLANNEL_ENV, (CONF, '{"ipam": {"subnet": "8.8.8.0/24"}}'))
    found = facts.discover(snapshot(*HOME), settings(), "", written)
    assert list(map(str, found.pods)) == ["10.42.0.0/16", "10.244.0.0/24", "fd42::/56"]
    facts.refuse(found, "", ())
    named = facts.discover(snapshot(*HOME), settings(NODE_PODS="10.9.0.0/16"), "", written)
    assert list(map(str, named.pods)) == ["10.9.0.0/16"]


def test_marks_of_others_are_told_in_a_sentence() -> None:
    assert facts.foreign({}) == ()
    (one,) = facts.foreign({0x77: 1})
    assert one.startswith("1 connection bears a mark of somebody else (0x77): ")
    (many,) = facts.foreign(dict.fromkeys(range(1, 9), 100))
    assert many.startswith("800 connections bear a mark of somebody else (0x1, 0x2, 0x3, 0x4, ...): ")


def test_a_vpn_is_told_by_its_rule() -> None:
    rules = (Rule(INET, 32765, 4711, mark=4711, invert=True),)
    table = "table inet mullvad {\n}\n"
    kernel = snapshot(*HOME, to(DEFAULT[INET], "wg9", table=4711), rules=rules)
    assert facts.discover(kernel, settings(), table)[4:6] == (Vpn(4711, "wg9"), "connected")
    assert facts.discover(snapshot(*HOME), settings(), table)[4:6] == (MULLVAD, "blocked")
    named = settings(NODE_VPN="0x77,tun0")
    assert facts.discover(kernel, named, table)[4:6] == (Vpn(0x77, "tun0"), "blocked")


def test_pods_alone_on_their_links_are_warned_of_arp_ignore() -> None:
    found = facts.discover(snapshot(*HOME, to("10.244.0.10/32", "calia")), settings(), "")
    assert found.point_to_point == ("calia",)
    assert any("TALPID_FIREWALL_DONT_SET_ARP_IGNORE=1" in notice for notice in facts.notices(found, "2", ""))
    assert not facts.notices(found, "0", "")


def test_a_machine_without_a_network_is_no_error() -> None:
    found = facts.discover(snapshot(), settings(), "")
    facts.refuse(found, "", ())
    assert [notice.split(",")[0] for notice in facts.notices(found, "0", "")] == [
        "no pod network is known yet: nothing is opened but NODE_INBOUND; NODE_PODS names one",
        "there is no default route yet",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ("tcp/443", (Ports("tcp", ("443",)),)),
        ("udp/443 tcp/8443,tcp/443", (Ports("tcp", ("443", "8443")), Ports("udp", ("443",)))),
        ("tcp/30000-31000,tcp/30500-32767", (Ports("tcp", ("30000-32767",)),)),
        ("tcp/22", (Ports("tcp", ("22",)),)),
        ("TCP/1-21", (Ports("tcp", ("1-21",)),)),
    ],
)
def test_ports(text: str, expected: tuple[Ports, ...]) -> None:
    assert settings(NODE_INBOUND=text).inbound == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("NODE_INBOUND", bad)
            for bad in ("443", "tcp", "tcp/", "tcp/0", "tcp/70000", "sctp/1", "tcp/9-8", "tcp/1-100")
        ),
        *(("NODE_PODS", bad) for bad in ("none", "10.0.0.1/8", "10.244.0.0/33", "pods")),
        *(("NODE_PEERS", bad) for bad in ("node2", "192.168.1.1/24")),
        *(("NODE_VPN", bad) for bad in ("mullvad", "0,wg0", "1,", "x,wg0", "1,a/b", "1,sixteencharacters", "1,a b")),
    ],
)
def test_what_is_refused_names_its_variable(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"environment: {name}"):
        settings(**{name: value})
