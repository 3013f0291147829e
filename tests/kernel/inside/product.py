"""The product in the lab's pod, and what the kernel says about its tunnel."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from typing import NamedTuple

# What init_wg imports in the course of a run: once here, not in every fork.
from pyroute2.netlink.generic import wireguard as _wireguard  # noqa: F401
from pyroute2.netlink.rtnl import fibmsg, ifaddrmsg, ifinfmsg, rtmsg  # noqa: F401

import init_wg.__main__
import init_wg.setup.connect
import init_wg.setup.report
from tests.kernel.inside.conftest import PATIENCE
from tests.lab.lab import CLONE_NEWNET, FAMILIES, PROJECT, Lab, libc

CLONE_NEWNS = 0x20000
REKEY_AFTER_TIME = 120 - 1  # seconds (WireGuard whitepaper, section 6.1)


def run(lab: Lab, *words: str, env: Mapping[str, str] | None = None, expect: int = 0) -> str:
    """The product as a fork of this process, in the pod's namespaces: what it says. Its exit status must be `expect`.

    A process like any other, but for its start: Python and the imports take seconds on an emulated machine. Where
    the start matters too, there is lab.init_wg().
    """
    assert lab.pod.holder
    with tempfile.TemporaryFile("w+") as output:
        child = os.fork()
        if not child:
            status = 70
            try:
                for kind, flag in (("net", CLONE_NEWNET), ("mnt", CLONE_NEWNS)):
                    with open(f"/proc/{lab.pod.holder.pid}/ns/{kind}") as namespace:
                        assert libc.setns(namespace.fileno(), flag) == 0
                os.chdir(PROJECT)
                os.environ.update({**lab.pod_env, "HANDSHAKE_TIMEOUT": "120", **(env or {})})
                for stream in (1, 2):
                    os.dup2(output.fileno(), stream)
                sys.stdout, sys.stderr = (os.fdopen(stream, "w", closefd=False) for stream in (1, 2))
                sys.argv = ["init-wg", *words]
                init_wg.__main__.main()
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else 1
            except BaseException:  # noqa: BLE001  # a test's exception must not go on in two processes
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        output.seek(0)
        said = output.read()
    assert status == expect, f"init_wg {' '.join(words)}: exit {status}\n{said}"
    return said


class Peer(NamedTuple):
    """As `wg` shows it. handshake: Unix seconds, 0 is never; received: bytes."""

    preshared_key: str
    endpoint: str
    allowed_ips: frozenset[str]
    handshake: int
    received: int
    keepalive: str


class Tunnel(NamedTuple):
    """wg0 as the kernel's tools see it. A link that was made anew has another number."""

    number: int
    kind: str
    peers: dict[str, Peer]

    def is_still(self, before: Tunnel) -> bool:
        """The same link, and no session was given up: only WireGuard itself renews one, when it is old enough."""
        return self.number == before.number and all(
            self.peers[key].received >= peer.received
            and (self.peers[key].handshake == peer.handshake or time.time() - peer.handshake > REKEY_AFTER_TIME)
            for key, peer in before.peers.items()
        )


def tunnel(lab: Lab) -> Tunnel:
    with lab.pod.inside():
        number = socket.if_nametoindex("wg0")
    (link,) = json.loads(lab.pod.run(["ip", "-json", "-details", "link", "show", "wg0"]).stdout)
    peers = {}
    for line in lab.pod.run(["wg", "show", "wg0", "dump"]).stdout.splitlines()[1:]:
        key, preshared_key, endpoint, allowed, handshake, received, _, keepalive = line.split("\t")
        networks = frozenset(allowed.split(","))
        peers[key] = Peer(preshared_key, endpoint, networks, int(handshake), int(received), keepalive)
    return Tunnel(number, link["linkinfo"]["info_kind"], peers)


def arrives_from_the_provider(lab: Lab) -> None:
    for family in FAMILIES:
        assert lab.traffic_source(family, timeout=PATIENCE) == lab.provider.addresses[family]


def secret() -> str:
    return subprocess.run(["wg", "genkey"], capture_output=True, text=True, check=True).stdout.strip()


def public(key: str) -> str:
    return subprocess.run(["wg", "pubkey"], input=key, capture_output=True, text=True, check=True).stdout.strip()
