"""A folder of servers: a server is its file, whatever else it shares with others; and one bad file ends no run."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.lab.lab import INSIDE, Lab, Provider, wait_until
from tests.netns.chaos import Watchdog
from tests.netns.test_handshake import port_443, twin

__all__ = ["port_443", "twin"]

QUICK = {"HANDSHAKE_TIMEOUT": "3"}
SOON = 2.5  # seconds, Python's start on a busy machine included: less than a silent server takes


@pytest.fixture(scope="module")
def machines() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture
def lab(machines: Lab) -> Iterator[Lab]:
    """A pod that nobody has set up, and an empty folder of servers."""
    machines.init_wg("down", check=False)
    for file in folder(machines).glob("*"):
        file.unlink()
    yield machines
    for provider in (machines.provider, machines.provider2):
        provider.speak()


def folder(lab: Lab) -> Path:
    return lab.folder / "several"


def server(lab: Lab, name: str, provider: Provider | None = None, endpoint: str | None = None) -> Path:
    return lab.config(folder(lab) / f"{name}.conf", provider=provider, endpoint=endpoint)


def up(lab: Lab, *words: str, code: int = 0, env: Mapping[str, str] | None = None) -> tuple[float, str]:
    """Seconds, and what was said."""
    started = time.monotonic()
    ended = lab.init_wg("up", *words, env={"WG_CONFIG": str(folder(lab)), **QUICK, **(env or {})}, check=False)
    took = time.monotonic() - started
    assert ended.returncode == code, ended.stderr
    return took, ended.stderr


def in_use(lab: Lab) -> str | None:
    """The server that `status` names; `check` agrees that everything is as it should be."""
    env = {"WG_CONFIG": str(folder(lab))}
    facts = json.loads(lab.init_wg("status", "--json", env=env).stdout)
    assert facts["drift"] == []
    assert lab.init_wg("check", env=env, check=False).returncode == 0
    name: str | None = facts["server"]
    return name


def stays(lab: Lab, name: str) -> None:
    """Another run leaves it alone."""
    before = lab.pod.run(["wg", "show", "wg0", "latest-handshakes"]).stdout
    assert in_use(lab) == name
    assert up(lab)[0] < SOON
    assert in_use(lab) == name
    assert lab.pod.run(["wg", "show", "wg0", "latest-handshakes"]).stdout == before
    assert lab.flows()


# --- a server is its file --------------------------------------------------------------------------------------------


def test_one_server_on_two_ports(lab: Lab, port_443: object) -> None:
    """What is sent to the first one is lost on the way."""
    host = lab.provider.addresses[4]
    server(lab, "a-51821", endpoint=f"{host}:51821")
    server(lab, "b-443", endpoint=f"{host}:443")
    assert "a-51821.conf: no handshake" in up(lab)[1]
    stays(lab, "b-443")


def test_two_servers_with_one_key(lab: Lab, twin: Provider) -> None:
    server(lab, "a-first")
    server(lab, "b-second", twin)
    lab.provider.silence()
    up(lab)
    stays(lab, "b-second")
    assert lab.traffic_source(4) == twin.addresses[4]


def test_one_server_in_two_families(lab: Lab) -> None:
    server(lab, "a-ipv4", endpoint="203.0.113.99:51820")
    server(lab, "b-ipv6", endpoint=f"[{lab.provider.addresses[6]}]:51820")
    up(lab)
    stays(lab, "b-ipv6")


def test_two_accounts_at_one_server(lab: Lab) -> None:
    stranger = lab.provider2.secret.read_text().strip()
    lab.config(folder(lab) / "a-expired.conf", secret=stranger)
    server(lab, "b-paid")
    up(lab)
    stays(lab, "b-paid")


def test_two_names_of_one_server(lab: Lab, twin: Provider) -> None:
    """Nothing but the endpoint's name differs; and a name whose address has changed is still its file's."""
    lab.zone({"a.example": [lab.provider.addresses[4]], "b.example": [twin.addresses[4]]})
    server(lab, "a", endpoint="a.example:51820")
    server(lab, "b", endpoint="b.example:51820")
    lab.provider.silence()
    up(lab)
    stays(lab, "b")
    lab.zone({"b.example": ["203.0.113.99"]})
    stays(lab, "b")
    lab.provider.speak()
    assert up(lab, "--server", "a")[0] < SOON
    stays(lab, "a")
    assert lab.traffic_source(4) == lab.provider.addresses[4]


def test_two_files_that_say_the_same(lab: Lab) -> None:
    server(lab, "a")
    server(lab, "b")
    up(lab, "--server", "b")
    stays(lab, "b")


# --- the last good one -----------------------------------------------------------------------------------------------

LOST = {
    "wg0": ["ip link delete wg0"],
    "wg0, which another took": ["ip link delete wg0", "ip link add wg0 type veth peer name wg0peer"],
    "wg0 and the ruleset": ["ip link delete wg0", "nft flush ruleset"],
    "the mark": ["ip route flush table 51821"],
}


@pytest.mark.parametrize("what", LOST)
def test_a_repair_begins_with_the_server_that_was_set_up(lab: Lab, what: str) -> None:
    server(lab, "a")
    server(lab, "b", lab.provider2)
    lab.provider.silence()
    up(lab)
    for command in LOST[what]:
        lab.pod.run(command.split())
    took, said = up(lab)
    assert "no handshake" not in said
    assert took < SOON
    stays(lab, "b")


def test_down_forgets_it(lab: Lab) -> None:
    server(lab, "a")
    server(lab, "b", lab.provider2)
    up(lab, "--server", "b")
    lab.init_wg("down")
    assert "192.0.2.51" not in lab.pod.run(["ip", "route", "show", "table", "51821"], check=False).stdout
    up(lab)
    stays(lab, "a")


def test_a_watchdog_that_starts_again_begins_with_it(lab: Lab, twin: Provider) -> None:
    """In one container the first watchdog has failed over, and wg0 ends with that container; the next one knows."""
    server(lab, "a")
    server(lab, "b", twin)
    env = {"WG_CONFIG": str(folder(lab)), **QUICK}
    with Watchdog(lab, env=env) as watchdog:
        wait_until(watchdog.active, "the first server", 30)
        lab.provider.silence()
        wait_until(lambda: lab.traffic_source(4) == twin.addresses[4], "the second server", 40)
        wait_until(watchdog.active, "that all is well", 10)
        assert '"server": "b"' in watchdog.ask("/status")
        for _ in range(30):  # no run goes back to the first
            assert lab.traffic_source(4) == twin.addresses[4]
            time.sleep(0.1)
    lab.pod.run(["ip", "link", "delete", "wg0"])
    with Watchdog(lab, env=env) as watchdog:
        wait_until(lambda: lab.traffic_source(4) == twin.addresses[4], "the second server again", 10)
        wait_until(watchdog.active, "that all is well", 10)
        assert "no handshake" not in watchdog.log()
        assert '"server": "b"' in watchdog.ask("/status")


# --- one bad server among others -------------------------------------------------------------------------------------

CONFLICTS = (
    "a bypass network that covers the tunnel",
    "no way to the endpoint in that family",
    "a name, and no resolver",
)
BYPASS = {"BYPASS_CIDRS": "10.66.0.0/16"}


def in_the_bypass(file: Path) -> None:
    """This server's tunnel is in a network that is to be reached beside it."""
    file.write_text(file.read_text().replace(INSIDE[4], "10.66.12.34"))


