"""The server's volume: keys come back, numbers are never given twice, and no accident makes a new identity."""

from __future__ import annotations

import ctypes
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from init_wg.config import server_settings
from init_wg.errors import ConfigError, KernelError
from init_wg.model.secret import Secret
from init_wg.server import enrol, keys, linuxserver, store
from init_wg.server.design import register as registers
from init_wg.server.design.register import Makes, Register

MAKES = Makes(keys.pair, keys.preshared)
SUBNET = ip_network("10.13.13.0/24")
SERVER_KEY, _ = keys.pair()
EMPTY = Register(SERVER_KEY, {})
POOL = [keys.pair() for _ in range(64)]  # computing a public key takes milliseconds


def pooled() -> Makes:
    pairs = iter(POOL)
    return Makes(lambda: next(pairs), lambda: Secret(keys.preshared()))


# --- what may change -----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.lists(st.sampled_from("abcdef"), unique=True).map(tuple),
            st.sampled_from("abcdefgh").map(lambda name: f"add {name}"),
            st.sampled_from("abcdefgh").map(lambda name: f"remove {name}"),
        ),
        max_size=12,
    )
)
def test_no_key_changes_and_no_number_is_given_twice(changes: list[tuple[str, ...] | str]) -> None:
    makes = pooled()
    register, had, owners = EMPTY, dict[str, registers.Peer](), dict[int, str]()
    for change in changes:
        if isinstance(change, tuple):
            register = registers.listed(register, change, makes, 254)
            assert {name for name, peer in register.peers.items() if peer.active and not peer.added} == set(change)
        else:
            word, name = change.split()
            try:
                if word == "add":
                    register = registers.with_peer(register, name, None, makes, 254)
                else:
                    register = registers.without(register, name)
                    had.pop(name)
            except ConfigError:
                continue
        for name, peer in register.peers.items():
            known = had.setdefault(name, peer)
            assert known[:4] == peer[:4]
            assert owners.setdefault(peer.number, peer.public_key) == peer.public_key
        assert register.key == SERVER_KEY
        assert registers.decode(registers.encode(register)) == register


def test_the_lowest_number_never_used() -> None:
    register = registers.listed(EMPTY, ("a", "b", "c"), pooled(), 254)
    assert [register.peers[name].number for name in "abc"] == [2, 3, 4]
    makes = Makes(iter(POOL[8:]).__next__, lambda: None)
    register = registers.listed(registers.without(register, "b"), ("a", "c", "d"), makes, 254)
    assert register.peers["d"].number == 5
    assert register.peers["d"].preshared_key is None


def test_fewer_peers_and_then_more_gives_back_what_was() -> None:
    three = registers.listed(EMPTY, ("peer1", "peer2", "peer3"), MAKES, 254)
    two = registers.listed(three, ("peer1", "peer2"), MAKES, 254)
    assert not two.peers["peer3"].active
    assert registers.listed(two, ("peer1", "peer2", "peer3"), MAKES, 254) == three


def test_a_full_subnet_is_told() -> None:
    with pytest.raises(ConfigError, match="INTERNAL_SUBNET has no address left for peer b"):
        registers.listed(EMPTY, ("a", "b"), pooled(), 2)


def test_a_peer_with_a_key_of_its_own() -> None:
    register = registers.with_peer(EMPTY, "a", POOL[0][1], MAKES, 254)
    assert register.peers["a"].key is None
    assert register.peers["a"].active
    with pytest.raises(ConfigError, match="another peer has this public key"):
        registers.with_peer(register, "b", POOL[0][1], MAKES, 254)
    with pytest.raises(ConfigError, match="there is a peer a already"):
        registers.with_peer(register, "A", None, MAKES, 254)
    with pytest.raises(ConfigError, match="no such peer"):
        registers.without(register, "b")
    assert registers.listed(register, (), MAKES, 254).peers["a"].active  # PEERS says nothing about it


