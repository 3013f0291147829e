"""Neighbours that the kernel is still asking for (linux/neighbour.h). Standard library only."""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import TYPE_CHECKING

from init_wg.kernel.walk import attribute, attributes

if TYPE_CHECKING:
    from init_wg.kernel.netlink import Socket

_DELNEIGH, _GETNEIGH = 29, 30
_MESSAGE = "=BxHiHBB"  # family, padding, interface, state, flags, type
_DESTINATION, _INCOMPLETE = 1, 0x01


def forget_unresolved(kernel: Socket) -> None:
    """Give up whom nobody has answered for yet, and the packets that wait for that.

    A sender without rules, past all routes, has made the kernel ask for a far address on the link. It
    asks again for some seconds, and so after the rules are back: only the egress gate would hold that then.
    """
    for data in kernel.dump(_GETNEIGH, bytes(12)):
        family, _, interface, state, _, _ = struct.unpack_from(_MESSAGE, data)
        address = attributes(data, 12).get(_DESTINATION)
        if state & _INCOMPLETE and address:
            with suppress(OSError):  # gone by itself
                message = struct.pack(_MESSAGE, family, 0, interface, 0, 0, 0)
                kernel.request(_DELNEIGH, 0, message + attribute(_DESTINATION, address))
