"""`python -m watchdog.healthcheck`: for Docker's and Podman's health checks, where there is no curl.

Exit status 0 when the watchdog in this container says that the VPN is active, else 1; it prints what was said.

Docker restarts no container for being unhealthy, and one case needs that: when the container that owns the network
namespace was restarted, all others keep the old namespace, whose links are gone for good. A watchdog that finds
itself there (and is process 1 of its own container) is told to end: the restart policy starts it in the new one.
"""

from __future__ import annotations

import os
import signal
import socket
import sys

from init_wg.config import settings

#: Seconds for everything.
TIMEOUT = 3.0


def ask(port: int) -> tuple[bool, str]:
    """Whether the watchdog on this port says 200, and its words. Never raises."""
    answer = b""
    try:
        with socket.create_connection(("127.0.0.1", port), TIMEOUT) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            while data := connection.recv(4096):
                answer += data
    except OSError as error:
        return False, f"the watchdog does not answer on port {port}: {error.strerror or 'in time'}"
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.split(b" ")[1:2] == [b"200"], body.decode(errors="replace").strip()


def is_abandoned(tunnel: str) -> bool:
    """Is nothing left here but the loopback and our own tunnel? Then the namespace's owner has gone."""
    return {name for _, name in socket.if_nameindex()} <= {"lo", tunnel}


def main() -> int:
    """One check."""
    found = settings.read(os.environ)
    healthy, words = ask(found.health_port)
    if is_abandoned(found.interface):
        healthy, words = False, "this network has lost its links: its holder was restarted; ending, to join the new one"
        if os.getpid() != 1 and is_watchdog(1):
            os.kill(1, signal.SIGTERM)
    print(words)
    return 0 if healthy else 1


def is_watchdog(pid: int) -> bool:
    """Not somebody's shell, and not a process of the node."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return b"watchdog" in file.read()
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
