"""The watchdog in a real pod: real WireGuard, every fault, dead peers, new configurations, signals.

One lab with one provider's file for the faults, with one watchdog through all of them: what it leaks, or what it keeps,
adds up. Another lab with two servers for dead peers and all that needs a watchdog of its own.

A jump of the wall clock cannot be made for one network namespace alone: tests/unit/test_watchdog_health.py has it, a
day each way. What a frozen container sees, time in which nobody looked, is here.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import documents
from tests.lab import faults
from tests.lab.faults import FAULTS, Fault, kill_daemon, state_of, wireguard_daemons
from tests.lab.judge import Judge, Verdict, for_lab
from tests.lab.lab import HTTP, SERVICES, STREAM, Endpoint, Lab, LabError, Provider, wait_until
from tests.lab.probes import Probes
from tests.netns import chaos
from tests.netns.chaos import BOUND, BOUND_PEER, PEER, PORT, Watchdog, difference, setups

HOLD = 2  # rounds of all probes that a fault lasts where the world outside has to put it right
QUIET = 300  # attempts a second where things take their time
NAME = "vpn.example"


class Kept(NamedTuple):
    """A pod that a watchdog keeps."""

    lab: Lab
    judge: Judge
    probes: Probes
    watchdog: Watchdog


def nothing_leaked(verdict: Verdict, spares: frozenset[str] = frozenset()) -> None:
    leaks = [leak for leak in verdict.leaks if leak.kind not in spares]
    assert not leaks, str(verdict)


def becomes(what: str, condition: Callable[[], object], bound: float, watchdog: Watchdog) -> float:
    """Seconds until it is so. Else a failure that shows what the watchdog said."""
    started = time.monotonic()
    try:
        wait_until(condition, what, bound)
    except LabError:
        pytest.fail(f"after {bound:g} s still waiting: {what}\n{watchdog.log()[-3000:]}")
    return time.monotonic() - started


def well_again(kept: Kept, before: str, bound: float = BOUND, *, same_state: bool = True) -> None:
    """Traffic flows through the tunnel, the kernel's own tools show what they showed before, and init_wg agrees."""
    lab, _, _, watchdog = kept

    def well() -> bool:
        return lab.flows(0.5) and (not same_state or state_of(lab) == before)

    started = time.monotonic()
    while not well():
        if time.monotonic() - started > bound:
            pytest.fail(f"not well again:\n{difference(before, state_of(lab))}\n{watchdog.log()[-3000:]}")
    becomes("a clean check", lambda: lab.init_wg("check", check=False).returncode == 0, bound, watchdog)


# --- one provider, one watchdog through it all ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared() -> Iterator[Kept]:
    """Set up by the watchdog itself, under fire."""
    with Lab() as lab, Judge(lab) as judge, Probes(lab) as probes:
        lab.init_wg("lockdown")
        judge.mark()
        with Watchdog(lab) as watchdog:
            watchdog.settle()
            nothing_leaked(judge.verdict())
            yield Kept(lab, judge, probes, watchdog)


@pytest.fixture
def kept(shared: Kept) -> Iterator[Kept]:
    """The shared pod, well before each test and after it."""
    judge, watchdog = shared.judge, shared.watchdog
    try:
        watchdog.settle(BOUND_PEER)
    except LabError as error:
        pytest.fail(str(error))
    pid = watchdog.pid
    judge.mark()
    yield shared
    assert watchdog.pid == pid
    assert watchdog.process and watchdog.process.poll() is None, "the watchdog has ended"
    assert "a mistake in the watchdog" not in watchdog.log()


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_every_fault_heals_and_nothing_leaks(kept: Kept, fault: Fault) -> None:
    lab, judge, probes, _ = kept
    if not fault.possible(lab):
        pytest.skip(f"this machine's pod has no {fault.needs} to break")
    before, spared = state_of(lab), chaos.spared(fault)
    with contextlib.ExitStack() as world:
        world.callback(fault.undo, lab)
        fault.break_it(lab)
        if fault.undo is not faults.nothing:
            probes.round(HOLD)
            nothing_leaked(judge.verdict(), spared)
    well_again(kept, before, BOUND_PEER if fault.name in PEER else BOUND, same_state=fault.same_state)
    nothing_leaked(judge.verdict(), spared)
    probes.round(1)
    nothing_leaked(judge.verdict())


