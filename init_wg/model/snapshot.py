"""One look at the kernel's links, addresses, routes and rules, as values."""

# No `from __future__ import annotations`: NamedTuple would compile every one of them at every start.
from typing import NamedTuple

from init_wg.model.state import Address, Route, Rule


class Interface(NamedTuple):
    """A link as the kernel has it; number is its interface index. kind is "" for loopback and hardware."""

    number: int
    name: str
    kind: str
    mtu: int
    up: bool


class InterfaceAddress(NamedTuple):
    """An address, and the index of its link; scope as in rtnetlink (0 universe, 253 link). announced: the kernel made
    it because a router advertised its prefix, and takes it away when nobody does any more."""

    link: int
    address: Address
    scope: int
    announced: bool = False


class Snapshot(NamedTuple):
    """Everything rtnetlink knows that concerns us, read at one time."""

    interfaces: tuple[Interface, ...]
    addresses: tuple[InterfaceAddress, ...]
    routes: tuple[Route, ...]
    rules: tuple[Rule, ...]
