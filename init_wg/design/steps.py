"""The steps of a plan as types: each says what it does, and to which device, route or rule. Pure.

`what`, `wanted` and `found` are for people, and have no secrets. Plain classes: a NamedTuple each would cost every
start 3 ms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from init_wg.model.state import DEFAULT, INET, TUN, WIREGUARD, Address, Link, Route, Rule

if TYPE_CHECKING:
    from init_wg.model.wireguard import Change


class Step:
    """One change."""

    __slots__ = ("found", "wanted", "what")

    def __init__(self, what: str, wanted: str, found: str) -> None:
        self.what, self.wanted, self.found = what, wanted, found

    def __str__(self) -> str:
        return f"{self.what}: wanted {self.wanted}, found {self.found}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}>"


class Add(Step):
    """One thing more, which does no harm if it is there already."""

    __slots__ = ()

    def __init__(self, what: str) -> None:
        super().__init__(what, "there", "none")


class Delete(Step):
    """One thing less, which may be gone already."""

    __slots__ = ()

    def __init__(self, what: str, found: str = "there", wanted: str = "none") -> None:
        super().__init__(what, wanted, found)


# --- the kill-switch -------------------------------------------------------------------------------------------------


class PutRuleset(Step):
    """Put this text in place of whatever rules of ours there are, in one transaction."""

    __slots__ = ("ruleset",)

    def __init__(self, ruleset: str, found: str) -> None:
        super().__init__("kill-switch", "as designed", found)
        self.ruleset = ruleset


class RepairRuleset(PutRuleset):
    """In place of rules that are missing or wrong."""

    __slots__ = ()


class OpenRuleset(PutRuleset):
    """In place of the sealed ones."""

    __slots__ = ()


class DeleteRuleset(Delete):
    """Take the kill-switch away."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__("kill-switch", "loaded")


# --- interfaces ------------------------------------------------------------------------------------------------------


class CreateInterface(Step):
    """Make the link; it is down, and has no settings."""

    __slots__ = ("link",)

    def __init__(self, link: Link) -> None:
        super().__init__(f"interface {link.name}", _implementation(link.kind), "none")
        self.link = link


class DeleteInterface(Delete):
    """Its addresses and its routes go with it."""

    __slots__ = ("name",)

    def __init__(self, name: str, found: str, wanted: str = "none") -> None:
        super().__init__(f"interface {name}", found, wanted)
        self.name = name


class SetMtu(Step):
    """Of a link."""

    __slots__ = ("link",)

    def __init__(self, link: Link, found: Link | None) -> None:
        super().__init__(f"MTU of {link.name}", str(link.mtu), str(found.mtu) if found else "none")
        self.link = link


class SetUp(Step):
    """A link that is down."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        super().__init__(f"interface {name}", "up", "down")
        self.name = name


class SetForwarding(Step):
    """Let the kernel forward IPv4 packets that come in by a link."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        super().__init__(f"IPv4 forwarding of {name}", "on", "off")
        self.name = name


class ChangeDevice(Step):
    """Tell a WireGuard device what differs. kind: of its link."""

    __slots__ = ("change", "kind", "name")

    def __init__(self, link: Link, change: Change, what: str, wanted: str, found: str) -> None:
        super().__init__(f"{what} of {link.name}", wanted, found)
        self.name, self.kind, self.change = link.name, link.kind, change


class Configure(ChangeDevice):
    """Key, port, mark and peers."""

    __slots__ = ()

    def __init__(self, link: Link, change: Change, wanted: str, found: str) -> None:
        super().__init__(link, change, "WireGuard settings", wanted, found)


class RepeatEndpoints(ChangeDevice):
    """The same endpoints again: WireGuard forgets by which way it last heard them."""

    __slots__ = ()

    def __init__(self, link: Link, change: Change) -> None:
        super().__init__(link, change, "endpoints", "by the present uplink", "by a former one")


class SetKeepalives(ChangeDevice):
    """The peers begin to speak by themselves."""

    __slots__ = ()

    def __init__(self, link: Link, change: Change, wanted: str, found: str) -> None:
        super().__init__(link, change, "keepalive", wanted, found)


# --- addresses, routes, rules ----------------------------------------------------------------------------------------


class AddAddress(Add):
    """To one of our interfaces."""

    __slots__ = ("address", "interface")

    def __init__(self, interface: str, address: Address) -> None:
        super().__init__(f"address {address.address}/{address.prefix_length}")
        self.interface, self.address = interface, address


class DeleteAddress(Delete):
    """From one of our interfaces."""

    __slots__ = ("address", "interface")

    def __init__(self, interface: str, address: Address) -> None:
        super().__init__(f"address {address.address}/{address.prefix_length}")
        self.interface, self.address = interface, address


class AddRoute(Add):
    """To the table that it names."""

    __slots__ = ("route",)

    def __init__(self, route: Route) -> None:
        super().__init__(f"route {_show_route(route)}")
        self.route = route


class DeleteRoute(Delete):
    """From the table that it names."""

    __slots__ = ("route",)

    def __init__(self, route: Route) -> None:
        super().__init__(f"route {_show_route(route)}")
        self.route = route


class AddRule(Add):
    """To the policy rules of its family."""

    __slots__ = ("rule",)

    def __init__(self, rule: Rule) -> None:
        super().__init__(f"rule {_show_rule(rule)}")
        self.rule = rule


class DeleteRule(Delete):
    """From the policy rules of its family."""

    __slots__ = ("rule",)

    def __init__(self, rule: Rule) -> None:
        super().__init__(f"rule {_show_rule(rule)}")
        self.rule = rule


# --- words -----------------------------------------------------------------------------------------------------------


def _implementation(kind: str) -> str:
    return {WIREGUARD: "kernel WireGuard", TUN: "wireguard-go"}.get(kind, kind)


def unwanted_interface(link: Link) -> DeleteInterface:
    """One of ours that must not be there at all."""
    return DeleteInterface(link.name, _implementation(link.kind))


def wrong_interface(link: Link, wanted: str) -> DeleteInterface:
    """One that must be made anew, because it is of another kind than `wanted` or does not answer."""
    kind = "a dead wireguard-go" if link.kind == TUN else f"a foreign {link.kind or 'device'}"
    kind = "one of the kernel" if link.kind == WIREGUARD else kind
    return DeleteInterface(link.name, kind, _implementation(wanted))


def _show_route(route: Route) -> str:
    kind = "" if route.kind == "unicast" else f"{route.kind} "
    destination = "default" if route.destination == DEFAULT[route.family] else route.destination
    gateway = f" via {route.gateway}" if route.gateway else ""
    device = f" dev {route.device}" if route.device else ""
    family = "" if route.family == INET else " (IPv6)"
    return f"{kind}{destination}{gateway}{device} in table {route.table}{family}"


def _show_rule(rule: Rule) -> str:
    words = [f"{rule.preference}:", *(["not"] if rule.invert else [])]
    words += ["from", rule.source or "all"]
    words += ["to", rule.destination] if rule.destination else []
    words += ["dport", str(rule.port)] if rule.port is not None else []
    words += ["fwmark", str(rule.mark)] if rule.mark is not None else []
    words += ["lookup", str(rule.table)]
    words += ["suppress_prefixlength", str(rule.suppress_prefix_length)] * (rule.suppress_prefix_length is not None)
    words += ["and more"] if rule.other else []
    return f"{' '.join(words)}{'' if rule.family == INET else ' (IPv6)'}"