def test_its_own_changes_do_not_wake_it(kept: Kept) -> None:
    """One fault: one run that repairs, one that finds everything right; then it sleeps."""
    lab, _, _, watchdog = kept
    runs = watchdog.runs()
    lab.pod.run(["ip", "link", "delete", "wg0"])
    becomes("a repair", lambda: watchdog.runs() > runs, 10, watchdog)
    watchdog.settle()
    time.sleep(2.5)  # an observation: nothing more may come
    assert watchdog.runs() - runs <= 2, watchdog.log()[-2000:]


def test_lost_events_mean_a_full_look(kept: Kept) -> None:
    """Thousands of changes overflow the socket's buffer, and the one that matters is among the lost."""
    lab, _, _, watchdog = kept
    before = state_of(lab)
    routes = [f"198.18.{number}.0/24" for number in range(256)] + [f"198.19.{number}.0/24" for number in range(256)]
    changes = "".join(f"route {word} blackhole {to} table 7\n" for word in ("add", "delete") for to in routes)
    os.kill(watchdog.pid, signal.SIGSTOP)
    try:
        for _ in range(40):
            lab.pod.run(["ip", "-batch", "-"], stdin=changes)
            if lost(watchdog):
                break
        assert lost(watchdog), "the buffer did not overflow, so this test proves nothing"
        lab.pod.run(["ip", "rule", "delete", "table", "51820"])
    finally:
        os.kill(watchdog.pid, signal.SIGCONT)
    well_again(kept, before)


def lost(watchdog: Watchdog) -> int:
    """Events that the kernel could not deliver to this process's route socket (its number is the process's)."""
    table = watchdog.lab.pod.run(["cat", "/proc/net/netlink"]).stdout.splitlines()
    columns = table[0].split()
    rows = [dict(zip(columns, line.split(), strict=False)) for line in table[1:]]
    return sum(int(row["Drops"]) for row in rows if row["Eth"] == "0" and int(row["Pid"]) == watchdog.pid)


def test_who_fights_it_is_named_and_repairs_are_slowed_down(kept: Kept) -> None:
    """Somebody flushes the kill-switch again and again. It never opens; nobody burns the processor over it."""
    lab, judge, probes, watchdog = kept
    before, runs, said = state_of(lab), watchdog.runs(), len(watchdog.log())
    loop = "while :; do nft flush table inet init_wg; sleep 0.05; done"
    rival = lab.pod.popen(["sh", "-c", loop])
    try:
        words = "something keeps changing this, so repairs are slowed down"
        becomes("that it says so", lambda: words in watchdog.log()[said:], 40, watchdog)
        slow = watchdog.runs()
        probes.round(20)
        time.sleep(1.5)  # an observation: from here on each repair waits longer than the one before
        assert watchdog.runs() - slow <= 5
        assert ", changed by nft (" in watchdog.log()[said:]
        nothing_leaked(judge.verdict())
    finally:
        rival.kill()
        rival.wait()
    well_again(kept, before)
    nothing_leaked(judge.verdict())
    assert watchdog.runs() > runs
    calm(watchdog)


def calm(watchdog: Watchdog) -> None:
    """Until the next fault is not taken for more of the same."""
    watchdog.settle()
    time.sleep(chaos.CALM)


def test_it_adopts_wireguard_go(kept: Kept) -> None:
    """The daemon is the watchdog's child: reaped when it ends, and another one started."""
    lab, _, _, watchdog = kept
    if not wireguard_daemons(lab):
        pytest.skip("WireGuard is in the kernel here")
    before = state_of(lab)
    for _ in range(2):
        (daemon,) = wireguard_daemons(lab)
        kill_daemon(lab)
        well_again(kept, before)
        calm(watchdog)
        (after,) = wireguard_daemons(lab)
        assert after != daemon
        assert after in watchdog.children()
    states = {pid: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in watchdog.children()}
    assert "Z" not in states.values(), states


