"""Which of the tunnel's resolvers answer now: the forwarder asks them in the order that it is given."""

from __future__ import annotations

import select
import socket
import time
from contextlib import ExitStack, suppress

#: ID 0x7764, one question: ". NS IN", recursion not wanted. Any answer will do.
_QUERY = bytes.fromhex("7764 0000 0001 0000 0000 0000 00 0002 0001")
#: Seconds: for the first answer of any, and for those before it in the order when one has answered.
_PATIENCE, _HANDICAP = 1.5, 0.5


def answering_first(resolvers: tuple[str, ...], interface: str) -> tuple[str, ...]:
    """The same resolvers, those in front that answer a query through the interface. One needs no query."""
    if len(resolvers) < 2:
        return resolvers
    with ExitStack() as ends:
        waiting = {each: asked for each in resolvers if (asked := _asked(each, interface, ends))}
        answered: set[str] = set()
        end = time.monotonic() + _PATIENCE
        # Until the first of all has answered: who comes after it, and in which state, matters little.
        while waiting and resolvers[0] not in answered and (left := end - time.monotonic()) > 0:
            ready, _, _ = select.select(list(waiting.values()), (), (), left)
            for each, asked in list(waiting.items()):
                if asked in ready:
                    with suppress(OSError):
                        asked.recv(512)
                        answered.add(each)
                        end = min(end, time.monotonic() + _HANDICAP)
                    del waiting[each]
    return tuple(sorted(resolvers, key=lambda each: each not in answered))


def _asked(resolver: str, interface: str, ends: ExitStack) -> socket.socket | None:
    family = socket.AF_INET6 if ":" in resolver else socket.AF_INET
    asked = ends.enter_context(socket.socket(family, socket.SOCK_DGRAM))
    try:
        with suppress(PermissionError):  # without NET_RAW, before Linux 5.7; the rules lead there anyway
            asked.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        asked.connect((resolver, 53))
        asked.send(_QUERY)
    except OSError:
        return None
    return asked
