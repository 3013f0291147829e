"""An app that talks from its first instant, whatever it is told: every 5 ms a datagram, often a new connection.

noise.py ADDRESS      Only wrong about everything: it waits for nobody, and never gives up.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import sys
import time

target = sys.argv[1]
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
tcp: list[socket.socket] = []
for number in itertools.count():
    with contextlib.suppress(OSError):
        udp.sendto(b"init-wg-probe:noise;", (target, 9))
    if number % 20 == 0:
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        connection.setblocking(False)
        with contextlib.suppress(OSError):
            connection.connect((target, 80))
        tcp.append(connection)
        if len(tcp) > 50:
            tcp.pop(0).close()
    time.sleep(0.005)
