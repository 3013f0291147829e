"""What happens around the watchdog and `up`, and must not stop them: nobody reads the log, wireguard-go hangs, a
redirection leads out of the tunnel, a Service has taken a variable's name, somebody wants a core dump."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.faults import wireguard_daemons
from tests.lab.lab import Lab, Member, wait_until
from tests.netns.chaos import Watchdog, fetch

#: An HTTP server that gives one answer to everybody, and prints who asked.
SERVER = """
import socket, sys
server = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("ready", flush=True)
while True:
    client, who = server.accept()
    client.recv(4096)
    print(who[0], flush=True)
    client.sendall(sys.argv[3].encode().decode("unicode_escape").encode())
    client.close()
"""
REDIRECT = "HTTP/1.1 302 Found\\r\\nLocation: http://10.43.0.80:8101/\\r\\nContent-Length: 0\\r\\n\\r\\n"


@contextlib.contextmanager
def full_pipe() -> Iterator[tuple[int, int]]:
    """A pipe that takes nothing more: its reading and its writing end."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for size in (4096, 1):
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, b"x" * size)
    os.set_blocking(writer, True)
    try:
        yield reader, writer
    finally:
        os.close(reader)
        os.close(writer)


def test_a_log_that_nobody_reads_stops_neither_up_nor_the_watchdog() -> None:
    with Lab() as lab, full_pipe() as (reader, writer):
        argv = [sys.executable, "-m", "init_wg", "up"]
        assert lab.pod.popen(argv, env=lab.pod_env, stderr=writer).wait(30) == 0
        watchdog = lab.pod.popen([sys.executable, "-m", "watchdog"], env=lab.pod_env, stderr=writer)
        address = lab.pod.addresses[4]
        wait_until(lambda: fetch(lab.node, address, "/") == "VPN is active", "green")
        lab.pod.run(["ip", "link", "delete", "wg0"])
        wait_until(lambda: fetch(lab.node, address, "/") == "VPN is active" and lab.flows(0.5), "repaired")
        assert "init_wg_log_lost_lines_total 0\n" not in fetch(lab.node, address, "/metrics")
        os.set_blocking(reader, False)
        with contextlib.suppress(BlockingIOError):
            while os.read(reader, 1 << 16):
                pass
        watchdog.send_signal(signal.SIGTERM)
        assert watchdog.wait(5) == 0
        said = os.read(reader, 1 << 16).decode()
        assert "lines of the log are lost: nobody read them\n" in said.splitlines(keepends=True)[0]
        assert "ended by SIGTERM" in said


def test_a_wireguard_go_that_hangs_is_replaced() -> None:
    with Lab() as lab:
        if not wireguard_daemons(lab):
            lab.init_wg("up")
        if not wireguard_daemons(lab):
            pytest.skip("WireGuard is the kernel's here")
        with Watchdog(lab) as watchdog:
            watchdog.settle()
            (hanging,) = wireguard_daemons(lab)
            os.kill(hanging, signal.SIGSTOP)
            started = time.monotonic()
            wait_until(lambda: not watchdog.active(), "red", 10)
            wait_until(lambda: lab.flows(0.5) and watchdog.active(), f"replaced: {watchdog.log()}", 20)
            assert time.monotonic() - started < 15
            assert wireguard_daemons(lab) != [hanging]
            assert watchdog.ask("/livez") == "the watchdog works"


@contextlib.contextmanager
def serving(member: Member, address: str, port: int, answer: str) -> Iterator[set[str]]:
    """Answers everybody. The addresses of those who asked are known at the end."""
    argv = [sys.executable, "-c", SERVER, address, str(port), answer]
    server = member.popen(argv, stdout=subprocess.PIPE)
    asked: set[str] = set()
    assert server.stdout
    server.stdout.readline()
    try:
        yield asked
    finally:
        server.kill()
        server.wait()
        asked.update(line.decode().strip() for line in server.stdout)


def test_the_exit_check_stays_in_the_tunnel_and_follows_nobody() -> None:
    """The web redirects it to a Service of the cluster, which it must not ask; told to, it asks in the tunnel."""
    with Lab() as lab:
        web, provider = lab.web.addresses[4], lab.provider.addresses[4]
        env = {"VERIFY_INTERVAL": "1", "VERIFY_URL": f"http://{web}:8100/ip"}
        with (
            serving(lab.web, web, 8100, REDIRECT) as there,
            serving(lab.service, "10.43.0.80", 8101, "no") as beside,
            Watchdog(lab, env=env) as watchdog,
        ):
            wait_until(lambda: "the exit check was redirected" in watchdog.ask("/status"), "a check")
        assert (there, beside) == ({provider}, set())
        env["VERIFY_URL"] = "http://10.43.0.80:8101/ip"
        with serving(lab.service, "10.43.0.80", 8101, "no") as beside, Watchdog(lab, env=env) as watchdog:
            wait_until(lambda: "the exit check got no answer" in watchdog.ask("/status"), "a check", 40)
        assert beside <= {provider}


def test_a_name_of_the_exit_check_is_asked_in_the_tunnel_whatever_the_mode() -> None:
    with Lab() as lab:
        lab.zone({"exit.example": [lab.web.addresses[4]]})
        env = {"VERIFY_URL": "http://exit.example/json", "VERIFY_INTERVAL": "1", "DNS_MODE": "cluster"}
        with Watchdog(lab, env=env) as watchdog:
            wait_until(lambda: json.loads(watchdog.ask("/status") or "{}").get("exit_check"), "a check")
            wait_until(lambda: 'exit_checks_total{result="passed"}' in watchdog.ask("/metrics"), "passed")
        assert not any("exit.example" in query for query in lab.queries(lab.service))


def test_a_service_of_a_variables_name_ends_nothing() -> None:
    """What the kubelet puts into every container of a namespace that has a Service called health."""
    with Lab() as lab:
        links = {"HEALTH_PORT": "tcp://10.43.7.7:80", "HEALTH_SERVICE_HOST": "10.43.7.7"}
        with Watchdog(lab, env=links) as watchdog:
            watchdog.settle()
            assert "HEALTH_PORT is what Kubernetes says of a Service" in watchdog.log()


def test_no_core_dump_will_hold_a_key() -> None:
    with Lab() as lab, Watchdog(lab) as watchdog:
        watchdog.settle()
        for pid in (watchdog.pid, *wireguard_daemons(lab)):
            limits = Path(f"/proc/{pid}/limits").read_text()
            assert "Max core file size        1                    1 " in limits
