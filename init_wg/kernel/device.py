"""wg0 itself: reading and changing a WireGuard device, whoever implements it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from init_wg.kernel import wg_netlink, wg_uapi
from init_wg.model.state import TUN, WIREGUARD

if TYPE_CHECKING:
    from init_wg.model.wireguard import Change, Reading


def read(name: str, kind: str, patience: float = wg_uapi.PATIENCE) -> Reading | None:
    """The device called `name`, or None when there is none that answers. kind is the link's; patience: seconds until a
    wireguard-go that does not answer counts as none.

    Raises OSError when the kernel refuses (no NET_ADMIN).
    """
    return wg_netlink.read(name) if kind == WIREGUARD else wg_uapi.read(name, patience) if kind == TUN else None


def write(name: str, kind: str, wanted: Change, patience: float = wg_uapi.WRITE_PATIENCE) -> None:
    """Apply a change. Raises OSError, or KernelError when wireguard-go does not answer in `patience` seconds."""
    if kind == WIREGUARD:
        wg_netlink.write(name, wanted)
    else:
        wg_uapi.write(name, wanted, patience)