def test_a_frozen_container_does_not_blame_the_peer(kept: Kept) -> None:
    """For a while nobody looked: that was not the peer's silence."""
    watchdog = kept.watchdog
    failovers, said = watchdog.metrics()["init_wg_failovers_total"], len(watchdog.log())
    os.kill(watchdog.pid, signal.SIGSTOP)
    try:
        time.sleep(7)
    finally:
        os.kill(watchdog.pid, signal.SIGCONT)
    becomes("an answer", watchdog.active, 10, watchdog)
    time.sleep(1.5)  # an observation
    assert watchdog.metrics()["init_wg_failovers_total"] == failovers
    assert "is dead" not in watchdog.log()[said:]


def test_memory_is_flat(kept: Kept) -> None:
    """100,000 requests; what all the repairs before in this module cost is in the number, too."""
    lab, _, _, watchdog = kept
    small = watchdog.resident()
    request = b"GET / HTTP/1.1\r\nHost: pod\r\n\r\n"
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(lab.node.socket(socket.AF_INET, socket.SOCK_STREAM)) for _ in range(8)]
        for client in clients:
            client.settimeout(10)
            client.connect((lab.pod.addresses[4], PORT))
        for _ in range(125):
            for client in clients:
                client.sendall(request * 100)
            for client in clients:
                assert answers(client, 100)
    assert watchdog.resident() - small <= 256
    assert watchdog.resident() <= 16 * 1024


def answers(client: socket.socket, count: int) -> bool:
    """Read so many answers."""
    data = b""
    while data.count(b"VPN is active") < count:
        more = client.recv(1 << 16)
        if not more:
            return False
        data += more
    return True


@contextlib.contextmanager
def crowd(lab: Lab, idle: int, slow: int) -> Iterator[list[socket.socket]]:
    """Clients that say nothing, and clients that ask for much and never read."""
    clients: list[socket.socket] = []
    with contextlib.ExitStack() as stack:
        with lab.node.inside():
            for number in range(idle + slow):
                client = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
                client.settimeout(10)
                if number >= idle:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.connect((lab.pod.addresses[4], PORT))
                clients.append(client)
        for client in clients[idle:]:
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.send(b"GET /metrics HTTP/1.1\r\nHost: pod\r\n\r\n" * 200)
        yield clients


def test_a_crowd_of_clients_delays_no_repair(kept: Kept) -> None:
    lab, _, _, watchdog = kept
    before = state_of(lab)
    with crowd(lab, 1000, 50):
        becomes("a crowd", lambda: watchdog.metrics()["init_wg_http_connections"] > 1000, 20, watchdog)
        lab.pod.run(["ip", "link", "delete", "wg0"])
        well_again(kept, before)
        assert watchdog.ask()
    becomes("that they are forgotten", lambda: 0 < watchdog.metrics()["init_wg_http_connections"] < 5, 15, watchdog)


# --- two servers, a watchdog for each test ---------------------------------------------------------------------------


class Pod(NamedTuple):
    """A sealed pod that no watchdog runs in yet."""

    lab: Lab
    judge: Judge
    probes: Probes

    def watchdog(self, **env: str) -> Watchdog:
        return Watchdog(self.lab, env={"HANDSHAKE_TIMEOUT": "2", "WG_CONFIG": str(self.lab.config_folder), **env})


MOVED = Endpoint("203.0.113.61", 51820)  # where the first provider moves to


@pytest.fixture(scope="module")
def sealed() -> Iterator[Pod]:
    with Lab() as lab:
        ends = [lab.provider.endpoint, lab.provider2.endpoint, MOVED]
        with Judge(lab, for_lab(lab, endpoints=ends, lookups=[NAME])) as judge, Probes(lab, rate=QUIET) as probes:
            lab.init_wg("lockdown")
            judge.mark()
            yield Pod(lab, judge, probes)


@pytest.fixture
def pod(sealed: Pod) -> Iterator[Pod]:
    """All is well outside; and whatever the test did, nothing leaked."""
    lab, judge, _ = sealed
    judge.mark()
    yield sealed
    for provider in (lab.provider, lab.provider2):
        if "silent" in provider.run(["nft", "list", "tables"]).stdout:
            provider.speak()
    nothing_leaked(judge.verdict())


