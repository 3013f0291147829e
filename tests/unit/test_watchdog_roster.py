"""What the watchdog of a server knows of the peers, and how it takes a run that failed only for what is new."""

from __future__ import annotations

import json
from ipaddress import ip_network
from pathlib import Path

import pytest

from init_wg.model.secret import Secret
from init_wg.model.serving import GOES_ON
from init_wg.model.state import Device, Peer
from init_wg.model.wireguard import Reading, Traffic
from init_wg.server.design import register as registers
from init_wg.server.design.register import Register
from watchdog import status
from watchdog.child import Ended
from watchdog.facts import Known
from watchdog.roster import Kernel, Roster
from watchdog.web.metrics import Served

KEY = "k" * 42 + "A="
REGISTER = Register(
    Secret(KEY),
    {
        "phone": registers.Peer("phone's", Secret(KEY), Secret(KEY), 2, active=True),
        "laptop": registers.Peer("laptop's", None, None, 300, active=True),
        "old": registers.Peer("old's", Secret(KEY), None, 4, active=False),
    },
    networks=("10.13.0.0/16", "fd13::/64"),
)


def roster(folder: Path, text: str) -> Roster:
    (folder / "server.json").write_text(text)
    kernel = Kernel("wg0")
    kernel.reading = Reading(
        Device(Secret(KEY), 51820, 0, frozenset(Peer(name, None, None, frozenset(), 0) for name in ("a", "b", "c"))),
        {"a": Traffic(1000.0, 1, 1), "b": Traffic(819.0, 1, 1), "c": Traffic(0.0, 0, 0)},
    )
    found = Roster(kernel, str(folder))
    found.read()
    return found


def test_peers_are_known_by_name_and_address_as_the_setup_gives_them(tmp_path: Path) -> None:
    found = roster(tmp_path, registers.encode(REGISTER))
    networks = [ip_network(network) for network in REGISTER.networks]
    assert found.known == {
        peer.public_key: Known(name, tuple(str(network[peer.number]) for network in networks))
        for name, peer in REGISTER.peers.items()
    }
    assert KEY not in repr(vars(found))


def test_seen_is_who_has_a_session(tmp_path: Path) -> None:
    assert roster(tmp_path, registers.encode(REGISTER)).counts(1000.0) == Served(active=3, seen=1, inactive=1)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", "null", '{"peers": [], "networks": []}', '{"peers": {"a": 1}, "networks": [""]}',
             json.dumps({"peers": {"a": {"public_key": "k", "number": -1, "active": True}}, "networks": ["0.0.0.0/0"]})]
)  # fmt: skip
def test_a_damaged_volume_is_the_setups_to_complain_of(tmp_path: Path, text: str) -> None:
    assert roster(tmp_path, text).known == {}


@pytest.mark.parametrize(
    ("code", "line", "goes_on"),
    [
        (2, f"init-wg: error: /peers: it has 'a/b', which is no name{GOES_ON}", True),
        (3, json.dumps({"level": "error", "message": f"/data: the volume is full{GOES_ON}"}), True),
        (2, "init-wg: error: /data/server.json: damaged", False),
        (5, f"init-wg: error: applied, but it reads back different{GOES_ON}", False),
        (-9, f"init-wg: error: killed{GOES_ON}", False),
        (0, "", False),
    ],
)
def test_a_run_that_served_what_was_known_is_no_failure(code: int, line: str, goes_on: bool) -> None:
    assert status.goes_on(Ended(code, "", line, 1.0, late=False)) is goes_on
