"""The tunnel as it is: the device, the peer that carries the traffic, and whether that peer is alive."""

from __future__ import annotations

import time

from init_wg import log
from init_wg.errors import InitWgError

from . import contention, facts
from .peer_health import HEALTHY, UNKNOWN, Health, Verdict
from .ping import Probe
from .traffic import Traffic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from init_wg.model.wireguard import Reading

    from .loop import Loop
    from .peer_health import PeerFacts

#: A peer without a session begins a handshake at every look; every so often, slow links have seconds for one.
HANDSHAKE_SLOWLY_EVERY, HANDSHAKE_SLOWLY = 8, 2.5
#: Seconds until the first of them.
HANDSHAKE_FIRST = 5.0


class Tunnel:
    """Reads the device, asks the peer questions, and judges. servers: tells which there are; `answered` is called in
    the loop when a question was answered."""

    def __init__(
        self,
        loop: Loop,
        kernel: facts.Kernel,
        servers: Callable[[], tuple[facts.Server, ...]],
        answered: Callable[[], None],
    ) -> None:
        self._kernel = kernel
        self._servers = servers
        self._answered = answered
        self._health = Health()
        self._contention = contention.Contention()
        self._probe = Probe(loop, kernel.interface, self._heard)
        self._aimed: tuple[int, facts.Server | None] = (0, None)  # at which tunnel the questions are
        self._handshakes, self._handshake_at = 0, loop.now() + HANDSHAKE_FIRST
        #: The device at the last look, None when there was none; what was thought of it then.
        self.reading: Reading | None = None
        self.verdict = Verdict(UNKNOWN, "the setup has not run yet")
        self.traffic = Traffic()
        #: Does somebody else seem to use the private key?
        self.contended = False

    @property
    def server(self) -> facts.Server | None:
        """The server that is set up, by the last look."""
        return facts.current(self._servers(), self._kernel.server, self.reading)

    def server_now(self) -> str:
        """The name of the server that is set up now, "" when there is none."""
        server = facts.current(self._servers(), self._kernel.server, self._read())
        return server.name if server else ""

    def read(self, now: float) -> bool:
        """Look at the device. Returns whether its settings have changed: WireGuard itself announces nothing."""
        before, self.reading = self.reading, self._read()
        server, settings = self.server, facts.settings_number(self.reading)
        if (settings, server) != self._aimed:
            self._aimed = (settings, server)
            self._probe.aim(server.resolvers if server else (), *facts.routed(self.reading))
        self.traffic.counted(now, *facts.carried(self.reading))
        return facts.settings_number(before) != settings

    def judge(self, now: float) -> tuple[Verdict, Verdict]:
        """The verdict on the peer before, and the present one; ask it a question if one is due."""
        peer = facts.carrier(self.reading)
        before, self.verdict = self.verdict, self._health.look(now, time.time(), peer)
        self._watch_the_key(self._contention.look(now, peer), peer)
        due = now >= self._health.ask_at() or bool(self._probe.refused)
        if self.reading is not None and due and self._probe.ask():
            self._health.asked(now)
        return before, self.verdict

    def begin_handshake(self, now: float) -> None:
        """With a peer that does not answer, so that one that comes back is found soon. A run does it for itself."""
        if self.verdict.state == HEALTHY or now < self._handshake_at:
            return
        self._handshakes += 1
        self._handshake_at = now + (HANDSHAKE_SLOWLY if self._handshakes % HANDSHAKE_SLOWLY_EVERY == 0 else 0.0)
        try:
            if self.reading is not None and facts.begin_anew(self._kernel, self.reading, time.time()):
                self._probe.ask()  # without PersistentKeepalive, only data begins one
        except (OSError, InitWgError):
            return  # the next look finds out what is wrong

    def diverted(self) -> str:
        """Why applications' packets do not get into the tunnel, "" when they do: something refuses them before, or
        leads them past it."""
        families = self._probe.refused & facts.covered(self.reading)
        if not families:
            return ""
        return f"{' and '.join(sorted(families))} packets do not get into the tunnel: another table or rule takes them"

    def _watch_the_key(self, contended: bool, peer: PeerFacts | None) -> None:
        before, self.contended = self.contended, contended
        if contended and not before and peer:
            log.warning(f"{peer.endpoint} answers, but sessions with it die young again and again: {contention.WORDS}")
        elif before and not contended:
            log.info("sessions last again: the private key is in use by nobody else")

    def _read(self) -> Reading | None:
        try:
            return self._kernel.device()
        except (OSError, InitWgError):
            return None

    def _heard(self) -> None:
        self._health.answered()
        self._answered()
