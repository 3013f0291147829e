"""One step of a plan, carried out: the thin imperative end of setup and repair."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

from init_wg.design.firewall import killswitch
from init_wg.errors import KernelError
from init_wg.kernel import device, neighbours, netlink, nft, rtchange, wg_uapi
from init_wg.model.state import TUN

if TYPE_CHECKING:
    from collections.abc import Callable

    from init_wg.config.settings import Settings
    from init_wg.design.plan import Step


class NoKernelWireGuardError(Exception):
    """The kernel cannot make the interface, and WG_IMPLEMENTATION leaves the choice to us."""


def run(kernel: netlink.Socket, settings: Settings, step: Step) -> None:
    """Carry out one step. What is already there, or already gone, is not an error: the next look decides.

    Raises KernelError, and NoKernelWireGuardError before anything of wg0 was changed.
    """
    try:
        _ACTIONS[step.action](kernel, settings, step.item)
    except OSError as error:
        _judge(step, error)


def _load(kernel: netlink.Socket, text: str) -> None:
    nft.load(killswitch.replacement(text))
    neighbours.forget_unresolved(kernel)  # of what no rules have stopped


def _open(kernel: netlink.Socket, text: str) -> None:
    neighbours.forget_unresolved(kernel)  # still sealed: none of these is WireGuard's
    nft.begin(killswitch.replacement(text))


def run_many(kernel: netlink.Socket, steps: list[Step]) -> None:
    """Routes that are added one after the other, together: ten thousand single ones take seconds."""
    for step, code in zip(steps, rtchange.add_routes(kernel, [step.item for step in steps]), strict=True):
        if code:
            _judge(step, OSError(code, os.strerror(code)))


def _judge(step: Step, error: OSError) -> None:
    adding = step.action.startswith("add-") and error.errno == errno.EEXIST
    gone = step.action.startswith("delete-") and error.errno in _GONE
    if not adding and not gone:
        raise KernelError(f"{step.what}: {netlink.describe(error)}") from error


_GONE = (errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EADDRNOTAVAIL)


def _create_link(kernel: netlink.Socket, settings: Settings, link: Any) -> None:
    if link.kind == TUN:
        wg_uapi.start(link.name)
        return
    try:
        rtchange.add_link(kernel, link.name, link.kind)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        if settings.implementation == "auto":
            raise NoKernelWireGuardError from error
        raise KernelError(
            "the kernel has no WireGuard: load the node's wireguard module, or set WG_IMPLEMENTATION=userspace"
        ) from error


_ACTIONS: dict[str, Callable[[netlink.Socket, Settings, Any], None]] = {
    "load": lambda kernel, _, text: _load(kernel, text),
    "open": lambda kernel, _, text: _open(kernel, text),
    "unload": lambda _, __, ___: nft.load(killswitch.removal()),
    "delete-link": lambda kernel, _, link: rtchange.delete_link(kernel, netlink.index(link.name)),
    "create-link": _create_link,
    "configure": lambda _, settings, item: device.write(settings.interface, *item),
    "aim": lambda _, settings, item: device.write(settings.interface, *item),
    "keepalive": lambda _, settings, item: device.write(settings.interface, *item),
    "set-mtu": lambda kernel, _, link: rtchange.change_link(kernel, netlink.index(link.name), mtu=link.mtu),
    "link-up": lambda kernel, _, link: rtchange.change_link(kernel, netlink.index(link.name), up=True),
    "add-address": lambda k, s, address: rtchange.write_address(k, netlink.index(s.interface), address, add=True),
    "delete-address": lambda k, s, address: rtchange.write_address(k, netlink.index(s.interface), address, add=False),
    "add-route": lambda k, _, route: rtchange.write_route(k, route, add=True),
    "delete-route": lambda k, _, route: rtchange.write_route(k, route, add=False),
    "add-rule": lambda k, _, rule: rtchange.write_rule(k, rule, add=True),
    "delete-rule": lambda k, _, rule: rtchange.write_rule(k, rule, add=False),
}
