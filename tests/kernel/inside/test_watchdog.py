"""The watchdog on kernel WireGuard: the kernel's events, handshakes, repair, and its end."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.kernel.inside import product
from tests.kernel.inside.conftest import PATIENCE, Stage
from tests.lab.faults import FAULTS, state_of, wireguard_daemons
from tests.lab.lab import Lab, wait_until

PORT = 9999


def get(lab: Lab, path: str) -> tuple[int, str]:
    """What the kubelet gets from the watchdog; status 0 when nobody answers."""
    answer = b""
    with lab.node.socket(socket.AF_INET, socket.SOCK_STREAM) as kubelet:
        try:
            kubelet.settimeout(PATIENCE)
            kubelet.connect((lab.pod.addresses[4], PORT))
            kubelet.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            while more := kubelet.recv(65536):
                answer += more
        except OSError:
            return 0, ""
    head, _, body = answer.decode().partition("\r\n\r\n")
    return int(head.split()[1]), body


def ready(lab: Lab) -> bool:
    return get(lab, "/readyz")[0] == 200


def metric(lab: Lab, name: str) -> float:
    """A metric's value, summed over its labels; 0 when it is not there."""
    page = get(lab, "/metrics")[1]
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", page, re.MULTILINE))


@pytest.fixture(scope="module")
def watchdog(protected: Stage) -> Iterator[subprocess.Popen[bytes]]:
    """It starts in a pod that init_wg has set up, as it always does."""
    lab = protected.lab
    lab.config()
    product.run(lab, "up")
    protected.judge.mark()
    process = lab.pod.popen([sys.executable, "-m", "watchdog"], env={**lab.pod_env, "HANDSHAKE_TIMEOUT": "120"})
    yield process
    process.kill()
    process.wait()


def test_it_says_when_the_pod_is_ready(protected: Stage, watchdog: subprocess.Popen[bytes]) -> None:
    lab = protected.lab
    before = product.tunnel(lab)
    wait_until(lambda: ready(lab), "/readyz", PATIENCE)
    assert get(lab, "/") == (200, "VPN is active")
    assert get(lab, "/livez")[0] == 200
    assert product.tunnel(lab).is_still(before), "what is right is left alone"
    assert metric(lab, "init_wg_up") == 1
    assert 'implementation="kernel"' in get(lab, "/metrics")[1]


def test_it_tells_the_age_of_the_handshake(protected: Stage, watchdog: subprocess.Popen[bytes]) -> None:
    lab = protected.lab

    def told() -> bool:
        (peer,) = product.tunnel(lab).peers.values()
        shown = int(metric(lab, "wireguard_peer_last_handshake_seconds"))
        return shown == peer.handshake > time.time() - 180

    wait_until(told, "the handshake that wg shows", PATIENCE)
    assert metric(lab, "wireguard_peer_receive_bytes_total") > 0
    assert metric(lab, "wireguard_peer_transmit_bytes_total") > 0


@pytest.mark.parametrize("name", ["wg0-deleted", "killswitch-deleted"])
def test_it_repairs(protected: Stage, watchdog: subprocess.Popen[bytes], name: str) -> None:
    lab = protected.lab
    (fault,) = (fault for fault in FAULTS if fault.name == name)
    before, repairs = state_of(lab), metric(lab, "init_wg_repairs_total")
    with protected.fire():
        fault.break_it(lab)
        wait_for_repair(lab, repairs)
    assert state_of(lab) == before
    product.arrives_from_the_provider(lab)
    assert product.tunnel(lab).kind == "wireguard"
    assert not wireguard_daemons(lab)
    protected.nothing_leaked(fault.spares)


def wait_for_repair(lab: Lab, repairs: float) -> None:
    """One more than `repairs` is counted, and the pod is ready again."""
    deadline = time.monotonic() + PATIENCE
    while metric(lab, "init_wg_repairs_total") == repairs or not ready(lab):
        assert time.monotonic() < deadline, get(lab, "/")
        time.sleep(0.3)  # to ask takes its time


def test_it_ends_at_once_and_leaves_everything(protected: Stage, watchdog: subprocess.Popen[bytes]) -> None:
    lab = protected.lab
    before, state = product.tunnel(lab), state_of(lab)
    watchdog.send_signal(signal.SIGTERM)
    assert watchdog.wait(PATIENCE) == 0
    assert get(lab, "/") == (0, "")
    assert product.tunnel(lab).is_still(before)
    assert state_of(lab) == state
    product.arrives_from_the_provider(lab)
    protected.nothing_leaked()
