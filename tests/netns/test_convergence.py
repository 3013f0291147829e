"""From wherever to the one right state: again, half-way, tampered with, older, foreign, at once; and back again.

What leaks meanwhile is the leak suite's subject; here a judge on the node watches too, but what is asked first is
whether `up` gets there, whether it left alone what was right, and whether `down` leaves what was there before.
"""

from __future__ import annotations

import contextlib
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from tests.lab.faults import FAULTS, Fault
from tests.lab.judge import Judge, for_lab
from tests.lab.lab import AF, HTTP, STREAM, Lab, LabError, wait_until

UP = (sys.executable, "-m", "init_wg", "up")
INTERRUPTED = (sys.executable, "-m", "tests.lab.interrupted", "up")
NFT_GETGEN = 10 << 8 | 16

# Everything of init_wg's, taken away by others' hands: quicker than `down`, and from any state.
WIPE = """
nft flush ruleset
for link in wg0 stolen0; do ip link delete $link; done
for family in -4 -6; do
    for pref in 100 200 300; do while ip $family rule delete pref $pref; do :; done; done
    for table in 51820 51821; do ip $family route flush table $table; done
    ip $family route flush proto 151
done
"""


@pytest.fixture(scope="module")
def machines() -> Iterator[tuple[Lab, Judge]]:
    with Lab() as lab, Judge(lab, for_lab(lab, lookups=["vpn.example"])) as judge:
        yield lab, judge


@pytest.fixture
def open_pod(machines: tuple[Lab, Judge]) -> Lab:
    """As if init_wg had never been here."""
    lab, _ = machines
    wipe(lab)
    lab.config()
    return lab


@pytest.fixture
def running(open_pod: Lab) -> Lab:
    """Set up, and right."""
    open_pod.init_wg("up")
    assert open_pod.flows()
    return open_pod


@pytest.fixture
def judge(machines: tuple[Lab, Judge]) -> Judge:
    return machines[1]


def wipe(lab: Lab) -> None:
    lab.pod.run(["sh", "-c", WIPE], check=False)


