"""Facts of server mode on which the setup and the watchdog agree. Pure."""

from __future__ import annotations

#: On the volume SERVER_DATA: the keys and numbers of the server and its peers.
FILE = "server.json"
#: How the sentence of a failed run ends, where everything is in place but for what is new.
GOES_ON = "; the peers that were known are served"
#: Seconds after a handshake for which a peer counts as seen: WireGuard ends a session then (REJECT_AFTER_TIME), and
#: a peer that sends anything has begun a new one.
SEEN = 180
