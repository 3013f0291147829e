"""One at a time: init, watchdog and people. Containers of a pod share no files, but they share a network.

The lock is membership of a netlink multicast group of the netfilter subsystem. Only a process with CAP_NET_ADMIN may
join it, the kernel lists the members of this network namespace for everybody, and whoever ends has left. So nobody who
could not change the network anyway can hold it, delay it or leave it behind.

A process that wants it joins, and then looks: alone, it holds the lock; else it leaves, waits for a moment of its own,
and tries again. Of two, the one who looked later had been preceded by the other's joining: never are both alone.
"""

from __future__ import annotations

import os
import socket
import time

from init_wg.errors import KernelError

_NETFILTER = 12
#: NFNLGRP_ACCT_QUOTA (linux/netfilter/nfnetlink.h): quotas of nfacct, which no program in a pod listens to.
_GROUP = 8
_MEMBERS = "/proc/self/net/netlink"
#: Seconds between two tries: at least, and at most so much more.
_PAUSE, _SPREAD = 0.004, 0.016


def acquire(timeout: float) -> socket.socket:
    """The lock, for as long as the returned socket lives. Raises KernelError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        mine = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETFILTER)
        try:
            mine.bind((0, 1 << (_GROUP - 1)))
            others = _members() - {mine.getsockname()[0]}
        except BaseException:  # also when a signal ends this process's waiting
            mine.close()
            raise
        if not others:
            return mine
        mine.close()
        if time.monotonic() > deadline:
            raise KernelError(
                f"another init-wg ({_name(min(others))}) has been at work for {timeout:g} s: end it, then try again"
            )
        time.sleep(_PAUSE + _SPREAD * int.from_bytes(os.urandom(2), "big") / 65536)


def _members() -> set[int]:
    """The port numbers of the group's members. Columns: address, protocol, port, groups (a hexadecimal mask), ..."""
    found = set()
    with open(_MEMBERS, encoding="ascii", errors="replace") as file:
        for words in map(str.split, file):
            if words[1] == str(_NETFILTER) and int(words[3], 16) >> (_GROUP - 1) & 1:
                found.add(int(words[2]) & 0xFFFFFFFF)
    return found


def _name(port: int) -> str:
    """The kernel gives a process's first socket the process's number, and high numbers to further ones."""
    return f"process {port}" if port < 1 << 22 else "a process of this pod"