def arrives_from(lab: Lab, provider: Provider) -> bool:
    return lab.traffic_source(4, 0.3) == provider.addresses[4]


def start_at_first(pod: Pod, watchdog: Watchdog) -> None:
    """The tunnel is with the first server, whatever the test before left."""
    pod.lab.init_wg("up", "--server", "1-provider", env=watchdog.env)
    watchdog.settle()
    assert arrives_from(pod.lab, pod.lab.provider)


def test_a_silent_peer_is_doubted_at_once_and_left_soon(pod: Pod) -> None:
    """Then the second one falls silent, too; and when all are dead, the first one comes back."""
    lab = pod.lab
    with pod.watchdog() as watchdog:
        start_at_first(pod, watchdog)
        lab.provider.silence()
        started = time.monotonic()
        becomes("first doubts", lambda: watchdog.ask().startswith("VPN is not active: "), 15, watchdog)
        reason = watchdog.ask()
        assert "203.0.113.51:51820" in reason, reason
        assert "nothing heard for" in reason, reason
        becomes("the second server", lambda: arrives_from(lab, lab.provider2), 30, watchdog)
        assert time.monotonic() - started <= 20, watchdog.log()
        becomes("that all is well", watchdog.active, 10, watchdog)
        assert "203.0.113.51:51820: the peer is dead" in watchdog.log()
        assert watchdog.metrics()["init_wg_failovers_total"] == 1

        lab.provider2.silence()
        becomes("a failed try", lambda: watchdog.metrics()["init_wg_failed_repairs_total"], 60, watchdog)
        reason = watchdog.ask()
        assert reason.startswith("VPN is not active: "), reason
        assert "no handshake" in reason or "nothing heard" in reason, reason
        assert watchdog.ask("/livez") == "the watchdog works"
        lab.provider.speak()
        becomes("the first server", lambda: arrives_from(lab, lab.provider), 60, watchdog)
        becomes("that all is well", watchdog.active, 10, watchdog)


def test_a_name_whose_address_changes_is_followed(pod: Pod) -> None:
    lab, provider = pod.lab, pod.lab.provider
    old, new = f"{provider.addresses[4]}/24", f"{MOVED.address}/24"
    lab.zone({NAME: [provider.addresses[4]]})
    config = lab.config(lab.folder / "named" / "wg0.conf", endpoint=f"{NAME}:51820")
    with pod.watchdog(WG_CONFIG=str(config)) as watchdog, contextlib.ExitStack() as world:
        watchdog.settle()
        assert arrives_from(lab, provider)
        world.callback(move, provider, new, old)
        lab.zone({NAME: [MOVED.address]})
        move(provider, old, new)
        becomes("the new address", lambda: lab.traffic_source(4, 0.3) == MOVED.address, 40, watchdog)
        becomes("that all is well", watchdog.active, 10, watchdog)
        # WireGuard itself may follow the server's packets at once, without a run; and a page may be a moment old.
        becomes("told so", lambda: f"{MOVED.address}:51820" in watchdog.ask("/status"), 10, watchdog)


def move(provider: Provider, before: str, after: str) -> None:
    """Another address on its one link; the default route goes with the old one, and comes back."""
    provider.run(["ip", "address", "add", after, "dev", "eth0"])
    provider.run(["ip", "address", "delete", before, "dev", "eth0"])
    provider.run(["ip", "address", "replace", after, "dev", "eth0"])  # it was the second of its network
    provider.run(["ip", "route", "replace", "default", "via", provider.lab.node.addresses[4]])


# --- configuration ---------------------------------------------------------------------------------------------------


