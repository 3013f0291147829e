"""Facts over time -> is the tunnel alive? Pure: no clock, no socket, no file.

The duties of a WireGuard peer (https://www.wireguard.com/papers/wireguard.pdf, sections 6.1 to 6.5, and
drivers/net/wireguard/messages.h):

    REKEY_TIMEOUT       5 s   an unanswered handshake is sent again
    KEEPALIVE_TIMEOUT  10 s   who received data and has nothing to say for so long sends an empty packet
    both               15 s   so, data sent and nothing received for so long: WireGuard gives the session up
    REKEY_AFTER_TIME  120 s   the initiator makes a new session when there is something to send
    REJECT_AFTER_TIME 180 s   no packet of an older session is accepted

Hence every question is answered within 10 seconds and a round trip, whatever is asked, and silence alone
means nothing: an idle tunnel without keepalive is not dead. So the primary facts are the transfer counters
(do they change?), seen on the monotonic clock. The handshake's time stamp is of the wall clock, which may
jump by a day: a *change* of it counts, its age is only told.
"""

from __future__ import annotations

from typing import NamedTuple

from init_wg.model.wireguard import REJECT_AFTER_TIME

UNKNOWN, HEALTHY, DOUBTFUL, DEAD = "unknown", "healthy", "doubtful", "dead"

REKEY_TIMEOUT, KEEPALIVE_TIMEOUT, REKEY_AFTER_TIME = 5.0, 10.0, 120.0

#: An empty WireGuard packet: 16 bytes of header and 16 of authenticator. It asks for no answer.
KEEPALIVE_BYTES = 32

#: Not heard for so long: ask. Then again and again, until something is heard.
ASK_AFTER, ASK_AGAIN = 3.0, 2.0
#: Our question unanswered for so long, where our questions used to be answered at once: first doubts.
DOUBT_AFTER = 2.5
#: Where they are not (nobody there answers that kind of question), only WireGuard's own time counts.
DOUBT_AFTER_DEAF = KEEPALIVE_TIMEOUT + 2.0
#: WireGuard's own criterion of a dead peer, for anything sent.
DEAD_AFTER = KEEPALIVE_TIMEOUT + REKEY_TIMEOUT
#: Not heard for so long although we asked so many times, where answers used to come at once. Detection is
#: promised within 15 s of silence, and facts may be a second old.
DEAD_SILENCE, DEAD_QUESTIONS = 14.0, 4
#: An answer that took so long was WireGuard's own empty packet: our kind of question is not answered there.
DEAF_AFTER = KEEPALIVE_TIMEOUT - 1.0
#: Between two looks. More than this is time in which nobody looked (a frozen container): it does not count.
LONGEST_GAP = 5.0


class PeerFacts(NamedTuple):
    """The peer that carries the traffic. last_handshake: wall clock seconds, 0 is never; counters: bytes."""

    public_key: str
    endpoint: str
    last_handshake: int
    received: int
    sent: int


class Verdict(NamedTuple):
    """The state of the tunnel, and why, in words for people ("" when it is healthy)."""

    state: str
    reason: str