def is_right(lab: Lab) -> None:
    """By its own words, and by the traffic."""
    ended = lab.init_wg("check", check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert lab.flows(timeout=5)


def nothing_leaked(judge: Judge, about: str = "", spares: frozenset[str] = frozenset()) -> None:
    verdict = judge.verdict()
    assert not [leak for leak in verdict.leaks if leak.kind not in spares], f"{about}: {verdict}"


def attempts(lab: Lab) -> None:
    """What an application tries, also one that insists on the uplink. Whether it succeeds is not asked."""
    for family in lab.families:
        for options in ([], [(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")]):
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                with lab.pod.socket(AF[family], kind) as one, contextlib.suppress(OSError):
                    for option in options:
                        one.setsockopt(*option)
                    one.settimeout(0.1)
                    one.connect((lab.web.addresses[family], HTTP))
                    one.send(b"x")


def index(lab: Lab) -> int:
    return int(lab.pod.run(["cat", "/sys/class/net/wg0/ifindex"]).stdout)


def handshakes(lab: Lab) -> dict[str, int]:
    lines = lab.pod.run(["wg", "show", "wg0", "latest-handshakes"]).stdout.splitlines()
    return {key: int(when) for key, when in (line.split() for line in lines)}


@contextlib.contextmanager
def stream(lab: Lab) -> Iterator[Callable[[], None]]:
    """A connection through the tunnel. Asked whether it lives: the server pushes, and takes what it is sent."""
    with lab.pod.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
        connection.settimeout(10)
        connection.connect((lab.web.addresses[4], STREAM))

        def alive() -> None:
            connection.send(b"still here")
            # What waits in the buffer is from before; after it, something new has to come.
            connection.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while connection.recv(1 << 20):
                    continue
            connection.settimeout(10)
            assert connection.recv(1 << 20)

        alive()
        yield alive


# --- again -----------------------------------------------------------------------------------------------------------


def generation(lab: Lab) -> int:
    """The number of the pod's ruleset: nf_tables counts every transaction."""
    with lab.pod.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as kernel:
        kernel.send(struct.pack("=IHHIIBBH", 20, NFT_GETGEN, 1, 1, 0, 0, 0, 0))
        number: int = struct.unpack_from("!I", kernel.recv(4096), 24)[0]
        return number


@contextlib.contextmanager
def events(lab: Lab) -> Iterator[Callable[[], list[str]]]:
    """What rtnetlink tells of links, addresses, routes and rules meanwhile."""
    file = lab.folder / "ip-monitor"
    with file.open("wb") as output:
        monitor = lab.pod.popen(["ip", "monitor", "link", "address", "route", "rule"], stdout=output)
    sentinels = iter(range(20_000, 30_000))

    def sentinel() -> bool:
        """A rule that comes and goes, by which one sees that all before it has been told."""
        number = next(sentinels)
        lab.pod.run(["ip", "rule", "add", "pref", str(number), "lookup", "main"])
        lab.pod.run(["ip", "rule", "delete", "pref", str(number)])
        return f"Deleted {number}:" in file.read_text()

    def seen() -> list[str]:
        wait_until(sentinel, "ip monitor")
        return [line for line in file.read_text().splitlines() if not re.match(r"(Deleted )?2\d{4}:", line)]

    try:
        seen()
        yield seen
    finally:
        monitor.kill()
        monitor.wait()


@pytest.mark.parametrize("endpoint", [None, "vpn.example:51820"], ids=["an address", "a name"])
def test_up_again_changes_nothing(open_pod: Lab, endpoint: str | None) -> None:
    """No event of rtnetlink, no transaction of nf_tables, the same session, and a connection that lives on."""
    lab = open_pod
    lab.zone({"vpn.example": [lab.provider.addresses[4]]})
    lab.config(endpoint=endpoint)
    lab.init_wg("up")
    assert lab.flows()
    with stream(lab) as alive, events(lab) as seen:
        before = (index(lab), handshakes(lab), generation(lab))
        for word in ("up", "check", "lockdown", "up"):
            lab.init_wg(word)
            alive()
        assert (index(lab), handshakes(lab), generation(lab)) == before
        assert seen() == []


def test_thousands_of_bypass_networks(open_pod: Lab) -> None:
    """Of both families, and some that touch; what is missing later is mended, be it one or many."""
    lab = open_pod
    networks = [f"20.{number // 64}.{number % 64 * 3}.0/24" for number in range(2000)]
    networks += [f"2a00:{number:x}:8000::/{33 if number % 2 else 34}" for number in range(2000)]
    env = {"BYPASS_CIDRS": ",".join([*networks, "20.0.1.0/24", "20.0.5.0/25", "::ffff:20.0.0.0/104", "203.0.113.77"])}
    lab.init_wg("up", env=env)
    for missing in ("20.9.0.0/24", "20.16.0.0/12", "2a00::/25"):
        assert "everything is as it should be" in lab.init_wg("check", env=env).stdout
        family = "-6" if ":" in missing else "-4"
        lab.pod.run(["ip", family, "route", "flush", "proto", "151", "root", missing])
        assert lab.init_wg("check", env=env, check=False).returncode == 5
        lab.init_wg("up", env=env)
    assert "everything is as it should be" in lab.init_wg("check", env=env).stdout
    assert lab.flows()


def test_the_watch_sees_what_changes(running: Lab) -> None:
    """The control for the test above."""
    before = generation(running)
    with events(running) as seen:
        running.pod.run(["ip", "rule", "delete", "pref", "300"])
        running.init_wg("up")
        assert any("300:" in line for line in seen())
    running.pod.run(["nft", "add", "rule", "inet", "init_wg", "output", "accept"])
    assert generation(running) > before


# --- half-way --------------------------------------------------------------------------------------------------------


def test_killed_after_each_step(open_pod: Lab, judge: Judge) -> None:
    """From the first on, which is the lockdown, nothing gets out; the next `up` ends what the killed one began."""
    lab = open_pod
    for step in range(100):
        wipe(lab)
        killed = lab.pod.run(INTERRUPTED, env={**lab.pod_env, "INIT_WG_STOP_AFTER": str(step)}, check=False)
        if killed.returncode == 0:
            break
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        judge.mark()
        attempts(lab)
        lab.init_wg("up")
        is_right(lab)
        nothing_leaked(judge, f"killed after step {step}")
    assert step > 10, "there must be steps, and a way to stop after them"


def test_killed_at_random_instants(open_pod: Lab, judge: Judge) -> None:
    lab = open_pod
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    lab.init_wg("lockdown")
    started = time.monotonic()
    lab.init_wg("up")
    duration = time.monotonic() - started
    judge.mark()
    for number in range(21):
        delay = chance.uniform(0, duration)
        process = lab.pod.popen(UP, env=lab.pod_env)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(delay)
        process.kill()
        process.wait()
        attempts(lab)
        about = f"seed {seed}, number {number}, killed after {delay:.3f} s"
        nothing_leaked(judge, about)
        if number % 3 == 2:  # else the next one starts from what this one left
            lab.init_wg("up")
            is_right(lab)
            nothing_leaked(judge, about)
            wipe(lab)
            lab.init_wg("lockdown")
            judge.mark()


# --- tampered with, older, foreign -----------------------------------------------------------------------------------

# What is the world's fault, not the pod's, is for the leak suite; so is what needs time to be noticed.
PODS_OWN = [
    fault
    for fault in FAULTS
    if not fault.name.startswith(("peer-silent", "peer-with", "up-again", "router", "second-uplink"))
]


def test_combinations_of_faults(running: Lab, judge: Judge) -> None:
    """Two or three at once, in any order; some make others impossible, which is fine."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    judge.mark()
    for _ in range(6):
        several = chance.sample([fault for fault in PODS_OWN if fault.possible(running)], chance.choice((2, 2, 3)))
        about = f"seed {seed}: {' and '.join(map(str, several))}"
        broken: list[Fault] = []
        for fault in several:
            with contextlib.suppress(LabError, IndexError):
                broken.append(fault)
                fault.break_it(running)
        attempts(running)
        for fault in reversed(broken):
            with contextlib.suppress(LabError):
                fault.undo(running)
        ended = running.init_wg("up", check=False)
        assert ended.returncode == 0, f"{about}: {ended.stderr}"
        is_right(running)
        deleted = {"killswitch-deleted", "killswitch-flushed", "killswitch-policy-accept"}
        if deleted.isdisjoint(map(str, several)):
            nothing_leaked(judge, about, frozenset().union(*(fault.spares for fault in several)))
        judge.mark()


OLDER = {
    "rules of other preferences": """
        for family in -4 -6; do
            ip $family rule delete pref 300
            ip $family rule add not fwmark 51820 lookup 51820 pref 250
            ip $family rule add lookup main suppress_prefixlength 0 pref 249
        done""",
    "a kill-switch of another design": """
        nft flush ruleset
        nft '
            add table inet init_wg
            add set inet init_wg old { type ipv4_addr; elements = { 10.0.0.1 }; }
            add chain inet init_wg output { type filter hook output priority 0; policy drop; }
            add rule inet init_wg output oifname { "lo", "wg0" } accept
            add rule inet init_wg output meta mark 51820 accept
        ' """,
    "an egress gate and no more": "nft delete table inet init_wg",
    "another mark, another port": "wg set wg0 fwmark 4711 listen-port 4711",
    "routes of another metric": """
        ip -4 route flush table 51820
        ip -4 route add default dev wg0 table 51820 metric 77
        ip -6 route add blackhole default table 51820 metric 5""",
    "other addresses": """
        ip address flush dev wg0
        ip address add 10.64.99.99/32 dev wg0
        ip address add 10.64.12.34/24 dev wg0""",
}


@pytest.mark.parametrize("what", OLDER)
def test_an_older_state(running: Lab, what: str) -> None:
    before = index(running)
    running.pod.run(["sh", "-ec", OLDER[what]])
    assert running.init_wg("check", check=False).returncode == 5
    running.init_wg("up")
    is_right(running)
    assert index(running) == before, "mended in place"


FOREIGN = {
    "dummy": "ip link add name wg0 type dummy",
    "veth": "ip link add name wg0 type veth peer name elsewhere",
    "bridge": "ip link add name wg0 type bridge",
    "tun": "ip tuntap add dev wg0 mode tun",
    "tap": "ip tuntap add dev wg0 mode tap",
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_something_else_that_is_called_wg0(open_pod: Lab, judge: Judge, kind: str) -> None:
    lab = open_pod
    if not lab.pod.ok(FOREIGN[kind].split()):
        pytest.skip(f"this kernel has no {kind}")
    up = "ip link set wg0 up; ip address add 10.64.12.34/32 dev wg0; ip route add default dev wg0 table 51820"
    lab.pod.run(["sh", "-ec", up])
    lab.init_wg("lockdown")
    judge.mark()
    lab.init_wg("up")
    is_right(lab)
    nothing_leaked(judge, kind)


def test_the_other_implementation(running: Lab) -> None:
    """From kernel WireGuard to wireguard-go and back."""
    if not running.kernel_wireguard:
        pytest.skip("this kernel has no WireGuard; the tests in the QEMU guest have it")
    for implementation, kind in (("userspace", "tun"), ("kernel", "wireguard"), ("auto", "wireguard")):
        running.init_wg("up", env={"WG_IMPLEMENTATION": implementation})
        assert kind in running.pod.run(["ip", "-details", "link", "show", "wg0"]).stdout
        assert running.flows()


# --- changed in place ------------------------------------------------------------------------------------------------


def edit(lab: Lab, old: str, new: str) -> None:
    text, count = re.subn(old, new, lab.config_path.read_text())
    assert count == 1
    lab.config_path.write_text(text)


def test_a_peer_changes_and_the_other_session_goes_on(open_pod: Lab) -> None:
    """Two peers. One's keepalive, allowed IPs and preshared key change; the interface and the other do not notice."""
    lab = open_pod
    second = "10.99.0.0/16"
    peer = f"[Peer]\nPublicKey = {lab.provider2.public_key}\nAllowedIPs = {second}\nEndpoint = 203.0.113.52:51820\n"
    # Everything but the other's network: no address may be in two peers.
    edit(lab, r"AllowedIPs = .*", "AllowedIPs = 203.0.113.0/24, 2001:db8:113::/64, 10.64.0.1/32")
    lab.config_path.write_text(lab.config_path.read_text() + peer)
    lab.init_wg("up")
    lab.pod.ok(["ping", "-c", "1", "-W", "1", "10.99.0.1"])
    wait_until(lambda: handshakes(lab)[lab.provider2.public_key], "the second peer's handshake")
    with stream(lab) as alive:
        before = (index(lab), handshakes(lab))
        for old, new in (
            (second, f"{second}\nPersistentKeepalive = 20"),
            ("PersistentKeepalive = 20", "PersistentKeepalive = 21"),
            (second, "10.98.0.0/15"),
            ("203.0.113.52:51820", "203.0.113.52:51821"),
        ):
            edit(lab, re.escape(old), new)
            assert lab.init_wg("check", check=False).returncode == 5
            lab.init_wg("up")
            alive()
            now = (index(lab), handshakes(lab))
            assert now[0] == before[0]
            assert now[1][lab.provider.public_key] == before[1][lab.provider.public_key]
        edit(lab, re.escape(peer.splitlines()[1]), f"PublicKey = {'q' * 42}o=")
        lab.init_wg("up")
        alive()
        assert index(lab) == before[0]
        assert lab.provider2.public_key not in handshakes(lab)
    assert lab.init_wg("check").returncode == 0


def test_the_server_changes_in_place(running: Lab) -> None:
    """Another provider, another key of the pod, another MTU: one after the other, the interface stays."""
    lab = running
    before = index(lab)
    lab.config(provider=lab.provider2)
    lab.init_wg("up")
    assert lab.traffic_source(4) == lab.provider2.addresses[4]
    lab.config(mtu=1380)
    lab.init_wg("up")
    assert lab.traffic_source(4) == lab.provider.addresses[4]
    assert lab.pod.run(["cat", "/sys/class/net/wg0/mtu"]).stdout == "1380\n"
    private = subprocess.run(["wg", "genkey"], capture_output=True, check=True, text=True).stdout.strip()
    public = subprocess.run(["wg", "pubkey"], input=private, capture_output=True, check=True, text=True).stdout.strip()
    former = lab.pod_key
    lab.pod_key = public
    try:
        lab.provider.admit()
        lab.config(secret=private)
        lab.init_wg("up")
        is_right(lab)
        assert index(lab) == before
        assert lab.pod.run(["wg", "show", "wg0", "public-key"]).stdout.strip() == public
    finally:
        lab.provider.run(["wg", "set", "wg0", "peer", public, "remove"])
        lab.pod_key = former
        lab.provider.admit()


def test_the_uplink_moves_and_comes_back(running: Lab) -> None:
    """WireGuard goes on by the source address and the interface by which it last heard the peer; that way is gone."""
    lab = running
    lab.plug_second_uplink()
    try:
        lab.init_wg("up")
        assert lab.flows(timeout=2)
    finally:
        lab.unplug_second_uplink()
    started = time.monotonic()
    lab.init_wg("up")
    wait_until(lambda: lab.flows(timeout=0.5), "traffic by the first uplink")
    assert time.monotonic() - started < 8  # a session without an answer is given up after 15 s only
    is_right(lab)


# --- at once ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [2, 10])
def test_several_at_once(open_pod: Lab, judge: Judge, number: int) -> None:
    """One does it, the others find it done."""
    lab = open_pod
    lab.init_wg("lockdown")
    judge.mark()
    outputs = [lab.folder / f"at-once-{n}" for n in range(number)]
    several = []
    for output in outputs:
        with output.open("wb") as file:
            several.append(lab.pod.popen(UP, env=lab.pod_env, stdout=file, stderr=file))
    assert [process.wait(60) for process in several] == [0] * number, [o.read_text() for o in outputs]
    assert sum("wg0 is up" in output.read_text() for output in outputs) == 1
    assert not any("error" in output.read_text() for output in outputs)
    is_right(lab)
    nothing_leaked(judge)


IMPATIENT = "import sys; from init_wg.setup import connect; connect.LOCK_TIMEOUT = 0.5; sys.argv = ['init-wg', 'up']; "
IMPATIENT += "from init_wg.__main__ import main; main()"
HOLDER = (
    "from init_wg.kernel import lock; held = lock.acquire(5); print('held', flush=True); import sys; sys.stdin.read()"
)


@pytest.fixture
def holder(open_pod: Lab) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has the lock and does nothing."""
    process = open_pod.pod.popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout
    assert process.stdin
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_a_holder_that_hangs(open_pod: Lab, judge: Judge, holder: subprocess.Popen[bytes]) -> None:
    """Sealed all the same; after the timeout one line says who it is."""
    ended = open_pod.pod.run([sys.executable, "-c", IMPATIENT], env=open_pod.pod_env, check=False)
    assert ended.returncode == 3, ended.stderr
    last = ended.stderr.splitlines()[-1]
    who = f"another init-wg (process {holder.pid}) has been at work for 0.5 s"
    assert last == f"init-wg: error: {who}: end it, then try again"
    judge.mark()
    attempts(open_pod)
    nothing_leaked(judge)


def test_a_holder_that_ends(open_pod: Lab, holder: subprocess.Popen[bytes]) -> None:
    """However it ends: whoever waits goes on at once."""
    waiting = open_pod.pod.popen(UP, env=open_pod.pod_env)
    time.sleep(1)  # an observation: it waits
    assert waiting.poll() is None
    holder.kill()
    assert waiting.wait(60) == 0
    is_right(open_pod)


# --- others' things, and back ----------------------------------------------------------------------------------------

OTHERS = """
table ip docker {
    chain DOCKER_OUTPUT {
        type nat hook output priority -100; policy accept;
        ip daddr 127.0.0.11 tcp dport 53 counter dnat to 127.0.0.11:34567
        ip daddr 127.0.0.11 udp dport 53 counter dnat to 127.0.0.11:34568
    }
    chain DOCKER_POSTROUTING {
        type nat hook postrouting priority 100; policy accept;
        ip saddr 127.0.0.11 udp sport 34568 counter snat to :53
    }
}
table ip istio {
    set excluded { type ipv4_addr; flags interval; elements = { 10.43.0.0/16 } }
    chain ISTIO_OUTPUT {
        type nat hook output priority -99; policy accept;
        meta skuid 1337 return
        ip daddr @excluded return
        ip daddr 192.0.2.1 tcp dport 80 counter redirect to :15001
    }
}
table inet filter {
    chain input {
        type filter hook input priority 10; policy accept;
        counter
    }
}
"""
LEGACY = shutil.which("iptables-legacy")


def others(lab: Lab) -> str:
    """The tables that are not ours, without counters."""
    lists = "; ".join(f"nft --stateless list table {table}" for table in ("ip docker", "ip istio", "inet filter"))
    legacy = "; iptables-legacy -S; iptables-legacy -t nat -S" if LEGACY else ""
    return lab.pod.run(["sh", "-ec", lists + legacy]).stdout


def test_others_tables_stay_as_they_are(open_pod: Lab) -> None:
    lab = open_pod
    lab.pod.run(["nft", "-f", "-"], stdin=OTHERS)
    if LEGACY:
        lab.pod.run(["iptables-legacy", "-t", "nat", "-A", "OUTPUT", "-d", "192.0.2.7", "-j", "RETURN"])
        lab.pod.run(["iptables-legacy", "-A", "INPUT", "-s", "192.0.2.8", "-j", "DROP"])
    before = others(lab)
    assert before.count("table ") == 3
    for word in ("lockdown", "up", "up", "check", "down", "up", "down"):
        lab.init_wg(word)
        assert others(lab) == before, word
        if word == "up":
            assert lab.flows()
    if LEGACY:
        lab.pod.run(["sh", "-c", "iptables-legacy -F; iptables-legacy -t nat -F"])


def everything(lab: Lab) -> str:
    """What a namespace has, but for connections and neighbours."""
    commands = ("ip rule", "ip -6 rule", "ip route show table all", "ip -6 route show table all")
    more = ("nft --stateless list ruleset", "ip -details link", "ip address")
    shown = lab.pod.run(["sh", "-ec", "; ".join([*commands, *more])]).stdout
    return re.sub(r" (expires|valid_lft|preferred_lft) \S+", "", shown)


def test_down_leaves_what_was_there(open_pod: Lab) -> None:
    lab = open_pod
    lab.pod.run(["nft", "-f", "-"], stdin=OTHERS)
    lab.pod.run(["ip", "rule", "add", "pref", "1000", "from", "192.0.2.0/24", "lookup", "77"])
    lab.pod.run(["ip", "route", "add", "198.18.0.0/15", "via", lab.gateway(4), "table", "77"])
    try:
        before = everything(lab)
        for words in (("up",), ("up", "up"), ("lockdown",)):
            for word in words:
                lab.init_wg(word)
            assert everything(lab) != before
            lab.init_wg("down")
            assert everything(lab) == before
        lab.init_wg("down")
        assert everything(lab) == before
        assert lab.traffic_source(4) == lab.pod.addresses[4]
    finally:
        lab.pod.run(["ip", "rule", "delete", "pref", "1000"])
        lab.pod.run(["ip", "route", "flush", "table", "77"])