class Secret:
    """A folder as the kubelet mounts a Secret: every name leads through ..data, which is swapped as a whole."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.folder = lab.folder / f"secret-{os.urandom(4).hex()}"
        self.folder.mkdir(mode=0o700)
        self.number = 0

    def swap(self, name: str, text: str) -> None:
        self.number += 1
        new = self.folder / f"..{self.number}"
        new.mkdir(mode=0o700)
        (new / name).write_text(text)
        (new / name).chmod(0o600)
        (self.folder / "..data_tmp").symlink_to(new.name)
        (self.folder / "..data_tmp").rename(self.folder / "..data")
        if not (self.folder / name).is_symlink():
            (self.folder / name).symlink_to(f"..data/{name}")


def text_of(lab: Lab, *, provider: Provider | None = None, keepalive: int | None = None) -> str:
    return lab.config(lab.folder / "text" / "wg0.conf", provider=provider, keepalive=keepalive).read_text()


def test_a_swapped_secret_is_applied_in_place_and_a_bad_one_is_not(pod: Pod) -> None:
    lab = pod.lab
    secret = Secret(lab)
    secret.swap("wg0.conf", text_of(lab))
    with pod.watchdog(WG_CONFIG=str(secret.folder)) as watchdog:
        watchdog.settle()
        well = state_of(lab)
        with lab.pod.socket(socket.AF_INET, socket.SOCK_STREAM) as stream:
            stream.settimeout(5)
            stream.connect((lab.web.addresses[4], STREAM))
            secret.swap("wg0.conf", text_of(lab, keepalive=7))
            keepalive = ["wg", "show", "wg0", "persistent-keepalive"]
            becomes("the new setting", lambda: "\t7" in lab.pod.run(keepalive).stdout, 15, watchdog)
            watchdog.settle()

            secret.swap("wg0.conf", "<html>Please log in</html>\n")
            becomes("the complaint", lambda: "the new configuration is not applied" in watchdog.log(), 15, watchdog)
            assert "wg0.conf:1" in watchdog.ask("/status")
            assert arrives_from(lab, lab.provider)
            watchdog.settle()
            # What is set up stays, and is repaired as before.
            lab.pod.run(["ip", "rule", "delete", "table", "51820"])
            lab.pod.run(["ip", "link", "set", "wg0", "mtu", "1300"])
            becomes("a repair", lambda: state_of(lab) == well, 15, watchdog)
            watchdog.settle()
            assert "\t7" in lab.pod.run(keepalive).stdout
            swallow(stream)
            stream.send(b"still here")
            assert stream.recv(65536), "the connection through the tunnel did not live through it"

        secret.swap("wg0.conf", text_of(lab, provider=lab.provider2))
        becomes("the other provider", lambda: arrives_from(lab, lab.provider2), 15, watchdog)
        becomes("that all is well", watchdog.active, 10, watchdog)
        shown = json.loads(watchdog.ask("/status"))
        assert shown["bad_configuration"] is None
        assert documents.unnamed_fields(shown, "`/status`") == []


def swallow(stream: socket.socket) -> None:
    """Read what has come so far."""
    stream.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while stream.recv(1 << 16):
            pass
    stream.settimeout(15)


def test_sighup_reads_the_configuration_again(pod: Pod) -> None:
    with pod.watchdog() as watchdog:
        watchdog.settle()
        os.kill(watchdog.pid, signal.SIGHUP)
        becomes("a run", lambda: watchdog.metrics()['init_wg_runs_total{reason="config"}'] == 1, 10, watchdog)
        watchdog.settle()
        assert "asked to read the configuration again" in watchdog.log()


# --- exit verification -----------------------------------------------------------------------------------------------


def test_an_exit_that_is_wrong_three_times_is_left(pod: Pod) -> None:
    """Expected is the second provider's address: with the first one the tunnel counts as failed."""
    lab = pod.lab
    expected = lab.provider2.addresses[4]
    url = f"http://{lab.web.addresses[4]}/"
    with pod.watchdog(VERIFY_URL=url, VERIFY_INTERVAL="1", VERIFY_EXPECT=expected) as watchdog:
        start_at_first(pod, watchdog)
        becomes("red", lambda: f"expected was {expected}" in watchdog.ask(), 30, watchdog)
        assert "(3 of 3)" in watchdog.log()
        becomes("the second server", lambda: arrives_from(lab, lab.provider2), 15, watchdog)
        becomes("that all is well", watchdog.active, 15, watchdog)
        assert f"the exit is {expected}" in watchdog.log()


