"""Positive controls: without protection the judge sees every kind of probe. Else a 0 elsewhere would prove nothing."""

from __future__ import annotations

import struct
import sys

import pytest

from tests.lab import faults
from tests.lab.judge import Judge, for_lab
from tests.lab.lab import PREOPENED, Lab
from tests.lab.probes import KINDS, PLAIN, Probes


def test_everything_is_seen_in_an_unprotected_pod(plain: Lab) -> None:
    with Judge(plain) as judge, Probes(plain) as probes:
        judge.mark()
        probes.round(3)
        verdict = judge.verdict()
        attempts, errors = probes.counts()
    assert {name for name in probes.names if not verdict.kinds[name]} == set(), str(verdict)
    assert all(attempts[name] >= 3 for name in probes.names)
    assert not errors
    for family in plain.families:
        assert verdict.kinds[f"tcp-loose/{family}"], "the pod answers segments from nowhere with resets"


def test_without_net_raw_the_raw_kinds_alone_are_refused(plain: Lab) -> None:
    """So a container without the capability can try everything else."""
    with Judge(plain) as judge, Probes(plain, raw=False) as probes:
        judge.mark()
        probes.round(3)
        verdict = judge.verdict()
        _, errors = probes.counts()
    raw = {f"{kind.name}/{family}" for kind in KINDS.values() if kind.needs_raw for family in plain.families}
    assert set(errors) == raw
    assert {name for name in probes.names if not verdict.kinds[name]} == raw, str(verdict)


def test_without_ipv6_in_the_tunnel_ipv6_is_seen() -> None:
    """What wg-quick leaves open when the configuration has no IPv6 address."""
    with Lab(tunnel_ipv6=False) as lab, Judge(lab) as judge:
        lab.wg_quick()
        with Probes(lab, PLAIN) as probes:
            judge.mark()
            probes.round(3)
            seen = judge.verdict().kinds
    assert {kind for kind in PLAIN if not seen[f"{kind}/6"]} == set()
    assert not seen["udp-unconnected/4"]


def test_wg_quick_leaks_what_is_bound_or_marked(plain: Lab) -> None:
    """A tunnel without a kill-switch: routing is never the boundary."""
    plain.wg_quick()
    with Judge(plain) as judge, Probes(plain) as probes:
        judge.mark()
        probes.round(3)
        verdict = judge.verdict()
    bound = {"device-udp", "device-tcp", "pktinfo-udp", "unicast-if-udp", "mark-udp", "mark-endpoint-udp", "packet-udp"}
    assert {kind for kind in bound if not (verdict.kinds[f"{kind}/4"] and verdict.kinds[f"{kind}/6"])} == set()
    assert not verdict.kinds["tcp-connect/4"], str(verdict)


@pytest.mark.parametrize("name", ["wg0-deleted", "rogue-rule", "routes-0/1-and-128/1", "rules-flushed"])
def test_faults_of_a_wg_quick_pod_are_seen(plain: Lab, name: str) -> None:
    """The same faults that the leak suite makes, where nothing holds: everything comes out in clear."""
    fault = next(fault for fault in faults.FAULTS if fault.name == name)
    plain.wg_quick()
    with Judge(plain) as judge, Probes(plain, [kind.name for kind in KINDS.values() if not kind.before]) as probes:
        fault.break_it(plain)
        judge.mark()
        probes.round(3)
        verdict = judge.verdict()
    ways = ("tcp-connect", "udp-unconnected", "udp-connected", "icmp-echo", "dns-public", "dns-tunnel")
    expected = {f"{kind}/{family}" for kind in ways for family in plain.families}
    assert expected - set(verdict.kinds) == set(), str(verdict)


def test_answers_are_told_from_pushes(plain: Lab) -> None:
    """Answers to the node and the far client are allowed; the pod's part in its own old connections is not."""
    with Judge(plain) as judge:
        for client in (plain.node, plain.far):
            for family in plain.families:
                assert plain.inbound(client, family)
                assert plain.inbound(client, family, udp=True)
        verdict = judge.verdict()
        assert verdict.leaked == 0, str(verdict)
        assert verdict.allowed["answer"]
        with Probes(plain, ["tcp-preopened"], loose=False):
            verdict = judge.verdict()
    assert verdict.leaked, f"nothing seen of the stream on port {PREOPENED}"


def test_the_capture_keeps_up(plain: Lab) -> None:
    """Ten thousand packets in a burst, none lost: leaving the judge raises if the kernel dropped one."""
    burst = "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.connect(('203.0.113.80', 7))\n"
    burst += "for _ in range(10_000):\n try: s.send(b'init-wg-probe:burst;')\n except OSError: pass\n"
    with Judge(plain) as judge:
        plain.pod.run([sys.executable, "-c", burst])
        assert judge.verdict().kinds["burst/4"] == 10_000


def test_only_wireguards_own_form_passes_as_wireguard(plain: Lab) -> None:
    """To the endpoint's address and port, and yet a leak: the wrong length, or the wrong first bytes."""
    forms = {
        "a handshake": (struct.pack("<I", 1) + bytes(144), 0),
        "data": (struct.pack("<I", 4) + bytes(60), 0),
        "a handshake that is too long": (struct.pack("<I", 1) + bytes(145), 1),
        "data that fills no block": (struct.pack("<I", 4) + bytes(61), 1),
        "type 5": (struct.pack("<I", 5) + bytes(60), 1),
        "text": (b"GET / HTTP/1.0\r\n\r\n", 1),
    }
    with Judge(plain, for_lab(plain)) as judge, plain.pod.socket(2, 2) as sender:
        for what, (payload, leaks) in forms.items():
            sender.sendto(payload, plain.provider.endpoint)
            assert judge.verdict().leaked == leaks, what
