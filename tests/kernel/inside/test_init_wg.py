"""init_wg on kernel WireGuard: the essentials of the leak suite (tests/netns), and what is the kernel's own.

One lab for all: the tests stand in an order, from the pod that nobody has touched on.
"""

from __future__ import annotations

import errno
import json
import socket
import struct
import time

import pytest

from tests.kernel.inside import product
from tests.kernel.inside.conftest import PATIENCE, Stage
from tests.lab.faults import FAULTS, Fault, state_of, tables, wireguard_daemons
from tests.lab.lab import INSIDE, MARK, TUNNEL_DNS, WIREGUARD_PORT
from tests.lab.probes import SO_MARK

FAULT_NAMES = """
wg0-deleted wg0-down wg0-addresses-flushed wg0-renamed
rules-flushed table-51820-flushed killswitch-deleted gate-deleted
""".split()  # noqa: SIM905 (a list that people edit)


def test_without_protection_every_probe_is_seen(bare: Stage) -> None:
    """The positive control: else nothing seen later would prove nothing."""
    assert not tables(bare.lab), "somebody has set up this pod"
    with bare.fire():
        _, errors = bare.probes.counts()
    assert not errors, "the kernel refuses what the tests rely on"
    verdict = bare.judge.verdict()
    assert bare.probes.names - set(verdict.kinds) == set(), str(verdict)


def test_up_uses_the_kernel(protected: Stage) -> None:
    lab = protected.lab
    assert product.tunnel(lab).kind == "wireguard"
    assert not wireguard_daemons(lab)
    product.arrives_from_the_provider(lab)

    status = json.loads(lab.init_wg("status", "--json", timeout=PATIENCE).stdout)
    facts = {name: status[name] for name in ("implementation", "up", "sealed", "drift")}
    assert facts == {"implementation": "kernel", "up": True, "sealed": True, "drift": []}
    (peer,) = status["peers"]
    assert 0 <= time.time() - peer["latest_handshake"] < 180
    assert peer["received_bytes"] > 0
    assert peer["sent_bytes"] > 0
    assert "as it should be" in lab.init_wg("check", timeout=PATIENCE).stdout


def test_a_second_up_changes_nothing(stage: Stage) -> None:
    before, state = product.tunnel(stage.lab), state_of(stage.lab)
    stage.lab.init_wg("up", timeout=PATIENCE)
    assert product.tunnel(stage.lab).is_still(before)
    assert state_of(stage.lab) == state


@pytest.fixture(scope="module")
def whole(protected: Stage) -> str:
    return state_of(protected.lab)


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.name in FAULT_NAMES], ids=str)
def test_nothing_leaks_and_up_heals(stage: Stage, whole: str, fault: Fault) -> None:
    lab = stage.lab
    fault.break_it(lab)
    assert state_of(lab) != whole
    stage.try_everything()
    product.run(lab, "up")
    fault.undo(lab)
    assert state_of(lab) == whole
    product.arrives_from_the_provider(lab)
    stage.nothing_leaked(fault.spares)


def test_the_faults_are_all_there() -> None:
    assert set(FAULT_NAMES) <= {fault.name for fault in FAULTS}


def test_the_gate_asks_whether_a_packet_was_routed(stage: Stage) -> None:
    """Even a frame in WireGuard's own form, with its mark and to the endpoint, is no packet of WireGuard's."""
    lab = stage.lab
    assert "meta rtclassid" in lab.pod.run(["nft", "list", "table", "netdev", "init_wg"]).stdout
    source, target = (socket.inet_aton(address) for address in (lab.pod.addresses[4], lab.provider.addresses[4]))
    message = struct.pack("<I", 4) + bytes(60)
    udp = struct.pack("!HHHH", 40001, WIREGUARD_PORT, 8 + len(message), 0) + message
    packet = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 64, socket.IPPROTO_UDP, 0) + source + target + udp
    with lab.pod.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind(("eth0", 0))
        frame = lab.node.link_address("pod0") + raw.getsockname()[4] + struct.pack("!H", 0x0800) + packet
        for mark in (0, MARK, MARK + 1):
            raw.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
            with pytest.raises(OSError) as refused:
                raw.send(frame)
            assert refused.value.errno == errno.ENOBUFS, f"with mark {mark}"
    product.arrives_from_the_provider(lab)
    assert lab.inbound(lab.node, 4, timeout=PATIENCE)
    assert lab.inbound(lab.far, 6, timeout=PATIENCE)
    stage.nothing_leaked()


def test_a_tunnel_without_ipv6(stage: Stage) -> None:
    lab = stage.lab
    text = lab.config_path.read_text()
    for mine in (f",{INSIDE[6]}/128", f",{TUNNEL_DNS[6]}", ", ::/0"):
        assert mine in text
        text = text.replace(mine, "")
    lab.config_path.write_text(text)
    product.run(lab, "up")
    assert lab.traffic_source(4, timeout=PATIENCE) == lab.provider.addresses[4]
    assert lab.traffic_source(6, timeout=1) is None
    assert "inet6" not in lab.pod.run(["ip", "address", "show", "dev", "wg0", "scope", "global"]).stdout
    stage.try_everything()
    stage.nothing_leaked()


def test_an_endpoint_with_ipv6(stage: Stage) -> None:
    lab = stage.lab
    endpoint = f"[{lab.provider.addresses[6]}]:{WIREGUARD_PORT}"
    lab.config(endpoint=endpoint)
    lab.pod.run(["ip", "link", "delete", "wg0"])
    stage.try_everything()
    product.run(lab, "up")
    assert product.tunnel(lab).peers[lab.provider.public_key].endpoint == endpoint
    product.arrives_from_the_provider(lab)
    stage.nothing_leaked()