@pytest.mark.parametrize("exits", ["good", "bad", "dead"])
def test_what_the_exit_check_may_hear(pod: Pod, exits: str) -> None:
    """Mullvad's JSON says yes; it says no; nobody answers."""
    lab = pod.lab
    port = {"good": HTTP, "bad": 8100, "dead": 8101}[exits]
    address = lab.web.addresses[4]
    if exits == "bad":
        argv = [sys.executable, "-I", "-S", str(SERVICES), f"http:{address}:{port}"]
        service = lab.web.popen(argv, env={"LAB_EXITS": ""}, new_session=True)
    config = str(lab.config_path)
    with pod.watchdog(WG_CONFIG=config, VERIFY_URL=f"http://{address}:{port}/json", VERIFY_INTERVAL="1") as watchdog:
        watchdog.settle()
        if exits == "good":
            passed = 'init_wg_exit_checks_total{result="passed"}'
            becomes("two passed checks", lambda: watchdog.metrics()[passed] >= 2, 15, watchdog)
            assert watchdog.active()
        else:
            words = "which is not one of Mullvad's exits" if exits == "bad" else "the exit check got no answer"
            becomes("red", lambda: words in watchdog.ask(), 30, watchdog)
            assert watchdog.ask().startswith("VPN is not active: ")
    if exits == "bad":
        service.kill()
        service.wait()


# --- signals and killing ---------------------------------------------------------------------------------------------

FIRST = ("unshare", "--pid", "--fork", "--mount-proc", "--")  # PID 1 of its own namespace, as in a container


@pytest.mark.parametrize("prefix", [(), FIRST], ids=["a process", "PID 1"])
def test_it_ends_at_once_idle_and_in_the_middle_of_a_repair(pod: Pod, prefix: tuple[str, ...]) -> None:
    lab = pod.lab
    cases = ((signal.SIGTERM, True), (signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGQUIT, True))
    for number, busy in cases:
        env = {**pod.watchdog().env, "WG_CONFIG": str(lab.config_path), "HANDSHAKE_TIMEOUT": "30"}
        with Watchdog(lab, env=env, prefix=prefix) as watchdog:
            watchdog.settle()
            well = state_of(lab)
            if busy:
                lab.provider.silence()
                lab.pod.run(["ip", "link", "delete", "wg0"])
                # It waits for a handshake now, and would for half a minute.
                becomes("a repair", lambda: "wg0" in lab.pod.run(["ip", "link"]).stdout and setups(lab), 10, watchdog)
            assert watchdog.end(number) < 1
            assert watchdog.process and watchdog.process.returncode == 0
            wait_until(lambda: not setups(lab), "the end of its children", 1)
            if busy:
                lab.provider.speak()
            elif not prefix or lab.kernel_wireguard:  # a PID namespace takes its processes along, wireguard-go too
                assert state_of(lab) == well
        assert "policy drop" in kill_switch(lab)
        pod.probes.round(1)
        nothing_leaked(pod.judge.verdict())


def kill_switch(lab: Lab) -> str:
    return lab.pod.run(["nft", "--stateless", "list", "table", "inet", "init_wg"]).stdout


def test_killed_at_random_instants_it_heals_when_started_again(pod: Pod) -> None:
    lab = pod.lab
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    for number in range(6):
        with pod.watchdog() as watchdog:
            lab.pod.run(["ip", "link", "delete", "wg0"], check=False)
            time.sleep(chance.uniform(0, 1.2))  # the random instant
            children = [pid for pid in watchdog.children() if pid in setups(lab)]
            watchdog.end(signal.SIGKILL)
            if number % 2:  # with its container; else the run that it began goes on without it
                for pid in children:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        pod.probes.round(1)
        nothing_leaked(pod.judge.verdict())
    with pod.watchdog() as watchdog:
        watchdog.settle()
        becomes(f"traffic (seed {seed})", lambda: lab.flows(0.5), 10, watchdog)
        checked = lab.init_wg("check", env=watchdog.env, check=False)
        assert checked.returncode == 0, checked.stdout


# --- chaos -----------------------------------------------------------------------------------------------------------


def test_a_short_time_of_chaos() -> None:
    """`make chaos` takes its time."""
    seed = random.randrange(1 << 32)
    with chaos.prepared(seed) as prepared:
        outcome = prepared.run(None, 20)
    print(chaos.report(outcome, seed))
    assert outcome.recovered
    assert not outcome.leaked, chaos.report(outcome, seed)
    assert not outcome.problems, chaos.report(outcome, seed)
