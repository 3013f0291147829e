"""Two real clients on one key: the watchdog notices, and says so; and nothing leaks while they fight."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from tests.lab.judge import Judge
from tests.lab.lab import AF_BITS, INSIDE, TUNNEL_DNS, Lab, LabError, ip_batch, wait_until
from tests.netns.chaos import Watchdog

WORDS = "somebody else seems to use this private key"


class Client:
    """Another machine with the pod's key. It takes the session whenever it shakes hands."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.far = lab, lab.far
        if lab.kernel_wireguard:
            ip_batch("link add name wg0 type wireguard", netns=self.far.netns)
        else:
            quiet = subprocess.DEVNULL
            argv = ["wireguard-go", "wg0"]
            self.far.popen(argv, env={"LOG_LEVEL": "error"}, stdout=quiet, stderr=quiet, new_session=True).wait(30)
        self.far.run(["wg", "set", "wg0", "private-key", lab.folder / "pod.key"])
        ip_batch(
            f"address add {INSIDE[4]}/{AF_BITS[4]} dev wg0",
            "link set wg0 up",
            f"route add {TUNNEL_DNS[4]}/32 dev wg0",
            netns=self.far.netns,
        )
        self.far.popen(["ping", "-i", "0.5", TUNNEL_DNS[4]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def shake_hands(self) -> None:
        """Begin anew, as after a restart; until the server has answered."""
        key, (address, port) = self.lab.provider.public_key, self.lab.provider.endpoint
        self.far.run(["wg", "set", "wg0", "peer", key, "remove"])
        peer = ["peer", key, "allowed-ips", f"{TUNNEL_DNS[4]}/32", "endpoint", f"{address}:{port}"]
        self.far.run(["wg", "set", "wg0", *peer])
        wait_until(self.answered, "the other client's handshake")

    def takes_over(self, watchdog: Watchdog) -> None:
        """Shake hands until the pod has lost its session: one of its own handshakes may have been under way."""
        for last in (False, False, False, True):
            self.shake_hands()
            try:
                wait_until(lambda: not watchdog.active(), "the pod has lost its session", 15)
                return
            except LabError:
                if last:
                    raise

    def answered(self) -> bool:
        """Has it a session since then?"""
        return int(self.far.run(["wg", "show", "wg0", "latest-handshakes"]).stdout.split()[1]) > 0


@pytest.fixture
def judged() -> Iterator[tuple[Lab, Judge]]:
    with Lab() as lab, Judge(lab) as judge:
        yield lab, judge


def test_somebody_else_uses_the_key(judged: tuple[Lab, Judge]) -> None:
    """Each time that the pod has shaken hands, the other client does."""
    lab, judge = judged
    lab.init_wg("up")
    with Watchdog(lab) as watchdog:
        watchdog.settle()
        other = Client(lab)
        # Four count, of a try each that is answered at once. On a busy machine a try may be lost: then it takes more.
        for _ in range(20):
            other.takes_over(watchdog)
            wait_until(watchdog.active, "the pod has taken it back", 60)
            said = WORDS in watchdog.log()  # before the metric is read: it may become true between the two
            if watchdog.metrics()["init_wg_key_contention"]:
                break
            assert not said
        else:
            pytest.fail(watchdog.log())
        assert WORDS in watchdog.log()
        assert '"key_contention": true' in watchdog.ask("/status")
        other.takes_over(watchdog)
        wait_until(lambda: WORDS in watchdog.ask(), "the reason says so, too", 30)
    verdict = judge.verdict()
    assert not verdict.leaks, str(verdict)
    assert verdict.allowed["wireguard"]
