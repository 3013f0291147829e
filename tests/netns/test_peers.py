"""`init-wg peer` on a real server: who is added joins, who is removed is refused at once, others notice nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from init_wg.config import syntax
from init_wg.server import qr
from tests.lab.lab import HTTP, ip_batch, wait_until
from tests.lab.served import CONFINED, SUBNET6, ServerLab


@pytest.fixture(scope="module")
def lab() -> Iterator[ServerLab]:
    """A server whose list names one peer, which has joined."""
    with ServerLab() as made:
        made.run_server("up", env=LISTED)
        made.join(made.lan, made.run_server("peer", "show", "lan", env=LISTED).stdout)
        wait_until(lambda: reaches(made, "lan"), "the listed peer reaches the web")
        yield made


LISTED = {"PEERS": "lan"}


def listed(lab: ServerLab, env: Mapping[str, str] = LISTED) -> dict[str, Any]:
    """What `peer list` tells of each peer."""
    told = lab.run_server("peer", "list", "--json", env=env).stdout
    return {row["name"]: row for row in json.loads(told)["peers"]}


def peer(lab: ServerLab, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return lab.run_server("peer", *words, check=check, env=LISTED)


def reaches(lab: ServerLab, name: str, timeout: float = 2.0) -> bool:
    """Does the web see this peer with the server's address?"""
    member = lab.lan if name == "lan" else lab.roadwarrior
    return lab.request(member, lab.web.addresses[4], HTTP, timeout=timeout) == lab.pod.addresses[4]


def on_device(lab: ServerLab) -> set[str]:
    """The public keys that the server's device accepts."""
    return set(lab.pod.run(["wg", "show", "wg0", "peers"]).stdout.split())


def public_key(lab: ServerLab, name: str) -> str:
    found: str = lab.register()["peers"][name]["public_key"]
    return found


def secrets(lab: ServerLab) -> list[str]:
    register = lab.register()
    peers = register["peers"].values()
    return [register["key"], *(each[key] for each in peers for key in ("key", "preshared_key") if each.get(key))]


def added(lab: ServerLab, name: str) -> subprocess.CompletedProcess[str]:
    """Add a peer, unless it is there."""
    told = peer(lab, "add", name, check=False)
    assert told.returncode == 0 or "already" in told.stderr
    return told


def test_a_peer_that_is_added_joins_and_one_that_is_removed_is_refused(lab: ServerLab) -> None:
    """The other peer loses no packet meanwhile. Who comes back by the same name is somebody else."""
    argv = ["ping", "-n", "-q", "-i", "0.05", "-c", "120", lab.web.addresses[4]]
    pinging = lab.lan.popen(argv, stdout=subprocess.PIPE)
    told = peer(lab, "add", "roadwarrior")
    assert told.stdout == ""
    assert "peer roadwarrior is added: init-wg peer show roadwarrior prints its file" in told.stderr
    first = lab.register()["peers"]["roadwarrior"]
    lab.join(lab.roadwarrior, peer(lab, "show", "roadwarrior").stdout)
    wait_until(lambda: reaches(lab, "roadwarrior"), "the new peer reaches the web")
    rows = listed(lab)
    assert rows["roadwarrior"]["latest_handshake"] > 0
    assert rows["roadwarrior"]["received_bytes"] > 0

    told = peer(lab, "remove", "roadwarrior")
    assert "peer roadwarrior is removed, and its keys are destroyed" in told.stderr
    assert first["public_key"] not in on_device(lab)
    assert not reaches(lab, "roadwarrior", timeout=0.7)
    assert first["key"] not in (lab.data / "server.json").read_text()
    assert "everything is as it should be" in lab.run_server("check", env=LISTED).stdout

    peer(lab, "add", "roadwarrior")
    second = lab.register()["peers"]["roadwarrior"]
    assert not {first[key] for key in ("key", "public_key", "preshared_key", "number")} & set(second.values())
    assert not reaches(lab, "roadwarrior", timeout=0.7)  # the client still has the file that was revoked
    lab.leave(lab.roadwarrior)
    peer(lab, "remove", "roadwarrior")
    assert " 120 received" in pinging.communicate()[0].decode()


def test_the_file_is_the_same_as_text_and_in_a_secret(lab: ServerLab) -> None:
    text = peer(lab, "show", "lan").stdout
    assert text == lab.client_file("lan", **LISTED)
    syntax.sections(text, "lan.conf")  # and wgconfig reads the same
    told = peer(lab, "secret", "lan")
    assert told.stdout.endswith(f"stringData:\n  lan.conf: |\n{textwrap.indent(text, '    ')}")
    assert told.stderr == ""