def test_other_networks_name_the_peers_with_outdated_files() -> None:
    register = registers.listed(EMPTY, ("a", "b"), pooled(), 254)
    register, outdated = registers.moved(register, ("10.13.13.0/24",), 100.0)
    assert (register.moved, outdated) == (0.0, ())
    register, outdated = registers.moved(registers.known(register, ("a",)), ("10.14.0.0/24",), 200.0)
    assert (register.moved, outdated) == (200.0, ("a",))
    assert registers.moved(register, ("10.14.0.0/24",), 300.0) == (register, ())


# --- the volume ----------------------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    folder = str(tmp_path)
    with store.locked(folder):
        assert store.load(folder) is None
        register = registers.listed(EMPTY, ("a", "b"), pooled(), 254)
        store.save(folder, register)
        assert store.load(folder) == register
    assert os.listdir(folder) == ["server.json"]
    assert stat.S_IMODE((tmp_path / "server.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


def test_keys_do_not_show() -> None:
    register = registers.listed(EMPTY, ("a",), MAKES, 254)
    secrets = [register.key, register.peers["a"].key, register.peers["a"].preshared_key]
    assert not [secret for secret in secrets if secret and secret in repr(register)]


def test_the_files_of_a_new_volume_are_nobodys(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    (tmp_path / ".server.json.77").write_text("half")
    assert store.load(str(tmp_path)) is None


def test_another_volume_gives_no_new_identity(tmp_path: Path) -> None:
    (tmp_path / "database.sqlite").touch()
    with pytest.raises(ConfigError, match=r"there is database.sqlite, but no server.json"):
        store.load(str(tmp_path))


def test_without_a_volume_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mount a volume there"), store.locked(str(tmp_path / "absent")):
        pass


GOOD = registers.encode(registers.listed(EMPTY, ("a", "b"), pooled(), 254))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "null",
        GOOD[: len(GOOD) // 2],
        GOOD.replace('"version": 1', '"version": 2'),
        GOOD.replace('"number": 3', '"number": 2'),
        GOOD.replace('"number": 3', '"number": 1'),
        GOOD.replace('"number": 3', '"number": true'),
        GOOD.replace('"b": {', '"../b": {'),
        GOOD.replace(SERVER_KEY, SERVER_KEY[:-2] + "="),
        GOOD.replace(SERVER_KEY, "A" * 43 + "="),
        GOOD.replace(POOL[1][1], POOL[0][1]),
        "\x00\x01",
    ],
)
def test_a_damaged_file_is_told_and_kept(text: str, tmp_path: Path) -> None:
    assert text != GOOD
    (tmp_path / "server.json").write_text(text)
    with pytest.raises(ConfigError, match=r"server.json: damaged \(.*\): restore it") as refused:
        store.load(str(tmp_path))
    assert SERVER_KEY not in str(refused.value)
    assert (tmp_path / "server.json").read_text() == text


def test_an_unfinished_file_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / ".server.json.1").write_text("half")
    store.save(str(tmp_path), EMPTY)
    assert os.listdir(tmp_path) == ["server.json"]


# --- accidents -----------------------------------------------------------------------------------------------------

#: Ends itself by SIGKILL at the n-th call of the system that saving makes; before or after that call.
KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from init_wg.server import store
from init_wg.server.design import register as registers
folder, point, after = sys.argv[2], int(sys.argv[3]), sys.argv[4] == "after"
calls = 0
def counted(name):
    real = getattr(os, name)
    def call(*arguments, **named):
        global calls
        calls += 1
        mine = calls == point
        if mine and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        if mine and name == "write":
            real(arguments[0], arguments[1][:len(arguments[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        answer = real(*arguments, **named)
        if mine:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer
    setattr(os, name, call)
register = registers.without(store.load(folder), "a")
for each in ("chmod", "listdir", "open", "write", "fsync", "close", "rename"):
    counted(each)
store.save(folder, register)
print(calls)
"""


def run_killed(folder: Path, point: int, when: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", KILLED, str(Path(__file__).parents[2]), str(folder), str(point), when]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def test_killed_at_every_call_the_old_or_the_new_is_there(tmp_path: Path) -> None:
    old = registers.listed(EMPTY, ("a", "b"), pooled(), 254)
    new = registers.without(old, "a")
    store.save(str(tmp_path), old)
    whole = run_killed(tmp_path, 0, "before")  # the positive control: nothing kills it
    assert store.load(str(tmp_path)) == new
    found = set()
    for point in range(1, int(whole.stdout) + 1):
        for when in ("before", "after"):
            store.save(str(tmp_path), old)
            assert run_killed(tmp_path, point, when).returncode == -9
            there = store.load(str(tmp_path))
            assert there in (old, new)
            found.add(there == old)
    assert found == {True, False}


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A volume of 16 KiB."""
    if os.geteuid():
        pytest.skip("only root mounts")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", os.fsencode(tmp_path), b"tmpfs", 0, b"size=16k"):
        pytest.skip("this machine mounts no tmpfs")
    yield tmp_path
    libc.umount2(os.fsencode(tmp_path), 2)


def test_a_full_volume_keeps_what_it_has(small: Path) -> None:
    register = registers.listed(EMPTY, ("a",), pooled(), 254)
    store.save(str(small), register)
    many = {f"p{n}": registers.Peer(POOL[1][1], None, None, n + 9, active=True) for n in range(200)}
    with pytest.raises(KernelError, match="the volume is full"):
        store.save(str(small), register._replace(peers=many))
    assert store.load(str(small)) == register
    assert os.listdir(small) == ["server.json"]


# --- linuxserver's -------------------------------------------------------------------------------------------------


def linuxserver_volume(folder: Path) -> dict[str, tuple[str, str]]:
    """As its container leaves it for PEERS=1 and later PEERS=phone: names, private keys and addresses."""
    made = {}
    (folder / "server").mkdir()
    (folder / "server/privatekey-server").write_text(f"{SERVER_KEY}\n")
    (folder / "wg_confs").mkdir()
    (folder / "coredns").mkdir()
    (folder / ".donoteditthisfile").write_text('ORIG_PEERS="1"\n')
    for number, entry in enumerate(("peer1", "peer_phone"), 2):
        (folder / entry).mkdir()
        (folder / entry / f"privatekey-{entry}").write_text(f"{POOL[number][0]}\n")
        (folder / entry / f"presharedkey-{entry}").write_text(f"{keys.preshared()}\n")
        address = f"10.13.13.{number * 3}"
        (folder / entry / f"{entry}.conf").write_text(f"[Interface]\nAddress = {address}\nListenPort = 51820\n")
        made[entry.removeprefix("peer_")] = (str(POOL[number][0]), address)
    return made


def test_a_volume_of_linuxserver_is_adopted(tmp_path: Path) -> None:
    made = linuxserver_volume(tmp_path)
    assert linuxserver.is_there(str(tmp_path))
    register = linuxserver.adopted(str(tmp_path), SUBNET)  # type: ignore[arg-type]
    assert register.key == SERVER_KEY
    assert {name: (peer.key, f"10.13.13.{peer.number}") for name, peer in register.peers.items()} == made
    assert all(peer.preshared_key for peer in register.peers.values())
    assert {name: peer.public_key for name, peer in register.peers.items()} == {
        "peer1": POOL[2][1],
        "phone": POOL[3][1],
    }
    before = sorted(tmp_path.rglob("*"))
    store.save(str(tmp_path), register)
    assert store.load(str(tmp_path)) == register
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "server.json"])


def test_an_older_volume_has_no_preshared_keys(tmp_path: Path) -> None:
    linuxserver_volume(tmp_path)
    (tmp_path / "peer1/presharedkey-peer1").unlink()
    assert linuxserver.adopted(str(tmp_path), SUBNET).peers["peer1"].preshared_key is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("server/privatekey-server", "", "server/privatekey-server: empty"),
        ("peer1/privatekey-peer1", "", "peer1/privatekey-peer1: empty"),
        ("peer1/presharedkey-peer1", "\n", "peer1/presharedkey-peer1: empty"),
        ("peer1/privatekey-peer1", "half a key", "peer1/privatekey-peer1: the key has 10 characters"),
        ("peer1/peer1.conf", "[Interface]\n", "peer1/peer1.conf: it has no Address"),
        ("peer1/peer1.conf", "[Interface]\nAddress = 10.9.9.2\n", r"peer1.conf:2: Address is none of a peer in 10.13"),
        ("peer1/peer1.conf", "[Interface]\nAddress = 10.13.13.1\n", r"peer1.conf:2: Address is none of a peer"),
        ("peer1/peer1.conf", "[Interface]\nAddress = fd00::2\n", r"peer1.conf:2: .*no IPv4 address"),
        ("peer1/peer1.conf", "[Interface]\nAddress = 10.13.13.9\n", "the same address"),
    ],
)
def test_what_is_wrong_with_it_is_named(file: str, text: str, says: str, tmp_path: Path) -> None:
    linuxserver_volume(tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(ConfigError, match=says):
        linuxserver.adopted(str(tmp_path), SUBNET)  # type: ignore[arg-type]


# --- the list of peers, and the volume -----------------------------------------------------------------------------


def enrolled(folder: Path, **environment: str) -> enrol.Enrolled:
    return enrol.enrol(server_settings.read({"SERVER_DATA": str(folder), "INTERNAL_SUBNET6": "none", **environment}))


def test_a_server_that_runs_goes_on_with_what_it_has(tmp_path: Path) -> None:
    """A wrong list stops nobody: it is told beside."""
    listed = tmp_path / "peers"
    data, new = tmp_path / "data", tmp_path / "new"
    data.mkdir()
    new.mkdir()
    listed.write_text("phone\nlaptop\n")
    first = enrolled(data, PEERS_FILE=str(listed))
    assert (set(first.register.peers), first.failure) == ({"phone", "laptop"}, None)
    listed.write_text("phone\nPhone\n")
    second = enrolled(data, PEERS_FILE=str(listed))
    assert second.register == first.register
    assert "capitals" in str(second.failure)
    listed.unlink()
    third = enrolled(data, PEERS_FILE=str(listed))
    assert third.register == first.register
    assert "no such file" in str(third.failure)
    with pytest.raises(ConfigError, match="no such file"):  # nothing is there to go on with
        enrolled(new, PEERS_FILE=str(listed))


def test_a_full_volume_serves_those_it_knows(small: Path) -> None:
    first = enrolled(small, PEERS="a,b")
    (small / ".filler").write_bytes(b"x" * 3 * 4096)
    second = enrolled(small, PEERS="a,c")
    assert "the volume is full" in str(second.failure)
    assert second.failure is not None
    assert second.failure.exit_code == 3
    assert {name for name, peer in second.register.peers.items() if peer.active} == {"a"}
    (small / ".filler").unlink()
    third = enrolled(small, PEERS="a,c")
    assert third.failure is None
    assert third.register.peers["a"] == first.register.peers["a"]
    assert third.register.peers["c"].number == 4


def test_a_volume_of_linuxserver_becomes_ours(tmp_path: Path) -> None:
    made = linuxserver_volume(tmp_path)
    found = enrolled(tmp_path, PEERS="phone,new").register
    assert found.key == SERVER_KEY
    assert found.peers["phone"].key == made["phone"][0]
    assert found.peers["phone"].active
    assert not found.peers["peer1"].active
    assert found.peers["new"].number == 2
    assert enrolled(tmp_path, PEERS="phone,new").register == found


def test_a_subnet_that_became_too_small_is_told(tmp_path: Path) -> None:
    enrolled(tmp_path, PEERS="9")
    found = enrolled(tmp_path, PEERS="9", INTERNAL_SUBNET="10.13.13.0/29")
    assert "INTERNAL_SUBNET is too small for peer peer6" in str(found.failure)
