"""The leak suite: a pod protected by init_wg, probes that try everything all the time, and every fault in turn.

Judged on the node. What init_wg did is not asked of init_wg: see judge.py.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import random
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from tests.lab import faults
from tests.lab.faults import FAULTS, Fault, state_of
from tests.lab.judge import Judge, Verdict, for_lab
from tests.lab.lab import STREAM, Family, Lab, Member, wait_until
from tests.lab.probes import KINDS, PLAIN, Probes
from tests.lab.reaper import NETNS

HOLD = 4  # rounds of all probes that a broken state is held
Protected = tuple[Lab, Judge, Probes]


def nothing_leaked(verdict: Verdict, spares: frozenset[str] = frozenset()) -> None:
    leaks = [leak for leak in verdict.leaks if leak.kind not in spares]
    assert not leaks, str(verdict)


# --- every fault -----------------------------------------------------------------------------------------------------


@pytest.fixture
def well(protected: Protected) -> Iterator[Protected]:
    """The shared pod, whole again after each test, also after one that failed half-way."""
    yield protected
    lab, judge, _ = protected
    lab.init_wg("up", check=False)
    judge.mark()


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_nothing_leaks_and_up_heals(well: Protected, fault: Fault) -> None:
    lab, judge, probes = well
    if not fault.possible(lab):
        pytest.skip(f"this machine's pod has no {fault.needs} to break")
    before = state_of(lab)
    assert lab.flows()
    with contextlib.ExitStack() as world:
        world.callback(fault.undo, lab)
        fault.break_it(lab)
        probes.round(HOLD)
        nothing_leaked(judge.verdict(), fault.spares)
        if fault.undo is not faults.nothing:
            # `up` in the middle of it: it may repair or give up, but nothing gets out; after success, not even what
            # the fault would have let out.
            tried = lab.init_wg("up", check=False, env={"HANDSHAKE_TIMEOUT": "1"})
            assert tried.returncode in (0, 3, 4), tried.stderr
            nothing_leaked(judge.verdict(), fault.spares)
            probes.round(1)
            nothing_leaked(judge.verdict(), frozenset() if tried.returncode == 0 else fault.spares)
    lab.init_wg("up")
    assert fault.healed(lab, before), difference(before, state_of(lab))
    nothing_leaked(judge.verdict(), fault.spares)
    probes.round(1)
    nothing_leaked(judge.verdict())


def difference(before: str, after: str) -> str:
    return "\n".join(difflib.unified_diff(before.splitlines(), after.splitlines(), "before", "after", lineterm="", n=0))


def test_routing_alone_holds_what_follows_it(plain: Lab) -> None:
    """With the whole ruleset flushed, and wg0 deleted on top, the unreachable defaults are what is left.

    Not for what is bound to the uplink or its address, or older than the lockdown: only nftables stops that.
    """
    plain.init_wg("up")
    kinds = [kind for kind in PLAIN if not KINDS[kind].before and kind != "dns-cluster"]
    with Judge(plain) as judge, Probes(plain, kinds, loose=False) as probes:
        judge.mark()
        faults.FLUSHED_RULESET.break_it(plain)
        probes.round(HOLD)
        plain.pod.run(["ip", "link", "delete", "wg0"])
        probes.round(HOLD)
        # With no firewall the kernel speaks for itself: to what the provider still sends nobody listens any more, and
        # which multicast groups eth0 is a member of is told twice, at random moments. No application says either.
        said = frozenset({"icmp-error", "mld"})
        nothing_leaked(judge.verdict(), said)
        plain.init_wg("up")
        assert plain.flows()
        nothing_leaked(judge.verdict(), said)


# --- starting --------------------------------------------------------------------------------------------------------

FLAVOURS: dict[str, dict[str, Any]] = {
    "rp_filter-0": {"rp_filter": 0},
    "rp_filter-1": {"rp_filter": 1},
    "rp_filter-2": {"rp_filter": 2},
    "on-link-gateway": {"on_link_gateway": True, "rp_filter": 1},
    "flannel": {"flannel": True, "mtu": 1450, "rp_filter": 1},
    "tunnel-without-ipv6": {"tunnel_ipv6": False},
    "pod-without-ipv6": {"pod_ipv6": False, "tunnel_ipv6": False},
    "endpoint-ipv6": {"endpoint_family": 6},
    "endpoint-ipv6-on-link-gateway": {"endpoint_family": 6, "on_link_gateway": True, "rp_filter": 0},
}


def answers_who_comes_in(lab: Lab, families: Iterable[Family], *clients: Member) -> None:
    for family in families:
        for client in clients:
            assert lab.inbound(client, family), f"TCP, IPv{family}, from {client.name}"
            assert lab.inbound(client, family, udp=True), f"UDP, IPv{family}, from {client.name}"
            ping = ["ping", "-c", "1", "-W", "2", lab.pod.addresses[family]]
            assert client.ok(ping), f"ICMP, IPv{family}, from {client.name}"


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_from_the_lockdown_on_nothing_leaks(flavour: str) -> None:
    """The probes are there first, with connections open. From the end of the lockdown everything is judged."""
    with Lab(**FLAVOURS[flavour]) as lab, Judge(lab) as judge, Probes(lab) as probes:
        assert judge.verdict().leaked, "before the lockdown all is open"
        lab.init_wg("lockdown")
        judge.mark()
        probes.round(HOLD)
        nothing_leaked(judge.verdict())
        lab.init_wg("up")
        assert lab.flows()
        probes.round(2)
        verdict = judge.verdict()
        nothing_leaked(verdict)
        assert verdict.allowed["wireguard"]
        answers_who_comes_in(lab, lab.families, lab.node, lab.far)
        if not lab.tunnel_ipv6 and lab.pod_ipv6:
            assert lab.traffic_source(6) is None
        lab.pod.run(["ip", "link", "delete", "wg0"])
        probes.round(2)
        # The node's health probes must get their answer now, too. Not over IPv6 from an address outside of the bypass
        # networks: those answers are brought home by a mark that is set after a first look-up, which fails without wg0.
        answers_who_comes_in(lab, (4,) if lab.on_link_gateway else lab.families, lab.node)
        nothing_leaked(judge.verdict())


def test_full_packets_fit_an_overlay() -> None:
    """An uplink of 1450: a full packet of the tunnel, with "do not fragment", gets there and back."""
    with Lab(mtu=1450) as lab:
        lab.init_wg("up")
        mtu = int(lab.pod.run(["cat", "/sys/class/net/wg0/mtu"]).stdout)
        assert mtu == 1450 - 80
        headers = {4: 28, 6: 48}
        for family in lab.families:
            size = mtu - headers[family]
            ping = ["ping", "-c", "1", "-W", "2", "-M", "do", "-s", str(size), lab.web.addresses[family]]
            lab.pod.run(ping)


def test_connections_from_before_the_lockdown(plain: Lab) -> None:
    """Their servers go on pushing. A firewall that has just begun to track connections takes these for new ones."""
    kinds = ["tcp-preopened", "udp-preopened", "tcp-stream"]
    with Judge(plain) as judge, Probes(plain, kinds) as probes:
        seen = judge.verdict().kinds
        assert all(seen[f"{kind}/{family}"] for kind in kinds[:2] for family in plain.families)
        plain.init_wg("lockdown")
        judge.mark()
        plain.init_wg("up")
        hold_for(1.5, probes)  # long enough for the server's TCP to send it all again, twice
        nothing_leaked(judge.verdict())
        for _ in range(5):  # each gives connection tracking a chance to see a push before the rules do
            plain.pod.run(["nft", "delete", "table", "inet", "init_wg"])
            probes.round(20)
            plain.init_wg("up")
            probes.round(20)
        nothing_leaked(judge.verdict())


def hold_for(seconds: float, probes: Probes) -> None:
    """A bounded time of observation."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        probes.round(1)


