"""Does somebody else use our key? Pure: no clock, no socket, no file.

A server has one current session for each key, and answers with that. When a second client with the same key shakes
hands, it takes the session over, and the first one's questions are answered with a session that it does not know. After
15 s without an answer WireGuard begins anew, the server answers at once, and now the other client is cut off:

    ours     shakes hands ──── heard ────┐ silence, 15 s ┌ shakes hands at the first try ── heard ──┐ ...
    theirs                 silence, 15 s └ shakes hands ── heard ──┐ silence, 15 s ...

So the sign of it is a session that falls silent before it is old, and a first try that is answered. A silent server
does not answer the first try. A restarted server looks the same, once: only several in a row count, with no session
between them that lasts until its regular renewal.
"""

from __future__ import annotations

from .peer_health import DEAD_AFTER, KEEPALIVE_BYTES, REKEY_AFTER_TIME, REKEY_TIMEOUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .peer_health import PeerFacts

#: The first try comes when data has waited for so long. The kernel delays it by up to a third of a second, and facts
#: are one to two seconds old. The second try comes REKEY_TIMEOUT later.
FIRST_TRY = (DEAD_AFTER - 2.0, DEAD_AFTER + REKEY_TIMEOUT - 1.5)
#: So many sessions within so many seconds died young. Of two clients that never rest, each loses one every 35 s; of two
#: that only keep their sessions alive, every 120 s.
TIMES, WITHIN = 4, 600.0

WORDS = "somebody else seems to use this private key: give each pod a key of its own"


class Contention:
    """Looks at the peer again and again, as Health does. Times are seconds of the monotonic clock."""

    def __init__(self) -> None:
        self._peer: PeerFacts | None = None
        self._session: float | None = None  # when its handshake was noticed
        self._unanswered: float | None = None  # when data went out, the first since something came in
        self._deaths: tuple[float, ...] = ()

    def look(self, now: float, peer: PeerFacts | None) -> bool:
        """Take the present facts in. Returns whether somebody else seems to use the key."""
        known, self._peer = self._peer, peer
        if peer is None or known is None or (known.public_key, known.endpoint) != (peer.public_key, peer.endpoint):
            self._session = now if peer and peer.last_handshake else None
            self._unanswered = None
        else:
            self._compare(now, known, peer)
        self._deaths = tuple(each for each in self._deaths if now - each <= WITHIN)
        return len(self._deaths) >= TIMES

    def _compare(self, now: float, known: PeerFacts, peer: PeerFacts) -> None:
        if peer.last_handshake not in (0, known.last_handshake):
            self._renewed(now)
        if peer.received != known.received:
            self._unanswered = None
        elif peer.sent - known.sent > KEEPALIVE_BYTES and self._unanswered is None:
            self._unanswered = now

    def _renewed(self, now: float) -> None:
        """There is a new session. How did the one before it end?"""
        session, self._session = self._session, now
        if self._unanswered is None:
            self._deaths = ()  # alive: nobody had taken it
        elif session is not None and now - session < REKEY_AFTER_TIME:
            least, most = FIRST_TRY
            if least <= now - self._unanswered <= most:
                self._deaths = (*self._deaths, now)[-TIMES:]
