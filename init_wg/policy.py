"""All that the kill-switch depends on, as values: the bridge between what is desired and its text."""

from __future__ import annotations

from typing import NamedTuple


class Hole(NamedTuple):
    """The way out for one DNS query: to these resolvers, from this UDP source port, and only with our mark."""

    resolvers: tuple[str, ...]
    source_port: int


class Policy(NamedTuple):
    """All that the rules depend on. Addresses and networks are text; networks are sorted and disjoint.

    links: every interface but the loopback and the tunnel; the gate watches them (none: no egress hook).
    routed: the gate can ask whether a packet was routed.
    neighbours: where IPv6 neighbour discovery may go beyond link-local (on-link networks, the gateway).
    """

    tunnel: str
    uplink: str
    links: tuple[str, ...]
    routed: bool
    tunnel_addresses: tuple[str, ...]
    pod_addresses: tuple[str, ...]
    endpoints: tuple[tuple[str, int], ...]
    bypass: tuple[str, ...]
    neighbours: tuple[str, ...]
    input_ports: tuple[int, ...]
    resolve_anywhere: bool
    hole: Hole | None = None
