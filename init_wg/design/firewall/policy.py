"""All that the kill-switch depends on, as values: the bridge between what is desired and its text."""

from __future__ import annotations

from typing import NamedTuple


class Hole(NamedTuple):
    """The way out for one DNS query: to these resolvers, from this UDP source port, and only with our mark."""

    resolvers: tuple[str, ...]
    source_port: int


class Names(NamedTuple):
    """Where DNS goes (DNS_MODE tunnel or split), whatever resolver an application believes in.

    resolvers: the tunnel's, in the order of the file. cluster: (alias, resolver) pairs: the forwarder asks the
    alias, which nobody else knows, and only what is addressed to it goes to the cluster. docker: the engine's
    embedded resolver may be asked by the forwarder. forwarded: all goes to the forwarder (split, or several
    resolvers). group: the forwarder's, whose user is root.
    """

    resolvers: tuple[str, ...]
    cluster: tuple[tuple[str, str], ...]
    docker: bool
    forwarded: bool
    group: int = 0


class Policy(NamedTuple):
    """All that the rules depend on. names: without one (None), every query stays where its sender aimed it;
    asked: resolvers that may be asked on the uplink then. Addresses and networks are text; networks are sorted and
    disjoint.

    links: every interface but the loopback and the tunnel; the gate watches them (none: no egress hook).
    routed: the gate can ask whether a packet was routed.
    inside: the networks that AllowedIPs lead into the tunnel.
    advertised: the pod lives by router advertisements, and has to hear them.
    on_link: the networks of the pod's own link, and its gateways.
    neighbours: whose link-layer addresses may be asked for: these, IPv6's link-local ones, and without a gateway
    whatever may be reached.
    older: UDP ports of sockets that were open before: what comes in there may belong to a flow of the pod's own.
    """

    tunnel: str
    uplink: str
    links: tuple[str, ...]
    routed: bool
    tunnel_addresses: tuple[str, ...]
    inside: tuple[str, ...]
    pod_addresses: tuple[str, ...]
    endpoints: tuple[tuple[str, int], ...]
    bypass: tuple[str, ...]
    on_link: tuple[str, ...]
    neighbours: tuple[str, ...]
    input_ports: tuple[str, ...]
    names: Names | None
    asked: tuple[str, ...]
    older: tuple[int, ...] = ()
    hole: Hole | None = None
    advertised: bool = False
