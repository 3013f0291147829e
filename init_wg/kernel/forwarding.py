"""IPv4 forwarding of single links, without any sysctl (linux/netconf.h, linux/if_link.h). Standard library only.

/proc/sys is read-only in a pod. An attribute of the link does the same, for NET_ADMIN: IFLA_AF_SPEC, in it AF_INET, in
it IFLA_INET_CONF. IPv6 has no such attribute. Setting it raises no event, so who depends on it has to look.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from init_wg.kernel.netlink import nested, text
from init_wg.kernel.walk import attribute, attributes
from init_wg.model.state import INET

if TYPE_CHECKING:
    from init_wg.kernel.netlink import Socket

_GETLINK, _SETLINK = 18, 19
_NAME, _AF_SPEC, _INET_CONF = 3, 26, 1  # IFLA_IFNAME, IFLA_AF_SPEC, IFLA_INET_CONF
_FORWARDING, _SRC_VMARK = 1, 24  # IPV4_DEVCONF_FORWARDING, IPV4_DEVCONF_SRC_VMARK
_IPV6_SYSCTL = "/proc/sys/net/ipv6/conf/all/forwarding"


def switch(kernel: Socket, number: int, *, on: bool) -> None:
    """For the link of this number. Raises OSError.

    With src_valid_mark, or the reverse path filter would look for the way back without the packet's mark. The rules of
    a server forward by that mark: rp_filter 1 and 2 would drop every packet.
    """
    values = b"".join(attribute(kind, struct.pack("=I", on)) for kind in (_FORWARDING, _SRC_VMARK))
    body = struct.pack("=BxHiII", 0, 0, number, 0, 0) + nested(_AF_SPEC, nested(INET, nested(_INET_CONF, values)))
    kernel.request(_SETLINK, 0, body)


def links(kernel: Socket) -> frozenset[str]:
    """The names of the links for which all that `switch` sets is on. Raises OSError."""
    return frozenset(
        text(found.get(_NAME, b""))
        for found in (attributes(data, 16) for data in kernel.dump(_GETLINK, bytes(16)))
        if _forwards(attributes(attributes(found.get(_AF_SPEC, b"")).get(INET, b"")).get(_INET_CONF, b""))
    )


def _forwards(conf: bytes) -> bool:
    """Of an array with a number for each IPV4_DEVCONF_*, from 1 on."""
    values = [value for (value,) in struct.iter_unpack("=I", conf)]
    return len(values) >= _SRC_VMARK and all(values[kind - 1] for kind in (_FORWARDING, _SRC_VMARK))


def ipv6() -> bool:
    """Does the kernel forward IPv6 here? Only a sysctl, from outside of the container, switches that on."""
    try:
        with open(_IPV6_SYSCTL) as file:
            return file.read().strip() != "0"
    except OSError:
        return False