class Health:
    """Looks at one peer again and again. Times are seconds of the monotonic clock, unless said otherwise."""

    def __init__(self) -> None:
        #: Our questions used to be answered at once, so that silence may be judged sooner.
        self.answers_at_once = False
        self._peer: PeerFacts | None = None
        self._start(0.0)

    def _start(self, now: float) -> None:
        self._looked = self._since = now
        self._heard: float | None = None  # when anything came in
        self._handshake: float | None = None  # when the last handshake was
        self._sent: float | None = None  # when data went out, the first since something came in
        self._question: float | None = None  # when we asked, the first time since something came in
        self._questions = 0
        self._tried = False  # whether this peer was asked at all

    def look(self, now: float, wall: float, peer: PeerFacts | None) -> Verdict:
        """Take the present facts in and judge. `wall`: the wall clock, for the age of a first handshake."""
        known, self._peer = self._peer, peer
        if peer is None:
            return Verdict(UNKNOWN, "there is no tunnel yet")
        same = known is not None and (known.public_key, known.endpoint) == (peer.public_key, peer.endpoint)
        if known is None or not same or peer.received < known.received:
            # Another peer, perhaps with the same key; or the device was made anew, and its counters with it.
            self._start(now)
            self._date(now, wall - peer.last_handshake, peer)
        else:
            self._compare(now, known, peer)
        self._looked = now
        return self._judge(now, peer)

    def asked(self, now: float) -> None:
        """A question was sent through the tunnel."""
        self._questions += 1
        self._tried = True
        if self._question is None:
            self._question = now

    def answered(self) -> None:
        """The answer to a question came (the counters will show it, too)."""
        self.answers_at_once = True

    def ask_at(self) -> float:
        """When the next question is due, if nothing is heard before."""
        if self._question is not None:
            return self._question + self._questions * ASK_AGAIN
        # The first question comes at once: so it is known how soon this peer answers before that matters.
        return self._since if self._heard is None or not self._tried else self._heard + ASK_AFTER

    @property
    def heard_at(self) -> float | None:
        """When the peer was last heard; None: not yet."""
        return self._heard

    def _date(self, now: float, age: float, peer: PeerFacts) -> None:
        """The first look: the wall clock is all there is. If it has jumped, the first question settles it."""
        if peer.last_handshake and age >= 0:
            self._handshake = now - age
            if age < DEAD_AFTER:
                self._heard = now - age

    def _compare(self, now: float, known: PeerFacts, peer: PeerFacts) -> None:
        if now - self._looked > LONGEST_GAP:
            self._resume(now)
        shaken = peer.last_handshake not in (0, known.last_handshake)
        if shaken:
            self._handshake = now
        if peer.received != known.received:
            # With a new handshake it says only that the peer was away, or its session.
            if self._question is not None and now - self._question >= DEAF_AFTER and not shaken:
                self.answers_at_once = False
            self._heard, self._sent = now, None
            self._question, self._questions = None, 0
        elif peer.sent - known.sent > KEEPALIVE_BYTES and self._sent is None:
            self._sent = now

    def _resume(self, now: float) -> None:
        """Nobody looked for a while: what was waiting begins to wait now."""
        if self._heard is not None:
            self._heard = max(self._heard, now - ASK_AFTER)
        if self._sent is not None:
            self._sent = now
        self._since, self._question, self._questions = now, None, 0

    def _judge(self, now: float, peer: PeerFacts) -> Verdict:
        question = now - self._question if self._question is not None else 0.0
        waited = max(question, now - self._sent if self._sent is not None else 0.0)
        silent = now - (self._since if self._heard is None else self._heard)
        if waited >= DEAD_AFTER:
            return Verdict(DEAD, self._words(now, peer))
        if self.answers_at_once and self._questions >= DEAD_QUESTIONS and silent >= DEAD_SILENCE:
            return Verdict(DEAD, self._words(now, peer))
        if self._heard is None:
            return Verdict(UNKNOWN, self._words(now, peer))
        if waited >= DOUBT_AFTER_DEAF or (self.answers_at_once and question >= DOUBT_AFTER):
            return Verdict(DOUBTFUL, self._words(now, peer))
        return Verdict(HEALTHY, "")

    def _words(self, now: float, peer: PeerFacts) -> str:
        who = peer.endpoint or "the peer (its endpoint is not known)"
        if not peer.last_handshake:
            return f"no handshake yet with {who}"
        if self._handshake is not None and now - self._handshake >= REJECT_AFTER_TIME:
            return f"no handshake for {now - self._handshake:.0f} s with {who}"
        if self._heard is None:
            return f"nothing heard yet from {who}"
        return f"nothing heard for {now - self._heard:.0f} s from {who}"