@pytest.mark.parametrize("reason", ["silent peer", "wrong key", "no such file", "broken file", "no provider's name"])
def test_a_start_that_fails_stays_sealed(plain: Lab, reason: str) -> None:
    env = {"HANDSHAKE_TIMEOUT": "1"}
    expected = 4
    if reason == "silent peer":
        plain.provider.silence()
    elif reason == "wrong key":
        plain.config(secret="4GgaQCy68nzNsUE5aJ9fuLzHhB65tAlwbmA72MWnOm8=")
    elif reason == "no such file":
        env["WG_CONFIG"], expected = str(plain.folder / "absent.conf"), 2
    elif reason == "broken file":
        plain.config_path.write_text("<html>Please log in</html>\n")
        expected = 2
    else:
        plain.zone({"vpn.example": []})
        plain.config(endpoint="vpn.example:51820")
    with Judge(plain, for_lab(plain, lookups=["vpn.example"])) as judge, Probes(plain) as probes:
        plain.init_wg("lockdown")
        judge.mark()
        failed = plain.init_wg("up", env=env, check=False)
        assert failed.returncode == expected, failed.stderr
        probes.round(HOLD)
        nothing_leaked(judge.verdict())
        assert not any(plain.traffic_source(family, timeout=0.2) for family in plain.families)


