"""init_wg.design.plan: from what is found to what is wanted, in the order in which nothing can leak.

golden/plan.txt holds every situation with its steps, to be read by people. After an intended change, write it
anew with `WRITE_GOLDEN=1 pytest tests/unit/test_plan.py`, and read the difference.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from init_wg.config.tunnel import Endpoint
from init_wg.design import desired
from init_wg.design.plan import plan
from init_wg.design.steps import (
    AddAddress,
    AddRoute,
    AddRule,
    Configure,
    CreateInterface,
    DeleteAddress,
    DeleteInterface,
    DeleteRoute,
    DeleteRule,
    DeleteRuleset,
    OpenRuleset,
    PutRuleset,
    RepairRuleset,
    SetMtu,
    SetUp,
    Step,
)
from init_wg.model.secret import Secret
from init_wg.model.state import (
    FWMARK,
    INET,
    INET6,
    MAIN_TABLE,
    PREFERENCE_MAIN,
    PREFERENCE_NAMES,
    PREFERENCE_REPLY,
    PREFERENCE_TUNNEL,
    RECORD_TABLE,
    TABLE,
    Address,
    Device,
    Link,
    OtherTunnel,
    Peer,
    Route,
    Rule,
    State,
    TunnelInterface,
)
from tests.unit import build
from tests.unit.build_state import FRESH, ORDINARY, RIGHT, SEALED, UNTOUCHED, World, right, simulate, wanted

GOLDEN = Path(__file__).parent / "golden" / "plan.txt"
_T = TypeVar("_T")


def the_peer(state: State = RIGHT) -> Peer:
    device = right(state).device
    assert device
    (peer,) = device.peers
    return peer


def with_link(state: State = RIGHT, **changes: object) -> State:
    link = Link(**{**right(state).link._asdict(), **changes})
    return state._replace(interfaces=(right(state)._replace(link=link),))


def with_device(state: State = RIGHT, **changes: object) -> State:
    device = right(state).device
    assert device
    return state._replace(interfaces=(right(state)._replace(device=Device(**{**device._asdict(), **changes})),))


def with_addresses(addresses: Iterable[Address], state: State = RIGHT) -> State:
    return state._replace(interfaces=(right(state)._replace(addresses=frozenset(addresses)),))


def with_peer(**changes: object) -> State:
    return with_device(peers=frozenset([Peer(**{**the_peer()._asdict(), **changes})]))


def without_link(state: State = RIGHT) -> State:
    """Deleting a link takes its addresses and its routes along."""
    routes = frozenset(route for route in state.routes if route.device != "wg0")
    return state._replace(interfaces=(), routes=routes)


def with_foreign(link: Link) -> State:
    """A device without WireGuard behind it, or with a dead one."""
    return without_link()._replace(interfaces=(TunnelInterface(link, None, frozenset()),))


def down(state: State = RIGHT) -> State:
    """`ip link set wg0 down`: IPv4 addresses stay, IPv6 ones and all routes go."""
    gone = frozenset(route for route in state.routes if route.device != "wg0")
    addresses = (address for address in right(state).addresses if address.family == INET)
    return with_link(with_addresses(addresses, state._replace(routes=gone)), up=False)


def without_routes(unwanted: Callable[[Route], bool], state: State = RIGHT) -> State:
    return state._replace(routes=frozenset(route for route in state.routes if not unwanted(route)))


def without_rules(preference: int, family: int) -> State:
    kept = (rule for rule in RIGHT.rules if (rule.preference, rule.family) != (preference, family))
    return RIGHT._replace(rules=frozenset(kept))


def with_rules(*rules: Rule) -> State:
    return RIGHT._replace(rules=RIGHT.rules | frozenset(rules))


def with_routes(*routes: Route) -> State:
    return RIGHT._replace(routes=RIGHT.routes | frozenset(routes))


def with_ruleset(change: Callable[[str], str]) -> State:
    changed = change(RIGHT.ruleset)
    assert changed != RIGHT.ruleset
    return RIGHT._replace(ruleset=changed)


NO_IPV6 = ORDINARY._replace(circumstances=build.circumstances(families=(INET,)))
NO_KILL_SWITCH = ORDINARY._replace(settings=build.settings(ENABLE_KILL_SWITCH="false"))
USERSPACE = ORDINARY._replace(circumstances=build.circumstances(kind="tun"))
FOREIGN_PEER = Peer(build.OTHER_SERVER, None, ("198.51.100.9", 51820), frozenset(["10.9.0.0/16"]), 0)
DOCKER = "\t\tip daddr 127.0.0.11 jump refuse_name comment \"Docker's resolver asks from the host's network\"\n"
LOOPBACK = '\t\toif "lo" accept\n'
ACCEPT_ALL = "chain output {\n\t\ttype filter hook output priority filter; policy accept;"

CASES: dict[str, tuple[State, World]] = {
    # words: what is found, and the world in which (RIGHT is what an ordinary world wants)
    "a fresh pod, sealed by the lockdown": (FRESH, ORDINARY),
    "a fresh pod, sealed, with wireguard-go": (FRESH, USERSPACE),
    "everything is as it should be": (RIGHT, ORDINARY),
    # the interface
    "wg0 was deleted": (without_link(), ORDINARY),
    "wg0 is a dummy": (with_foreign(Link("wg0", "dummy", 1500, up=True)), ORDINARY),
    "wg0 is a dead wireguard-go's, and wireguard-go is wanted": (
        with_foreign(Link("wg0", "tun", 1370, up=True)),
        USERSPACE,
    ),
    "wg0 is the kernel's, and wireguard-go is wanted": (RIGHT, USERSPACE),
    "wg0 is down": (down(), ORDINARY),
    "wg0 has another MTU": (with_link(mtu=1420), ORDINARY),
    "wg0 was renamed, and a resolver's route went with it": (
        without_link()._replace(others=frozenset([OtherTunnel("old", "wireguard", frozenset(["10.64.0.2"]))])),
        ORDINARY,
    ),
    "a stranger's tunnel is beside ours": (
        wanted(
            RIGHT._replace(others=frozenset([OtherTunnel("tun0", "tun", frozenset(["10.8.0.2"]))])),
        ),
        ORDINARY,
    ),
    # WireGuard's settings
    "the device has no peer": (with_device(peers=frozenset()), ORDINARY),
    "the device has another's peer": (with_device(peers=frozenset([FOREIGN_PEER])), ORDINARY),
    "the device has a peer too many": (with_device(peers=frozenset([the_peer(), FOREIGN_PEER])), ORDINARY),
    "another private key": (with_device(private_key=Secret(build.key("stolen"))), ORDINARY),
    "another preshared key": (with_peer(preshared_key=Secret(build.key("stolen"))), ORDINARY),
    "no preshared key": (with_peer(preshared_key=None), ORDINARY),
    "another endpoint": (with_peer(endpoint=("198.51.100.9", 51820)), ORDINARY),
    "other allowed IPs, another keepalive": (with_peer(allowed_ips=frozenset(["10.0.0.0/8"]), keepalive=0), ORDINARY),
    "no fwmark": (with_device(fwmark=0), ORDINARY),
    "another listen port": (
        with_device(listen_port=40000),
        ORDINARY._replace(tunnel=build.tunnel(listen_port=51820)),
    ),
    "another listen port, and the file names none": (with_device(listen_port=40000), ORDINARY),
    # addresses
    "an address is missing": (
        with_addresses(a for a in right().addresses if a.family == INET6),
        ORDINARY,
    ),
    "an address too many": (
        with_addresses(right().addresses | {Address(INET, "10.99.0.1", 24)}),
        ORDINARY,
    ),
    # rules
    **{
        f"rule {preference} is missing{'' if family == INET else ' (IPv6)'}": (
            without_rules(preference, family),
            ORDINARY,
        )
        for preference in (0, PREFERENCE_NAMES, PREFERENCE_REPLY, PREFERENCE_MAIN, PREFERENCE_TUNNEL, 32766)
        for family in (INET, INET6)
        if (preference, family) != (PREFERENCE_NAMES, INET6)  # the ordinary file has no IPv6 resolver
    },
    "a rule of somebody's before ours": (with_rules(Rule(INET, 10, MAIN_TABLE)), ORDINARY),
    "our rule, with a selector that we never use": (
        with_rules(
            Rule(INET, PREFERENCE_TUNNEL, TABLE, mark=FWMARK, invert=True, other=((17, b"eth1\0"),)),
        ),
        ORDINARY,
    ),
    "suppress_prefixlength was lost, as pyroute2 loses it under its own name": (
        without_rules(PREFERENCE_MAIN, INET)._replace(
            rules=without_rules(PREFERENCE_MAIN, INET).rules | {Rule(INET, PREFERENCE_MAIN, MAIN_TABLE)}
        ),
        ORDINARY,
    ),
    # routes
    "table 51820 was flushed": (without_routes(lambda route: route.table == TABLE), ORDINARY),
    "the two halves of the internet beside the tunnel": (
        with_routes(
            build.route("0.0.0.0/1", gateway="10.244.1.1"),
            build.route("128.0.0.0/1", gateway="10.244.1.1"),
        ),
        ORDINARY,
    ),
    "a public host beside the tunnel": (with_routes(build.route("198.51.100.7/32", gateway="10.244.1.1")), ORDINARY),
    "a public host beside the tunnel, and BYPASS_CIDRS names it": (
        with_routes(build.route("198.51.100.7/32", gateway="10.244.1.1")),
        ORDINARY._replace(circumstances=build.circumstances(bypass=build.bypass("198.51.100.0/24"))),
    ),
    "main was flushed": (without_routes(lambda route: route.table == MAIN_TABLE), ORDINARY),
    "the record was flushed": (without_routes(lambda route: route.table == RECORD_TABLE), ORDINARY),
    # the kill-switch
    "the kill-switch was deleted": (RIGHT._replace(ruleset=""), ORDINARY),
    "the kill-switch and wg0 were deleted": (without_link()._replace(ruleset=""), ORDINARY),
    "the gate was deleted": (with_ruleset(lambda text: text[: text.index("table netdev")]), ORDINARY),
    "a rule was added": (with_ruleset(lambda text: text.replace("\t\tjump refuse", "\t\taccept\n\t\tjump refuse")),
                         ORDINARY),
    "a rule was removed": (with_ruleset(lambda text: text.replace(DOCKER, "")), ORDINARY),
    "two rules changed places": (
        with_ruleset(lambda text: text.replace(LOOPBACK, "").replace(DOCKER, LOOPBACK + DOCKER)),
        ORDINARY,
    ),
    "the output's policy is accept": (
        with_ruleset(lambda text: text.replace(
            "chain output {\n\t\ttype filter hook output priority filter; policy drop;", ACCEPT_ALL)),
        ORDINARY,
    ),
    "all is there, but the pod is still sealed": (RIGHT._replace(ruleset=SEALED), ORDINARY),
    "sealed, with wg0 down, a rogue route and a rogue rule": (
        down()._replace(
            ruleset=SEALED,
            rules=RIGHT.rules | {Rule(INET, 10, MAIN_TABLE)},
            routes=down().routes | {build.route("198.51.100.7/32", gateway="10.244.1.1")},
        ),
        ORDINARY,
    ),
    "the kill-switch tampered with, and all else broken too": (
        down()._replace(ruleset="table inet init_wg {\n}\n", rules=frozenset(),
                        routes=down().routes | {build.route("198.51.100.7/32", gateway="10.244.1.1")}),
        ORDINARY,
    ),
    # the world is another
    "a fresh pod without IPv6": (
        FRESH._replace(routes=frozenset(r for r in FRESH.routes if r.family == INET),
                       rules=frozenset(r for r in FRESH.rules if r.family == INET)),
        NO_IPV6,
    ),
    "ENABLE_KILL_SWITCH=false in a fresh pod": (UNTOUCHED, NO_KILL_SWITCH),
    "ENABLE_KILL_SWITCH=false where it was true": (RIGHT, NO_KILL_SWITCH),
    "ENABLE_KILL_SWITCH=false where it was true, and wg0 deleted": (without_link(), NO_KILL_SWITCH),
    "another server": (
        RIGHT,
        ORDINARY._replace(
            tunnel=build.tunnel(peers=(build.tunnel().peers[0]._replace(
                public_key=build.OTHER_SERVER, endpoint=Endpoint("198.51.100.9", 51820)),)),
            circumstances=build.circumstances(endpoints={build.OTHER_SERVER: ("198.51.100.9", 51820)}),
        ),
    ),
}  # fmt: skip


def steps_for(have: State, world: World) -> tuple[Step, ...]:
    return plan(wanted(have, world), have, SEALED)


def shown(steps: Iterable[Step]) -> str:
    return "".join(f"  {type(step).__name__:<17}{step}\n" for step in steps) or "  nothing\n"


def golden() -> dict[str, str]:
    blocks = GOLDEN.read_text().split("\n\n") if GOLDEN.exists() else []
    return {title: body.rstrip("\n") + "\n" for title, _, body in (block.partition("\n") for block in blocks)}


DOWN = {"down, from a right state": RIGHT, "down, from a fresh pod": FRESH, "down, where wg0 is gone": without_link()}


@pytest.mark.parametrize("title", [*CASES, *DOWN])
def test_the_steps_of_every_situation(title: str) -> None:
    if title in DOWN:
        have = DOWN[title]
        want = desired.nothing(have)
        steps = plan(want, have, "")
    else:
        have, world = CASES[title]
        want, steps = wanted(have, world), steps_for(have, world)
    if os.environ.get("WRITE_GOLDEN"):
        cases = golden() | {title: shown(steps)}
        GOLDEN.write_text("\n".join(f"{t}\n{cases[t]}" for t in [*CASES, *DOWN] if t in cases))
    assert shown(steps) == golden()[title]
    assert_converges(want, have, steps)


def test_golden_has_no_case_that_nobody_tests() -> None:
    assert list(golden()) == [*CASES, *DOWN]


def test_no_golden_word_shows_a_key() -> None:
    text = GOLDEN.read_text()
    for name in ("private", "preshared", "stolen", "server", "other server"):
        assert build.key(name)[:8] not in text


def assert_converges(want: State, have: State, steps: tuple[Step, ...]) -> None:
    """The steps lead to what is wanted, and from there no step is left."""
    after = simulate(have, steps)
    if want.interfaces and (wished := right(want).device) and wished.listen_port is None:
        after = with_device(after, listen_port=None)
    assert after == want
    assert plan(want, after, SEALED) == ()


# --- any found state ---------------------------------------------------------------------------------------------

WORLDS = (ORDINARY, USERSPACE, NO_IPV6, NO_KILL_SWITCH)
ROGUE_RULES = (
    Rule(INET, 10, MAIN_TABLE),
    Rule(INET6, 299, MAIN_TABLE, mark=7),
    Rule(INET, PREFERENCE_TUNNEL, TABLE, mark=FWMARK),
    Rule(INET, PREFERENCE_MAIN, MAIN_TABLE),
    Rule(INET6, 0, 255, other=((0, b"\x08\x00"),)),
)
ROGUE_ROUTES = (
    build.route("0.0.0.0/1", gateway="10.244.1.1"),
    build.route("198.51.100.7/32", gateway="10.244.1.1"),
    build.route("2001:db8::/32", gateway="fd00:244:1::1"),
    Route(INET, TABLE, "0.0.0.0/0", "eth0", gateway="10.244.1.1"),
    Route(INET, TABLE, "203.0.113.0/24", "eth0", gateway="10.244.1.1"),
    Route(INET, MAIN_TABLE, "10.96.0.0/12", "eth0", gateway="10.244.1.9"),
)
LINKS = (
    None,
    Link("wg0", "wireguard", 1370, up=True),
    Link("wg0", "wireguard", 1370, up=False),
    Link("wg0", "wireguard", 1500, up=True),
    Link("wg0", "tun", 1370, up=True),
    Link("wg0", "dummy", 1500, up=True),
)
RULESETS = (
    SEALED,
    RIGHT.ruleset,
    "",
    "table inet init_wg {\n}\n",
    RIGHT.ruleset.replace("policy drop", "policy accept"),
)
PEERS = (
    (),
    (the_peer(),),
    (the_peer()._replace(endpoint=("198.51.100.9", 1)),),
    (the_peer()._replace(allowed_ips=frozenset(["::/0"])), FOREIGN_PEER._replace(allowed_ips=frozenset(["0.0.0.0/0"]))),
    (FOREIGN_PEER,),
)
OTHERS = (
    frozenset[OtherTunnel](),
    frozenset([OtherTunnel("old", "wireguard", frozenset(["10.64.0.2"]))]),
    frozenset([OtherTunnel("tun0", "tun", frozenset(["10.8.0.2"]))]),
)


def some(items: Iterable[_T]) -> st.SearchStrategy[frozenset[_T]]:
    """Any subset; often all of it, because one broken thing among right ones is the usual case."""
    listed = sorted(items, key=repr)
    return st.just(frozenset(listed)) | st.frozensets(st.sampled_from(listed))


SOME_ROUTES, SOME_RULES, SOME_ADDRESSES = some(RIGHT.routes), some(RIGHT.rules), some(right().addresses)


@st.composite
def found(draw: st.DrawFn) -> State:
    """Whatever the kernel can hold: no routes on a link that is down or not there, no settings on a foreign one."""
    link = draw(st.sampled_from(LINKS))
    routes = draw(SOME_ROUTES) | draw(st.frozensets(st.sampled_from(ROGUE_ROUTES)))
    if not any(r.destination == "0.0.0.0/0" and r.device and r.table in (MAIN_TABLE, RECORD_TABLE) for r in routes):
        routes |= {build.MAIN_ROUTES[0]}  # without any default route there is no uplink, and no plan
    if link is None or not link.up:
        routes = frozenset(route for route in routes if route.device != "wg0")
    answers = link is not None and link.kind != "dummy" and draw(st.booleans())
    private = draw(st.sampled_from((build.PRIVATE, Secret(build.key("stolen")))))
    device = Device(
        private, draw(st.sampled_from((0, 51820))), draw(st.sampled_from((0, FWMARK))),
        frozenset(draw(st.sampled_from(PEERS))),
    )  # fmt: skip
    addresses = draw(SOME_ADDRESSES) | draw(st.sampled_from([frozenset(), {Address(INET, "10.99.0.1", 24)}]))
    return State(
        interfaces=(TunnelInterface(link, device if answers else None, addresses),) if link else (),
        routes=routes,
        rules=draw(SOME_RULES) | draw(st.frozensets(st.sampled_from(ROGUE_RULES))),
        others=draw(st.sampled_from(OTHERS)),
        ruleset=draw(st.sampled_from(RULESETS)),
    )


@settings(max_examples=200, deadline=None)
@given(have=found(), world=st.sampled_from(WORLDS))
def test_every_found_state_converges_and_then_nothing_is_left(have: State, world: World) -> None:
    want = wanted(have, world)
    assert_converges(want, have, plan(want, have, SEALED))


@settings(max_examples=80, deadline=None)
@given(have=found())
def test_down_takes_everything_away_and_the_kill_switch_last(have: State) -> None:
    want = desired.nothing(have)
    steps = plan(want, have, "")
    assert_converges(want, have, steps)
    assert any(isinstance(step, DeleteRuleset) for step in steps) == bool(have.ruleset)
    assert not any(isinstance(step, DeleteRuleset) for step in steps[:-1])


@settings(max_examples=200, deadline=None)
@given(have=found(), world=st.sampled_from((ORDINARY, USERSPACE, NO_IPV6)))
def test_nothing_opens_before_it_may(have: State, world: World) -> None:
    want = wanted(have, world)
    steps = plan(want, have, SEALED)
    kinds = list(map(type, steps))

    def before(first: tuple[type[Step], ...], then: type[Step]) -> bool:
        """No step of `first` comes after one that is `then`."""
        return then not in kinds or not set(first) & set(kinds[kinds.index(then) :])

    if have.ruleset not in (SEALED, want.ruleset):
        assert kinds[0] is RepairRuleset
    if have.ruleset == want.ruleset:
        assert not any(isinstance(step, PutRuleset) for step in steps)
    if have.ruleset == SEALED:
        removed = (DeleteRoute, DeleteRule, DeleteAddress, DeleteInterface)
        assert before((*removed, CreateInterface, Configure, SetMtu, AddAddress, AddRule), OpenRuleset)
        opened = steps[kinds.index(OpenRuleset) :] if OpenRuleset in kinds else ()
        assert not any(isinstance(step, AddRoute) and step.route.kind == "unreachable" for step in opened)
        assert before((OpenRuleset,), SetUp)
    assert sum(isinstance(step, PutRuleset) for step in steps) <= 1
    assert (OpenRuleset in kinds) == (have.ruleset == SEALED)
    assert before((Configure, CreateInterface, AddAddress), SetUp)
    default = [n for n, s in enumerate(steps) if isinstance(s, AddRoute) and s.route.kind == "unreachable"]
    assert not default or AddRule not in kinds[: max(default)]
    # Leaks are taken away before anything is made.
    made = [n for n, kind in enumerate(kinds) if kind in (CreateInterface, AddRule, AddRoute, SetUp)]
    gone = [n for n, kind in enumerate(kinds) if kind in (DeleteRoute, DeleteRule)]
    assert not made or not gone or max(gone) < min(made)


@settings(max_examples=120, deadline=None)
@given(have=found(), world=st.sampled_from((ORDINARY, USERSPACE)), stop=st.integers(0, 60))
def test_a_plan_broken_off_anywhere_is_taken_up_again(have: State, world: World, stop: int) -> None:
    """Killed between two steps: the next run sees what is left, wants what it then wants, and gets there."""
    half = simulate(have, plan(wanted(have, world), have, SEALED)[:stop])
    again = wanted(half, world)
    assert_converges(again, half, plan(again, half, SEALED))


@settings(max_examples=80, deadline=None)
@given(have=found())
def test_a_session_survives_unless_its_own_settings_differ(have: State) -> None:
    """The device is neither made anew nor its peer set again for anything else that drifted."""
    addresses = right(have).addresses if have.interfaces else frozenset()
    have = have._replace(interfaces=(right()._replace(addresses=addresses),))
    kinds = set(map(type, plan(wanted(have), have, SEALED)))
    assert not kinds & {CreateInterface, Configure, SetUp, SetMtu}
    assert DeleteInterface not in kinds or have.others == OTHERS[1]


# --- more than one interface -----------------------------------------------------------------------------------------

SECOND = TunnelInterface(
    Link("wg1", "wireguard", 1370, up=True),
    Device(Secret(build.key("second")), 51820, 0, frozenset([FOREIGN_PEER._replace(endpoint=None)])),
    frozenset([Address(INET, "10.13.13.1", 24)]),
)
BOTH = RIGHT._replace(interfaces=(right(), SECOND))


@pytest.mark.parametrize("there", [(), (right(),), (SECOND,), (right(), SECOND._replace(device=None))])
def test_two_interfaces_converge_and_neither_disturbs_the_other(there: tuple[TunnelInterface, ...]) -> None:
    names = {each.link.name for each in there if each.device}
    left = frozenset(route for route in RIGHT.routes if route.device != "wg0" or "wg0" in names)
    have = BOTH._replace(interfaces=there, routes=left)
    steps = plan(BOTH, have, SEALED)
    assert plan(BOTH, simulate(have, steps), SEALED) == ()
    made = {step.link.name for step in steps if isinstance(step, CreateInterface)}
    assert made == {"wg0", "wg1"} - names


def test_an_interface_that_is_not_wanted_any_more_goes_and_the_other_stays() -> None:
    steps = plan(RIGHT, BOTH, SEALED)
    assert list(map(str, steps)) == [
        "address 10.13.13.1/24: wanted none, found there",
        "interface wg1: wanted none, found kernel WireGuard",
    ]
    assert simulate(BOTH, steps) == RIGHT
