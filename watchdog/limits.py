"""The resources that this process may use and give away: file descriptors in the face of clients, and no core dump."""

from __future__ import annotations

import resource

from init_wg.kernel import libc, process

#: Descriptors that are enough for everything. The soft limit of most containers is 1,024, the hard one far beyond.
ENOUGH = 4096
#: Of these, what clients never get: repairs need pipes, netlink sockets, files and the forwarder's questions.
RESERVED = 128
_PR_SET_DUMPABLE = 4
#: Connections that are always allowed.
LEAST = 8


def raise_descriptors() -> None:
    """The soft limit up to what is enough, as far as the hard one allows. Children inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def keep_secrets() -> None:
    """No core dump, which would hold keys, of this process and its children; and nobody looks into its memory but who
    may look into every process's."""
    process.forbid_core_dumps()
    libc.call("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)


def give_back() -> None:
    """Let go of the memory that the imports have used and freed: 0.7 MiB with Python 3.12 and 3.13."""
    libc.call("malloc_trim", 0)  # glibc's alone


def connections(most: int) -> int:
    """How many clients there may be at one time, at most `most`."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most if soft == resource.RLIM_INFINITY else max(LEAST, min(most, soft - RESERVED))