def conflicting(lab: Lab, case: str) -> None:
    """The first server, which cannot be set up in this pod; the second can."""
    if case.startswith("a bypass"):
        in_the_bypass(server(lab, "a"))
    elif case.startswith("no way"):
        server(lab, "a", endpoint="[2001:db8:113::51]:51820")
        lab.pod.run(["ip", "-6", "route", "delete", "default"])
    else:
        server(lab, "a", endpoint="nowhere.example:51820")
        (lab.folder / "resolv.conf").write_text("")
    server(lab, "b", lab.provider2)


@contextlib.contextmanager
def restored(lab: Lab) -> Iterator[None]:
    resolv_conf = (lab.folder / "resolv.conf").read_text()
    try:
        yield
    finally:
        (lab.folder / "resolv.conf").write_text(resolv_conf)
        lab.restore_uplink()


@pytest.mark.parametrize("case", CONFLICTS)
def test_a_server_that_cannot_be_set_up_here_is_told_and_left_out(lab: Lab, case: str) -> None:
    with restored(lab):
        conflicting(lab, case)
        _, said = up(lab, env=BYPASS)
        assert "a.conf" in said
        assert "; trying the next server" in said
        assert lab.traffic_source(4) == lab.provider2.addresses[4]


def test_the_watchdog_fails_over_past_such_a_server(lab: Lab) -> None:
    """a dies, b cannot be set up, c can."""
    server(lab, "a", lab.provider2)
    in_the_bypass(server(lab, "b"))
    server(lab, "c")
    env = {"WG_CONFIG": str(folder(lab)), **BYPASS, **QUICK}
    with Watchdog(lab, env=env) as watchdog:
        wait_until(watchdog.active, "the first server", 30)
        lab.provider2.silence()
        wait_until(lambda: lab.traffic_source(4) == lab.provider.addresses[4], "the third server", 40)
        wait_until(watchdog.active, "that all is well", 10)
        assert '"server": "c"' in watchdog.ask("/status")


def test_the_server_that_is_asked_for_is_bad_so_the_next_one_is_tried(lab: Lab) -> None:
    server(lab, "a", lab.provider2)
    server(lab, "b").write_text("<html>\n")
    server(lab, "c")
    assert "this server is left out" in up(lab, "--server", "b")[1]
    stays(lab, "c")
    assert "there is no such server" in up(lab, "--server", "d", code=2)[1]


@pytest.mark.parametrize("first_line", ["<html>", "", "PrivateKey = short"])
def test_the_server_that_is_set_up_stays_the_measure_when_its_file_turns_bad(lab: Lab, first_line: str) -> None:
    """Another server's file would differ in everything, and is not what anybody has set up."""
    env = {"WG_CONFIG": str(folder(lab))}
    server(lab, "a", lab.provider2)
    file = server(lab, "b")
    server(lab, "c").write_text("<html>\n")
    up(lab, "--server", "b")
    file.write_text(f"{first_line}\n")
    checked = lab.init_wg("check", env=env, check=False)
    assert checked.returncode == 2
    assert checked.stderr.splitlines()[-1].startswith(f"init-wg: error: {file}")
    assert checked.stderr.endswith("; what is set up from it stays as it is\n")
    facts = json.loads(lab.init_wg("status", "--json", env=env).stdout)
    assert facts["server"] == "b"
    assert len(facts["drift"]) == 1
    assert str(file) in facts["drift"][0]
    assert str(file) in lab.init_wg("names", env={**env, "DNS_MODE": "split"}, check=False).stderr


def test_when_no_server_can_be_set_up_the_one_that_may_come_back_counts(lab: Lab) -> None:
    """4 is tried again soon; 2 would not be."""
    server(lab, "a", lab.provider2)
    in_the_bypass(server(lab, "b"))
    lab.provider2.silence()
    _, said = up(lab, code=4, env=BYPASS)
    assert "a.conf: no handshake" in said.splitlines()[-1]
