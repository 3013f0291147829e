"""What this process may use, for itself and in the face of clients: file descriptors."""

from __future__ import annotations

import resource

#: Descriptors that are enough for everything. The soft limit of most containers is 1,024, the hard one far beyond.
ENOUGH = 4096
#: Of these, what clients never get: repairs need pipes, netlink sockets, files and the forwarder's questions.
RESERVED = 128
#: Connections that are always allowed.
LEAST = 8


def raise_descriptors() -> None:
    """The soft limit up to what is enough, as far as the hard one allows. Children inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def connections(most: int) -> int:
    """How many clients there may be at one time, at most `most`."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most if soft == resource.RLIM_INFINITY else max(LEAST, min(most, soft - RESERVED))