def test_a_code_goes_to_a_terminal_or_where_force_sends_it(lab: ServerLab) -> None:
    text = peer(lab, "show", "lan").stdout
    told = peer(lab, "show", "lan", "--qr", check=False)
    assert (told.returncode, told.stdout) == (2, "")
    assert "stdout is no terminal" in told.stderr
    assert peer(lab, "show", "lan", "--qr", "--force").stdout.encode() == qr.terminal(text)
    assert peer(lab, "show", "lan", "--svg").stdout.encode() == qr.picture(text, "svg")


def test_only_the_files_need_to_know_where_the_server_is(lab: ServerLab) -> None:
    for url, why in (("", "is not set"), ("auto", "is auto, and this pod has no public address")):
        settings = {**LISTED, "SERVERURL": url}
        for words in (("show", "lan"), ("secret", "lan")):
            told = lab.run_server("peer", *words, env=settings, check=False)
            assert (told.returncode, told.stdout) == (2, "")
            assert f"environment: SERVERURL {why}: set it" in told.stderr
        assert lab.run_server("up", env=settings).returncode == 0
        assert "lan" in lab.run_server("peer", "list", env=settings).stdout


def test_a_peer_can_keep_its_private_key(lab: ServerLab) -> None:
    key = subprocess.run(["wg", "genkey"], capture_output=True, text=True, check=True).stdout
    public = subprocess.run(["wg", "pubkey"], input=key, capture_output=True, text=True, check=True).stdout.strip()
    peer(lab, "add", "own", "--public-key", public)
    try:
        assert public in on_device(lab)
        text = peer(lab, "show", "own").stdout
        assert f"# PrivateKey = the one of the public key {public}\n" in text
        lab.join(lab.roadwarrior, re.sub("# PrivateKey = .*", f"PrivateKey = {key.strip()}", text))
        wait_until(lambda: reaches(lab, "roadwarrior"), "it joins with its own key")
        lab.leave(lab.roadwarrior)
        for words in (("show", "own", "--svg"), ("secret", "own")):
            told = peer(lab, *words, check=False)
            assert (told.returncode, told.stdout) == (2, "")
            assert "keeps its private key itself" in told.stderr
    finally:
        peer(lab, "remove", "own")


def test_no_secret_is_told_unasked(lab: ServerLab) -> None:
    added(lab, "quiet")
    kept = secrets(lab)
    told = [
        peer(lab, *words, check=False)
        for words in (
            ("list",),
            ("list", "--json"),
            ("add", "lan"),
            ("add", "quiet"),
            ("show", "nobody"),
            ("remove", "lan"),
        )
    ]
    told += [peer(lab, "show", "quiet", "--qr", check=False), peer(lab, "remove", "quiet")]
    assert not [secret for each in told for secret in kept if secret in each.stdout + each.stderr]


def test_other_networks_mark_the_peers_that_need_their_new_file(lab: ServerLab) -> None:
    moved = {**LISTED, "INTERNAL_SUBNET": "10.14.14.0/24"}
    told = lab.run_server("up", env=moved)
    assert "need their file anew (init-wg peer show NAME): lan" in told.stderr
    assert "needs its new file" in lab.run_server("peer", "list", env=moved).stdout
    lab.run_server("peer", "add", "later", env=moved)
    rows = listed(lab, moved)
    assert [rows[name]["needs_new_file"] for name in ("lan", "later")] == [True, False]
    lab.run_server("peer", "remove", "later", env=moved)
    lab.leave(lab.lan)
    lab.run_server("up", env=LISTED)
    lab.join(lab.lan, peer(lab, "show", "lan").stdout)
    wait_until(lambda: reaches(lab, "lan"), "the listed peer is back")
    wait_until(lambda: "needs its new file" not in peer(lab, "list").stdout, "its handshake is newer than the move")


# --- a removal that does not come to its end -----------------------------------------------------------------------

#: The program, ended by SIGKILL before or after its n-th change of the volume or the device.
KILLED = """
import os, signal, sys
from init_wg.kernel import device
from init_wg.server import store
point, after = int(sys.argv.pop(1)), sys.argv.pop(1) == "after"
calls = 0
def counted(module, name):
    real = getattr(module, name)
    def call(*arguments):
        global calls
        calls += 1
        mine = calls == point
        if mine and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        real(*arguments)
        if mine:
            os.kill(os.getpid(), signal.SIGKILL)
    setattr(module, name, call)
counted(store, "save")
counted(device, "write")
from init_wg.__main__ import main
main()
"""
CHANGES = 3  # of a removal: the peer is suspended; the device forgets it; its keys are destroyed


