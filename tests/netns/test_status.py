"""What `status` and `check` say, for people and for programs, and that neither ever says a key it should not."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tests import documents
from tests.lab.lab import HTTP, INSIDE, Lab, kernel_wireguard, wait_until


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """With a preshared key, which is a secret too."""
    with Lab() as lab:
        secret = subprocess.run(["wg", "genpsk"], capture_output=True, check=True, text=True).stdout
        file = lab.folder / "preshared.key"
        file.touch(mode=0o600)
        file.write_text(secret)
        lab.provider.run(["wg", "set", "wg0", "peer", lab.pod_key, "preshared-key", file])
        yield lab


def configure(lab: Lab) -> None:
    """The configuration, with the preshared key."""
    path = lab.config(keepalive=25)
    path.write_text(path.read_text() + f"PresharedKey = {(lab.folder / 'preshared.key').read_text().strip()}\n")


@pytest.fixture
def running(lab: Lab) -> Lab:
    """Set up, and right."""
    configure(lab)
    lab.init_wg("up")
    return lab


def secrets(lab: Lab) -> list[str]:
    return [(lab.folder / name).read_text().strip() for name in ("pod.key", "preshared.key")]


def told(lab: Lab, *words: str, code: int = 0) -> str:
    """All that a command printed; no secret is in it, in any spelling."""
    ended = lab.init_wg(*words, check=False)
    assert ended.returncode == code, ended.stderr
    for secret in secrets(lab):
        assert secret not in ended.stdout + ended.stderr
        assert secret[:20] not in ended.stdout + ended.stderr
    return ended.stdout


def facts(lab: Lab) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(told(lab, "status", "--json"))
    return found


# --- status ----------------------------------------------------------------------------------------------------------


def test_json(running: Lab) -> None:
    """Every field, with a value that somebody else confirms."""
    before = facts(running)
    assert running.flows()
    found = facts(running)
    assert documents.fields(found) == documents.named_fields("`init-wg status --json`")
    assert found["interface"] == "wg0"
    assert found["implementation"] == ("kernel" if kernel_wireguard() else "userspace")
    assert found["server"] == "wg0"
    assert found["up"] is True
    assert found["sealed"] is True
    assert found["addresses"] == sorted([f"{INSIDE[4]}/32", f"{INSIDE[6]}/128"])
    assert found["mtu"] == int(running.pod.run(["cat", "/sys/class/net/wg0/mtu"]).stdout)
    assert found["drift"] == []
    assert "10.42.0.0/15" in found["bypass"]["networks"]  # pods and services
    assert found["bypass"]["closed"] == []
    assert found["rules"] >= 6
    assert found["routes"] >= 4
    (peer,) = found["peers"]
    assert peer["public_key"] == running.provider.public_key
    assert peer["endpoint"] == "203.0.113.51:51820"
    assert peer["allowed_ips"] == ["0.0.0.0/0", "::/0"]
    assert peer["keepalive"] == 25
    assert 0 <= time.time() - peer["latest_handshake"] < 180
    (earlier,) = before["peers"]
    assert peer["received_bytes"] > earlier["received_bytes"] >= 0
    assert peer["sent_bytes"] > earlier["sent_bytes"] > 0
    transfer = running.pod.run(["wg", "show", "wg0", "transfer"]).stdout.split()
    assert int(transfer[1]) >= peer["received_bytes"]


def test_text(running: Lab) -> None:
    text = told(running, "status")
    implementation = "kernel" if kernel_wireguard() else "userspace"
    for pattern in (
        rf"^tunnel: +up \(wg0, {implementation}\)$",
        r"^kill-switch: in place, \d+ packets refused$",
        r"^server: +wg0$",
        rf"^addresses: +{re.escape(INSIDE[4])}/32, {re.escape(INSIDE[6])}/128, MTU 1420$",
        rf"^peer: +{re.escape(running.provider.public_key)} at 203\.0\.113\.51:51820$",
        r"^ +handshake \d+ s ago, received [\d.]+ (B|KiB), sent [\d.]+ (B|KiB)$",
        r"^ +allowed IPs 0\.0\.0\.0/0, ::/0$",
        r"^drift: +none$",
    ):
        assert re.search(pattern, text, re.MULTILINE), f"{pattern} in\n{text}"


def test_refused_packets_are_counted(running: Lab) -> None:
    """One connection and one datagram of the pod that are bound to the uplink."""
    before = facts(running)["refused_packets"]
    attempt = (
        "import socket\n"
        "for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):\n"
        "    with socket.socket(socket.AF_INET, kind) as one:\n"
        "        one.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b'eth0')\n"
        "        try:\n"
        f"            one.connect(('{running.web.addresses[4]}', {HTTP}))\n"
        "            one.send(b'x')\n"
        "        except OSError:\n"
        "            continue\n"
        "        raise SystemExit('it got out')\n"
    )
    running.pod.run(["python3", "-c", attempt])
    after = facts(running)["refused_packets"]
    assert after >= before + 2
    shown = re.search(r"in place, (\d+) packets refused", told(running, "status"))
    assert shown
    assert int(shown[1]) >= after


def test_sealed_without_a_tunnel(lab: Lab) -> None:
    configure(lab)
    lab.init_wg("down")
    lab.init_wg("lockdown")
    found = facts(lab)
    assert found["up"] is False
    assert found["sealed"] is True
    assert found["implementation"] is None
    assert found["peers"] == []
    assert found["mtu"] is None
    assert found["drift"]
    text = told(lab, "status")
    assert "NOT UP (wg0, absent)" in text
    assert "kill-switch: in place" in text


def test_open_and_nothing_there(lab: Lab) -> None:
    configure(lab)
    lab.init_wg("down")
    found = facts(lab)
    assert found["sealed"] is False
    assert found["refused_packets"] == 0
    assert "kill-switch: NOT IN PLACE" in told(lab, "status")


def test_a_broken_configuration_is_told_beside_what_runs(running: Lab) -> None:
    """The tunnel is as it is; only what it should be is not known any more."""
    running.config_path.write_text("[Interface\n")
    found = facts(running)
    assert found["server"] == "wg0"
    assert found["up"] is False
    assert found["sealed"] is True
    assert len(found["peers"]) == 1
    assert re.search(r"wg0\.conf:1: ", found["drift"][0])
    assert told(running, "check", code=2) == ""


def test_watch_follows_on_a_terminal_until_a_signal_ends_it(running: Lab) -> None:
    terminal, its_end = pty.openpty()
    command = [sys.executable, "-m", "init_wg", "status", "--watch"]
    process = running.pod.popen(command, env=running.pod_env, stdout=its_end, stderr=its_end)
    os.close(its_end)
    shown = b""

    def shows(words: bytes) -> bool:
        nonlocal shown
        if select.select([terminal], [], [], 0.1)[0]:
            shown += os.read(terminal, 65536)
        return words in shown

    try:
        wait_until(lambda: shows(b"tunnel:      up"), "the first look")
        running.pod.run(["ip", "rule", "delete", "pref", "300"])
        wait_until(lambda: shows(b"drift:       rule 300"), "another look")
        assert shown.startswith(b"\x1b[H")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 128 + signal.SIGINT
    finally:
        process.kill()
        process.wait()
        os.close(terminal)


def test_watch_ends_with_its_reader(running: Lab) -> None:
    ours, its_end = os.pipe()
    command = [sys.executable, "-m", "init_wg", "status", "--watch"]
    with (running.folder / "watch.log").open("w+b") as errors:
        process = running.pod.popen(command, env=running.pod_env, stdout=its_end, stderr=errors)
        os.close(its_end)
        assert os.read(ours, 65536).startswith(b"tunnel:      up")
        os.close(ours)
        assert process.wait(30) == 0
        errors.seek(0)
        assert errors.read() == b""


# --- drift -----------------------------------------------------------------------------------------------------------


class Drift(NamedTuple):
    """What somebody does, and what `check` says then."""

    command: str
    says: str


DRIFTS: dict[str, Drift] = {
    "link deleted": Drift("ip link del wg0", r"interface wg0: wanted .*WireGuard, found none"),
    "link down": Drift("ip link set wg0 down", r"interface wg0: wanted up, found down"),
    "another MTU": Drift("ip link set wg0 mtu 1300", r"MTU of wg0: wanted 1420, found 1300"),
    "address lost": Drift("ip addr del 10.64.12.34/32 dev wg0", r"address 10\.64\.12\.34/32: wanted there, found none"),
    "address too many": Drift("ip addr add 10.9.9.9/32 dev wg0", r"address 10\.9\.9\.9/32: wanted none, found there"),
    "rule lost": Drift(
        "ip rule del pref 300", r"rule 300: not from all fwmark 51820 lookup 51820: wanted there, found none"
    ),
    "rule too many": Drift(
        "ip rule add pref 50 lookup main", r"rule 50: from all lookup 254: wanted none, found there"
    ),
    "default lost": Drift(
        "ip -6 route del default dev wg0 table 51820",
        r"route default dev wg0 in table 51820 \(IPv6\): wanted there, found none",
    ),
    "route past the tunnel": Drift(
        "ip route add 0.0.0.0/1 via 10.42.1.1",
        r"route 0\.0\.0\.0/1 via 10\.42\.1\.1 dev eth0 in table 254: wanted none, found there",
    ),
    "kill-switch deleted": Drift("nft delete table inet init_wg", r"kill-switch: wanted as designed, found .+"),
    "kill-switch with a rule more": Drift(
        "nft insert rule inet init_wg output ip daddr 9.9.9.9 accept",
        r"kill-switch: wanted as designed, found a line of its own: ip daddr 9\.9\.9\.9 accept",
    ),
    "no mark": Drift("wg set wg0 fwmark 0", r"WireGuard settings of wg0: wanted as configured, found fwmark 0"),
    "peer removed": Drift("for key in $(wg show wg0 peers); do wg set wg0 peer $key remove; done", r"a peer missing"),
    "peer's endpoint": Drift(
        "for key in $(wg show wg0 peers); do wg set wg0 peer $key endpoint 9.9.9.9:9; done",
        r"WireGuard settings of wg0: wanted as configured, found another endpoint of a peer",
    ),
    "another private key": Drift(
        "wg genkey >/run/wireguard/other; wg set wg0 private-key /run/wireguard/other",
        r"WireGuard settings of wg0: wanted as configured, found another private key",
    ),
}


@pytest.mark.parametrize("name", DRIFTS)
def test_drift_in_words(running: Lab, name: str) -> None:
    """`check` says what is wanted and what is there, exits 5 and changes nothing; `status` agrees; `up` mends it."""
    drift = DRIFTS[name]
    running.pod.run(["sh", "-ec", drift.command])
    ended = running.init_wg("check", check=False)
    assert ended.returncode == 5
    said = ended.stdout.splitlines()
    assert any(re.search(drift.says, line) for line in said), ended.stdout
    assert all(re.fullmatch(r".+: wanted .+, found .+", line) for line in said), ended.stdout
    assert ended.stderr == f"init-wg: error: {len(said)} difference(s): run init-wg up to mend them\n"
    found = facts(running)
    assert found["drift"] == said
    assert found["up"] is False
    running.init_wg("up")
    assert told(running, "check") == "everything is as it should be\n"


def test_drift_is_in_the_text_too(running: Lab) -> None:
    running.pod.run(["sh", "-c", "ip rule del pref 300; ip link set wg0 mtu 1300"])
    said = told(running, "check", code=5).splitlines()
    assert len(said) == 2
    text = told(running, "status")
    assert "NOT UP" in text
    for line in said:
        assert f"drift:       {line}" in text