#: Somebody who opens the kill-switch in the moment in which it is opened for the tunnel. $0.real is nft itself.
TAMPERER = """#!/bin/sh
case "$*" in
-f*)
    rules=$(cat)
    case "$rules" in
    *wg0*)
        touch "$0.tampered"
        rules="$rules
insert rule inet init_wg output counter accept"
        ;;
    esac
    printf '%s\\n' "$rules" | "$0.real" "$@"
    ;;
*) exec "$0.real" "$@" ;;
esac
"""


def test_a_start_whose_rules_somebody_changes_ends_sealed(plain: Lab) -> None:
    nft = plain.folder / "tampering" / "nft"
    nft.parent.mkdir()
    nft.write_text(TAMPERER)
    nft.chmod(0o755)
    nft.with_name("nft.real").symlink_to(str(shutil.which("nft")))
    with Judge(plain) as judge, Probes(plain) as probes:
        failed = plain.init_wg("up", env={"PATH": f"{nft.parent}:{os.environ['PATH']}"}, check=False)
        assert failed.returncode == 5, failed.stderr
        assert "it reads back different" in failed.stderr.splitlines()[-1]
        assert nft.with_name("nft.tampered").exists()
        judge.mark()
        probes.round(HOLD)
        nothing_leaked(judge.verdict())
        assert not any(plain.traffic_source(family, timeout=0.2) for family in plain.families)
    assert "wg0" not in plain.pod.run(["nft", "list", "table", "inet", "init_wg"]).stdout


def test_an_endpoint_by_name_opens_a_hole_for_its_query_only(plain: Lab) -> None:
    plain.zone({"vpn.example": [plain.provider.addresses[4]]})
    plain.config(endpoint="vpn.example:51820")
    with Judge(plain, for_lab(plain, lookups=["vpn.example"])) as judge, Probes(plain) as probes:
        plain.init_wg("lockdown")
        judge.mark()
        for _ in range(2):
            plain.init_wg("up")
            probes.round(1)
            plain.pod.run(["ip", "link", "delete", "wg0"])
        verdict = judge.verdict()
        nothing_leaked(verdict)
        assert verdict.allowed["endpoint's name"]


def test_the_next_server_is_tried(plain: Lab) -> None:
    plain.provider.silence()
    rules = for_lab(plain, endpoints=[plain.provider.endpoint, plain.provider2.endpoint])
    with Judge(plain, rules) as judge, Probes(plain) as probes:
        plain.init_wg("lockdown")
        judge.mark()
        plain.init_wg("up", env={"WG_CONFIG": str(plain.config_folder), "HANDSHAKE_TIMEOUT": "1"})
        probes.round(1)
        nothing_leaked(judge.verdict())
        assert plain.traffic_source(4) == plain.provider2.addresses[4]