def test_a_removal_that_is_killed_is_finished_by_the_next_run(lab: ServerLab) -> None:
    """From its first change on, no run lets the peer in again, and the same command comes to its end."""
    found = set()
    for point in range(1, CHANGES + 1):
        for when in ("before", "after"):
            added(lab, "victim")
            key = public_key(lab, "victim")
            argv = [*CONFINED, sys.executable, "-c", KILLED, str(point), when, "peer", "remove", "victim"]
            ended = lab.pod.run(argv, env={**lab.server_env, **LISTED}, check=False)
            assert ended.returncode == -9
            assert "is removed" not in ended.stderr
            lab.run_server("up", env=LISTED)  # as the watchdog does
            begun = (point, when) != (1, "before")
            found.add(key in on_device(lab))
            assert (key in on_device(lab)) is not begun
            told = peer(lab, "remove", "victim", check=False)
            assert told.returncode == (2 if (point, when) == (CHANGES, "after") else 0)
            assert key not in on_device(lab)
            assert "victim" not in lab.register()["peers"]
    assert found == {True, False}
    added(lab, "victim")
    argv = [*CONFINED, sys.executable, "-c", KILLED, str(CHANGES + 1), "before", "peer", "remove", "victim"]
    assert lab.pod.run(argv, env={**lab.server_env, **LISTED}).returncode == 0  # there is no further change


def test_a_removal_says_what_holds_when_the_server_cannot_be_set_right(lab: ServerLab) -> None:
    added(lab, "victim")
    key = public_key(lab, "victim")
    # Site networks that overlap the pod's own: every `up` ends with exit code 2.
    told = lab.run_server(
        "peer", "remove", "victim", env={**LISTED, "SERVER_ALLOWEDIPS_PEER_lan": "10.42.0.0/16"}, check=False
    )
    assert told.returncode == 2
    assert "peer victim is removed and its keys are destroyed, but the server is not as it should be: " in told.stderr
    assert "10.42.0.0/16 overlaps" in told.stderr
    assert key not in on_device(lab)
    assert reaches(lab, "lan")


def test_a_removal_waits_for_a_device_that_answers(lab: ServerLab) -> None:
    """Not removed, says the error, and once the device is mended it is."""
    added(lab, "victim")
    key = public_key(lab, "victim")
    ip_batch("link add name other type veth peer name other-peer", netns=lab.pod.netns)  # there, and no WireGuard
    other = {"WG_INTERFACE": "other"}
    told = lab.run_server("peer", "remove", "victim", env={**LISTED, **other}, check=False)
    ip_batch("link delete other", netns=lab.pod.netns)
    assert told.returncode == 3
    assert "peer victim may still be served: run init-wg peer remove victim again" in told.stderr
    assert "victim" in lab.register()["peers"]
    lab.run_server("up", env=LISTED)
    assert key not in on_device(lab)
    peer(lab, "remove", "victim")
    assert "victim" not in lab.register()["peers"]


def test_a_peer_with_networks_behind_it_is_refused_before_it_is_removed(lab: ServerLab) -> None:
    """Without its name every later run would reject the variable, and repair nothing."""
    added(lab, "victim")
    key = public_key(lab, "victim")
    behind = {**LISTED, "SERVER_ALLOWEDIPS_PEER_victim": "192.168.99.0/24"}
    lab.run_server("up", env=behind)
    told = lab.run_server("peer", "remove", "victim", env=behind, check=False)
    assert told.returncode == 2
    assert "which is refused from now on: delete SERVER_ALLOWEDIPS_PEER_victim" in told.stderr
    assert key not in on_device(lab)
    lab.run_server("up", env=behind)
    assert key not in on_device(lab)
    peer(lab, "remove", "victim")
    assert "victim" not in lab.register()["peers"]


def test_an_added_peer_that_cannot_be_served_yet_is_told(lab: ServerLab) -> None:
    wrong = {**LISTED, "SERVER_ALLOWEDIPS_PEER_lan": "10.42.0.0/16"}
    told = lab.run_server("peer", "add", "early", env=wrong, check=False)
    assert told.returncode == 2
    assert "peer early is added, but the server is not as it should be: " in told.stderr
    lab.run_server("up", env=LISTED)
    assert public_key(lab, "early") in on_device(lab)
    peer(lab, "remove", "early")


def test_ipv6_is_in_the_file(lab: ServerLab) -> None:
    assert f", {SUBNET6.partition('::')[0]}::2/128\n" in peer(lab, "show", "lan").stdout
