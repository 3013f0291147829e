"""Which server is set up: the name of its file, as a route that no rule ever looks up. Pure.

A public key does not name a server: whole cities share one, and one server may stand in two files with two ports.
The name is kept in the network namespace, because the containers of a pod share no file. A route there outlives the
tunnel's interface, the ruleset and the watchdog's container, and only NET_ADMIN can change it: see
docs/decisions/008-the-set-up-server.md.
"""

from __future__ import annotations

from binascii import crc32

from init_wg.model.state import INET, RECORD_TABLE, Route

#: TEST-NET-1 (RFC 5737). The table is looked up by no rule, so the address only has to be nobody else's there.
DESTINATION = "192.0.2.51/32"


def number(name: str) -> int:
    """The name as the route's metric. 0 would be no metric."""
    return crc32(name.encode(errors="surrogateescape")) or 1


def mark(name: str) -> Route:
    """The route that says: this server is set up."""
    return Route(INET, RECORD_TABLE, DESTINATION, None, kind="unreachable", metric=number(name))


def is_mark(route: Route) -> bool:
    """Does this route say which server is set up?"""
    return (route.table, route.destination) == (RECORD_TABLE, DESTINATION)
