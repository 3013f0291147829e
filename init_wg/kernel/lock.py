"""One at a time: init, watchdog and people. Containers of a pod share no files, but they share a network.

A name in the abstract Unix namespace belongs to the network namespace and is gone with its process, however
that ends. Whoever comes second connects to the first one's socket and waits until the kernel closes it.
"""

from __future__ import annotations

import errno
import socket
import struct
import time

from init_wg.errors import KernelError

_NAME = "\0init_wg"


def acquire(timeout: float) -> socket.socket:
    """The lock, for as long as the returned socket lives. Raises KernelError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        mine = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            mine.bind(_NAME)
        except OSError as error:
            mine.close()
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            mine.listen(16)
            return mine
        holder = _wait(deadline)
        if time.monotonic() > deadline:
            raise KernelError(f"another init-wg ({holder}) has been at work for {timeout:g} s: end it, then try again")


def _wait(deadline: float) -> str:
    """Until the holder goes, or the deadline comes. Who it is."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.settimeout(max(0.01, deadline - time.monotonic()))
        try:
            other.connect(_NAME)
            pid = struct.unpack("=iII", other.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
            other.recv(1)
        except TimeoutError:
            return f"process {pid}" if pid else "a process of another container"
        except OSError:  # it went, or is between bind and listen
            time.sleep(0.002)
    return "an unknown process"
