"""The messages and attributes of netlink, written and read with `struct` alone (linux/netlink.h).

The one walker, below everything that speaks to the kernel: also the lockdown may import it, which may not import
`socket`.
"""

from __future__ import annotations

from struct import Struct, pack, unpack_from

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

#: struct nlmsghdr: length, type, flags, sequence, port.
HEADER = Struct("=IHHII")
ERROR, DONE = 2, 3  # NLMSG_ERROR, NLMSG_DONE
_TYPE = 0x3FFF  # the two highest bits of an attribute's type are flags


def messages(data: bytes) -> Iterator[tuple[int, int, int, int, bytes]]:
    """Each message of a datagram: type, flags, sequence, port and payload. Never raises: what is cut off ends it."""
    offset = 0
    while offset + 16 <= len(data):
        length, kind, flags, sequence, port = HEADER.unpack_from(data, offset)
        if length < 16:
            return
        yield kind, flags, sequence, port, data[offset + 16 : offset + length]
        offset += (length + 3) & ~3


def error_number(payload: bytes) -> int:
    """The errno of an ERROR or a DONE, 0 for none. It is negative on the wire."""
    return -int(unpack_from("=i", payload)[0]) if len(payload) >= 4 else 0


def attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """Type-length-value attributes as a dictionary; of a repeated type the last one."""
    return dict(attribute_list(data, offset))


def attribute_list(data: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """The same in order, for the lists in which every type is equal or means an index."""
    while offset + 4 <= len(data):
        length, kind = unpack_from("=HH", data, offset)
        if length < 4:
            return
        yield kind & _TYPE, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded so that another may follow."""
    return pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
