"""UDP sockets that may be in the middle of a flow: those that are open when the pod is set up."""

from __future__ import annotations

_TABLES = ("/proc/self/net/udp", "/proc/self/net/udp6")
_RANGE = "/proc/sys/net/ipv4/ip_local_port_range"
_DEFAULT_RANGE = 32768
_LOOPBACK = ("7F", "00000000000000000000000001000000")  # 127.0.0.0/8 in the kernel's byte order, and ::1


def ports() -> tuple[int, ...]:
    """The local ports of sockets that have a peer, or a port that the kernel chose; sorted."""
    lowest = _chosen_from()
    found: set[int] = set()
    for table in _TABLES:
        found.update(_ports(_read(table), lowest))
    return tuple(sorted(found))


def _ports(table: str, lowest: int) -> set[int]:
    """A table as the kernel prints it: number, local address:port, remote address:port, all in hexadecimal."""
    found = set()
    for line in table.splitlines()[1:]:
        _, local, remote, *_ = line.split()
        address, _, port = local.rpartition(":")
        has_peer = int(remote.rpartition(":")[2], 16) != 0
        if not address.endswith(_LOOPBACK) and (has_peer or int(port, 16) >= lowest):
            found.add(int(port, 16))
    return found


def _chosen_from() -> int:
    words = _read(_RANGE).split()
    return int(words[0]) if words else _DEFAULT_RANGE


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except FileNotFoundError:  # a kernel without IPv6
        return ""
