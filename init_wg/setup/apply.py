"""One step of a plan, carried out: the thin imperative end of setup and repair."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from init_wg.design.firewall import killswitch
from init_wg.design.steps import (
    Add,
    AddAddress,
    AddRoute,
    AddRule,
    ChangeDevice,
    CreateInterface,
    Delete,
    DeleteAddress,
    DeleteInterface,
    DeleteRoute,
    DeleteRule,
    DeleteRuleset,
    OpenRuleset,
    PutRuleset,
    SetForwarding,
    SetMtu,
    SetUp,
    Step,
)
from init_wg.errors import KernelError
from init_wg.kernel import device, forwarding, neighbours, netlink, nft, rtnetlink_write, wg_uapi
from init_wg.model.state import TUN

if TYPE_CHECKING:
    from init_wg.config.settings import Settings
    from init_wg.model.state import Link


class NoKernelWireGuardError(Exception):
    """The kernel cannot make the interface, and WG_IMPLEMENTATION leaves the choice to us."""


def run(kernel: netlink.Socket, settings: Settings, step: Step) -> None:
    """Carry out one step. A thing that is already there, or already gone, is no error: the next look decides.

    Raises KernelError, and NoKernelWireGuardError before anything of wg0 was changed.
    """
    try:
        _run(kernel, settings, step)
    except OSError as error:
        _judge(step, error)


def _run(kernel: netlink.Socket, settings: Settings, step: Step) -> None:
    match step:
        case OpenRuleset():
            neighbours.forget_unresolved(kernel)  # still sealed: none of these is WireGuard's
            nft.begin(killswitch.replacement(step.ruleset))
        case PutRuleset():
            nft.load(killswitch.replacement(step.ruleset))
            neighbours.forget_unresolved(kernel)  # of what no rules have stopped
        case DeleteRuleset():
            nft.load(killswitch.removal())
        case CreateInterface():
            _create(kernel, settings, step.link)
        case DeleteInterface():
            rtnetlink_write.delete_link(kernel, netlink.index(step.name))
        case SetMtu():
            rtnetlink_write.change_link(kernel, netlink.index(step.link.name), mtu=step.link.mtu)
        case SetUp():
            rtnetlink_write.change_link(kernel, netlink.index(step.name), up=True)
        case SetForwarding():
            forwarding.switch(kernel, netlink.index(step.name), on=True)
        case ChangeDevice():
            device.write(step.name, step.kind, step.change)
        case AddAddress() | DeleteAddress():
            add = isinstance(step, AddAddress)
            rtnetlink_write.write_address(kernel, netlink.index(step.interface), step.address, add=add)
        case AddRoute() | DeleteRoute():
            rtnetlink_write.write_route(kernel, step.route, add=isinstance(step, AddRoute))
        case AddRule() | DeleteRule():
            rtnetlink_write.write_rule(kernel, step.rule, add=isinstance(step, AddRule))
        case _:
            raise TypeError(f"{type(step).__name__} is a step that nobody carries out")


def add_routes(kernel: netlink.Socket, steps: list[AddRoute]) -> None:
    """Routes that are added one after the other, together: ten thousand single ones take seconds."""
    for step, code in zip(steps, rtnetlink_write.add_routes(kernel, [step.route for step in steps]), strict=True):
        if code:
            _judge(step, OSError(code, os.strerror(code)))


def _judge(step: Step, error: OSError) -> None:
    adding = isinstance(step, Add) and error.errno == errno.EEXIST
    gone = isinstance(step, Delete) and error.errno in _GONE
    if not adding and not gone:
        raise KernelError(f"{step.what}: {netlink.describe(error)}") from error


_GONE = (errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EADDRNOTAVAIL)


def _create(kernel: netlink.Socket, settings: Settings, link: Link) -> None:
    if link.kind == TUN:
        wg_uapi.start(link.name)
        return
    try:
        rtnetlink_write.add_link(kernel, link.name, link.kind)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        if settings.implementation == "auto":
            raise NoKernelWireGuardError from error
        raise KernelError(
            "the kernel has no WireGuard: load the node's wireguard module, or set WG_IMPLEMENTATION=userspace"
        ) from error
