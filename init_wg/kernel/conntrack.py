"""Connections that the kernel tracks. Read by ctnetlink (include/uapi/linux/netfilter/nfnetlink_conntrack.h)."""

from __future__ import annotations

from collections import Counter

from init_wg.errors import KernelError

from .netlink import Socket
from .walk import attributes

_NETFILTER = 12
_GET = 1 << 8 | 1  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET
_MARK = 8  # CTA_MARK


def marks() -> Counter[int]:
    """How many connections of this network have each mark; 0 is none. Empty where the kernel cannot tell."""
    try:
        with Socket(_NETFILTER) as kernel:
            told = kernel.dump(_GET, bytes(4))
    except (OSError, KernelError):
        return Counter()
    return Counter(int.from_bytes(attributes(each, 4).get(_MARK, b""), "big") for each in told)
