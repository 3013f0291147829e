"""wg0 itself: reading and changing a WireGuard device, whoever implements it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from init_wg import wireguard_go, wireguard_kernel
from init_wg.state import TUN, WIREGUARD

if TYPE_CHECKING:
    from init_wg.wireguard import Change, Reading


def read(name: str, kind: str) -> Reading | None:
    """The device called `name`, or None when there is none that answers. kind is the link's.

    Raises OSError when the kernel refuses (no NET_ADMIN).
    """
    return wireguard_kernel.read(name) if kind == WIREGUARD else wireguard_go.read(name) if kind == TUN else None


def write(name: str, kind: str, wanted: Change) -> None:
    """Apply a change. Raises OSError, or KernelError when wireguard-go does not answer."""
    if kind == WIREGUARD:
        wireguard_kernel.write(name, wanted)
    else:
        wireguard_go.write(name, wanted)
