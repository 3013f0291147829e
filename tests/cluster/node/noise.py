"""An application that sends all the time, in every way it may; it prints what it sees, when that changes."""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import sys
import time

WEB, WEB6, ELSEWHERE, PUBLIC_DNS = "203.0.113.80", "2001:db8:113::80", "198.51.100.7", "8.8.8.8"
ENDPOINT, CLUSTER_DNS, NODE = "203.0.113.51", "10.43.0.10", "192.168.7.1"
TAG = b"init-wg-probe:noise;"

seen: dict[str, object] = {}
datagrams: dict[str, socket.socket] = {}
connections: dict[str, socket.socket] = {}


def say(what: str, value: object) -> None:
    if seen.get(what) != value:
        seen[what] = value
        print(f"{time.time():.2f} {what} {value}", flush=True)


def query(number: int) -> bytes:
    name = b"".join(bytes([len(part)]) + part for part in (b"n%d" % number, b"web", b"example")) + b"\0"
    return struct.pack(">HHHHHH", number & 65535, 0x100, 1, 0, 0, 0) + name + b"\0\1\0\1"


def send(what: str, host: str, port: int, data: bytes) -> None:
    if what not in datagrams:
        datagrams[what] = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        datagrams[what].setblocking(False)
    try:
        with contextlib.suppress(BlockingIOError):
            while True:
                answer, sender = datagrams[what].recvfrom(2048)
                say(what, answer.decode("latin-1") if what.startswith("udp") else f"from {sender[0]}")
        datagrams[what].sendto(data, (host, port))
    except OSError as error:
        say(what, f"errno {error.errno}")


def connect(what: str, host: str, port: int) -> None:
    if old := connections.pop(what, None):
        old.close()
    connections[what] = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    connections[what].setblocking(False)
    with contextlib.suppress(OSError):
        connections[what].connect((host, port))


deadline = time.monotonic() + float(sys.argv[1]) if len(sys.argv) > 1 else float("inf")
for number in itertools.count():
    if time.monotonic() > deadline:
        break
    send("udp4", WEB, 9, TAG)
    send("udp6", WEB6, 9, TAG)
    send("elsewhere", ELSEWHERE, 1234, TAG)
    send("endpoint", ENDPOINT, 51820, TAG)
    send("dns-cluster", CLUSTER_DNS, 53, query(number))
    send("dns-node", NODE, 53, query(number))
    send("dns-public", PUBLIC_DNS, 53, query(number))
    if number % 4 == 0:
        connect("tcp4", WEB, 80)
        connect("tcp6", WEB6, 80)
        connect("dot", PUBLIC_DNS, 853)
    time.sleep(0.02)
