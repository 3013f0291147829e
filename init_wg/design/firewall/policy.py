"""The states of the kill-switch, as values: the bridge between what is desired and the text in killswitch.

  Sealed     nothing leaves the pod
  Resolving  one of the other two, and one DNS query besides
  Opened     the tunnel, its own packets, replies and the bypass networks

Each state has what its text depends on and no more: a sealed pod has no endpoints, and only Resolving has a hole.
docs/guarantees.md says in a table what leaves in each.
"""

from __future__ import annotations

from typing import NamedTuple


class Gate(NamedTuple):
    """The egress gate. links: every interface but the loopback and the tunnel; routed: it can ask whether a packet
    was routed."""

    links: tuple[str, ...]
    routed: bool


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


class Asked(NamedTuple):
    """Every query stays where its sender aimed it; these resolvers may be asked on the uplink (DNS_MODE cluster)."""

    resolvers: tuple[str, ...]


class Sealed(NamedTuple):
    """A pod that nothing leaves or enters. gate: a kernel without the egress hook has None."""

    gate: Gate | None


class Opened(NamedTuple):
    """A tunnel that is set up. Addresses and networks are text; networks are sorted and disjoint.

    gate: a kernel without the egress hook has None.
    inside: the networks that AllowedIPs lead into the tunnel.
    on_link: the networks of the pod's own link, and its gateways.
    neighbours: whose link-layer addresses may be asked for: these, IPv6's link-local ones, and without a gateway
    whatever may be reached.
    older: UDP ports of sockets that were open before: what comes in there may belong to a flow of the pod's own.
    advertised: the pod lives by router advertisements, and has to hear them.
    """

    tunnel: str
    uplink: str
    gate: Gate | None
    tunnel_addresses: tuple[str, ...]
    inside: tuple[str, ...]
    pod_addresses: tuple[str, ...]
    endpoints: tuple[tuple[str, int], ...]
    bypass: tuple[str, ...]
    on_link: tuple[str, ...]
    neighbours: tuple[str, ...]
    input_ports: tuple[str, ...]
    dns: Names | Asked
    older: tuple[int, ...] = ()
    advertised: bool = False

    @property
    def names(self) -> Names | None:
        """Where redirected queries go; None where none is redirected."""
        return self.dns if isinstance(self.dns, Names) else None

    @property
    def asked(self) -> tuple[str, ...]:
        """The resolvers that everybody may ask on the uplink."""
        return self.dns.resolvers if isinstance(self.dns, Asked) else ()


class Resolving(NamedTuple):
    """One query for an endpoint's name may leave a pod that is otherwise sealed, or opened."""

    otherwise: Sealed | Opened
    hole: Hole


Policy = Sealed | Resolving | Opened