# --- killed, repeated, at once ---------------------------------------------------------------------------------------


@pytest.fixture
def sealed() -> Iterator[Protected]:
    with Lab() as lab, Judge(lab) as judge, Probes(lab) as probes:
        lab.init_wg("lockdown")
        judge.mark()
        yield lab, judge, probes


def start_over(lab: Lab, judge: Judge) -> None:
    """Everything is taken away on request, and the pod sealed again: only from there on things are judged."""
    lab.init_wg("down")
    lab.init_wg("lockdown")
    judge.mark()


def test_killed_after_every_step(sealed: Protected) -> None:
    """SIGKILL after one step, again and again: each run starts from what the last one left, and gets a step further."""
    lab, judge, probes = sealed
    interrupted = [sys.executable, "-m", "tests.lab.interrupted", "up"]
    for step in range(1, 100):
        stopped = lab.pod.run(interrupted, env={**lab.pod_env, "INIT_WG_STOP_AFTER": "1"}, check=False)
        probes.round(1)
        verdict = judge.verdict()
        assert not verdict.leaked, f"killed after step {step}: {verdict}"
        if stopped.returncode == 0:
            break
        assert stopped.returncode == -signal.SIGKILL, stopped.stderr
    assert step > 5, "there must be steps, and a way to stop after them"
    assert lab.flows()
    nothing_leaked(judge.verdict())


def test_killed_at_random_instants(sealed: Protected) -> None:
    lab, judge, probes = sealed
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    started = time.monotonic()
    lab.init_wg("up")
    duration = time.monotonic() - started
    start_over(lab, judge)
    for number in range(9):
        delay = chance.uniform(0, duration)
        process = lab.pod.popen([sys.executable, "-m", "init_wg", "up"], env=lab.pod_env)
        end = time.monotonic() + delay
        while time.monotonic() < end and process.poll() is None:
            time.sleep(0.001)
        process.kill()
        process.wait()
        probes.round(1)
        verdict = judge.verdict()
        assert not verdict.leaked, f"seed {seed}, number {number}, killed after {delay:.3f} s: {verdict}"
        if number % 3 == 2:  # else the next one starts from what the killed one left
            lab.init_wg("up")
            assert lab.flows(), f"seed {seed}, number {number}"
            nothing_leaked(judge.verdict())
            start_over(lab, judge)


def test_up_a_hundred_times_under_load(well: Protected) -> None:
    """Nothing leaks, and nobody notices: a connection through the tunnel lives through it all."""
    lab, judge, _ = well
    web = (lab.web.addresses[4], STREAM)
    before = state_of(lab)
    with lab.pod.socket(socket.AF_INET, socket.SOCK_STREAM) as stream:
        stream.settimeout(5)
        stream.connect(web)
        for _ in range(100):
            lab.init_wg("up")
            assert stream.recv(65536), "the server's pushes stopped"
            stream.send(b"still here")
    assert state_of(lab) == before
    nothing_leaked(judge.verdict())


def test_many_at_once_do_not_fight(sealed: Protected) -> None:
    lab, judge, _ = sealed
    several = [lab.pod.popen([sys.executable, "-m", "init_wg", "up"], env=lab.pod_env) for _ in range(4)]
    assert [process.wait(60) for process in several] == [0, 0, 0, 0]
    assert lab.flows()
    nothing_leaked(judge.verdict())


def test_nothing_of_the_lab_remains() -> None:
    """Also when its owner is killed: the namespaces, the processes, the folder."""
    owner = os.fork()
    if not owner:
        with Lab() as lab:
            lab.wg_quick()
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(1)
    os.waitpid(owner, 0)
    wait_until(lambda: not list(NETNS.glob(f"iwg-{owner}-*")), "the reaper's work")
