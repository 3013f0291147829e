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

_GETLINK, _SETLINK, _GETNETCONF = 18, 19, 82
_AF_SPEC, _INET_CONF, _FORWARDING = 26, 1, 1  # IFLA_AF_SPEC, IFLA_INET_CONF, IPV4_DEVCONF_FORWARDING
_NETCONF_INDEX, _NETCONF_FORWARDING = 1, 2
_NAME = 3  # IFLA_IFNAME
_IPV6_SYSCTL = "/proc/sys/net/ipv6/conf/all/forwarding"


def switch(kernel: Socket, number: int, *, on: bool) -> None:
    """For the link of this number. Raises OSError."""
    value = attribute(_FORWARDING, struct.pack("=I", on))
    body = struct.pack("=BxHiII", 0, 0, number, 0, 0) + nested(_AF_SPEC, nested(INET, nested(_INET_CONF, value)))
    kernel.request(_SETLINK, 0, body)


def links(kernel: Socket) -> frozenset[str]:
    """The names of the links for which it is on. Raises OSError."""
    names = {}
    for data in kernel.dump(_GETLINK, bytes(16)):
        names[struct.unpack_from("=i", data, 4)[0]] = text(attributes(data, 16).get(_NAME, b""))
    found = set()
    for data in kernel.dump(_GETNETCONF, struct.pack("=B3x", INET)):
        conf = attributes(data, 4)
        index = struct.unpack("=i", conf[_NETCONF_INDEX])[0]  # below zero: "all" and "default"
        if index in names and struct.unpack("=i", conf.get(_NETCONF_FORWARDING, bytes(4)))[0]:
            found.add(names[index])
    return frozenset(found)


def ipv6() -> bool:
    """Does the kernel forward IPv6 here? Only a sysctl, from outside of the container, switches that on."""
    try:
        with open(_IPV6_SYSCTL) as file:
            return file.read().strip() != "0"
    except OSError:
        return False
