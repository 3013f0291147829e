"""compose/compose.yaml on a real daemon: in order, tunnelled, and closed through everything that can happen to it.

One stack for all tests; each finds it healthy, and after each the capture has to be clean, from the first packet of
the stack on. Beside the app, which waits as it should, runs one that waits for nobody (noise).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
import testinfra  # type: ignore[import-untyped]

from .engine import LAB_IMAGE, ROOT, Engine, compose_command, docker_command, wait_until
from .stack import FILES, PROJECT, PROVIDER, SERVER_FILES, STACK, WEB, Stack, connect_networks

pytestmark = pytest.mark.usefixtures("clean")


@pytest.fixture(scope="module")
def stack(engine: Engine) -> Iterator[Stack]:
    with Stack(engine) as stack:
        yield stack


@pytest.fixture
def clean(stack: Stack) -> Iterator[None]:
    """Not one packet in clear, neither before nor during the test."""
    yield
    verdict = stack.capture.verdict()
    assert not verdict.leaked, str(verdict)


@pytest.fixture
def healthy(stack: Stack) -> Stack:
    """The stack as `up` leaves it: as the test before left it, if that is the same."""
    if stack.health() != "healthy" or stack.state("app") != "running" or not stack.tunnelled():
        stack.down()
        started = stack.up()
        assert started.returncode == 0, started.stderr
        wait_until(stack.tunnelled, "the app's requests come from the provider", 30)
    return stack


def when(text: str) -> datetime:
    """Docker's nanoseconds are more than Python reads."""
    return datetime.fromisoformat(text[:26].rstrip("Z")).replace(tzinfo=UTC)


def kill(stack: Stack, service: str) -> None:
    """As a crash would: not asked for through Docker, which would take that for a wish."""
    pid = stack.engine.inspect(stack.name(service), "{{.State.Pid}}")
    subprocess.run(
        ["nsenter", f"--target={stack.engine.first}", "--pid", "--mount", "--", "kill", "-9", pid], check=True
    )


def restarted_after(stack: Stack, service: str, before: str) -> bool:
    return started(stack, service) != before and stack.state(service) == "running"


def started(stack: Stack, service: str) -> str:
    return stack.engine.inspect(stack.name(service), "{{.State.StartedAt}}")


# --- the order -------------------------------------------------------------------------------------------------------


def test_the_app_never_starts_when_the_setup_fails(stack: Stack) -> None:
    stack.write_config("[Interface]\n")
    assert stack.up().returncode != 0
    assert stack.exit_code("init-wg") == 2
    assert stack.state("app") in ("", "created")
    assert stack.state("watchdog") in ("", "created")
    assert stack.state("noise") == "running"
    stack.write_config()
    stack.engine.docker("pause", "provider")
    try:
        assert stack.up().returncode != 0
        assert stack.exit_code("init-wg") == 4
        assert "no handshake" in stack.log("init-wg")
    finally:
        stack.engine.docker("unpause", "provider")
    assert stack.state("app") in ("", "created")
    verdict = stack.capture.verdict()
    assert set(verdict.allowed) <= {"arp", "wireguard"}
    assert verdict.allowed["wireguard"] > 0


def test_the_app_starts_when_the_tunnel_is_up(stack: Stack) -> None:
    began = time.monotonic()
    assert stack.up().returncode == 0
    assert time.monotonic() - began < 30
    facts = {
        service: json.loads(stack.engine.docker("inspect", stack.name(service)))[0]["State"]
        for service in ("holder", "init-wg", "watchdog", "app")
    }
    assert facts["init-wg"]["ExitCode"] == 0
    assert when(facts["init-wg"]["FinishedAt"]) <= when(facts["watchdog"]["StartedAt"])
    checks = [
        when(check["End"][:26].partition("+")[0])
        for check in facts["watchdog"]["Health"]["Log"]
        if not check["ExitCode"]
    ]
    assert checks
    assert min(checks) <= when(facts["app"]["StartedAt"])
    assert stack.health() == "healthy"
    assert stack.last_check().strip() == "VPN is active"
    wait_until(stack.tunnelled, "the app's requests come from the provider", 10)


def test_the_app_as_it_sees_itself(healthy: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DOCKER_HOST", "DOCKER_CONFIG"):
        monkeypatch.setenv(name, healthy.engine.environment[name])
    monkeypatch.setenv("PATH", f"{os.path.dirname(docker_command()) or '/usr/bin'}:{os.environ['PATH']}")
    app = testinfra.get_host(f"docker://{healthy.name('app')}")
    assert app.interface("wg0").exists
    assert "10.64.0.2" in app.interface("wg0").addresses
    assert app.check_output("wget -q -O - http://127.0.0.1:9999/") == "VPN is active"
    assert app.run(f"wget -q -t 1 -T 5 -O - http://{WEB}/").stdout == PROVIDER
    # The app has no power over any of it.
    assert app.run("nft flush ruleset").rc != 0
    assert app.run("ip link del wg0").rc != 0


def test_other_containers_ask_the_watchdog_over_the_network(healthy: Stack) -> None:
    network = f"--network={PROJECT}_default"
    asked = healthy.engine.run(
        docker_command(),
        "run",
        "--rm",
        network,
        "--cap-drop=ALL",
        LAB_IMAGE,
        "wget",
        "-q",
        "-O",
        "-",
        "http://holder:9999/",
    )
    assert asked.stdout.strip() == "VPN is active", asked.stderr


# --- what happens to it ----------------------------------------------------------------------------------------------


def test_the_watchdog_crashes(healthy: Stack) -> None:
    app, before = started(healthy, "app"), started(healthy, "watchdog")
    kill(healthy, "watchdog")
    wait_until(lambda: restarted_after(healthy, "watchdog", before), "Docker restarts the watchdog", 20)
    assert healthy.health() == "starting"
    wait_until(lambda: healthy.health() == "healthy", "the watchdog is healthy again", 20)
    assert healthy.tunnelled()
    assert started(healthy, "app") == app


def test_the_setup_runs_again(healthy: Stack) -> None:
    """It finds a tunnel that works, and leaves it alone: the watchdog's wireguard-go is not even asked to restart."""
    before = healthy.engine.docker("exec", healthy.name("app"), "cat", "/sys/class/net/wg0/ifindex")
    healthy.engine.docker("start", "--attach", healthy.name("init-wg"))
    assert healthy.exit_code("init-wg") == 0
    assert healthy.tunnelled()
    assert healthy.engine.docker("exec", healthy.name("app"), "cat", "/sys/class/net/wg0/ifindex") == before


def test_the_holder_is_restarted(healthy: Stack) -> None:
    """The new network is set up by the watchdog; who had joined the old one keeps that, closed, until a restart."""
    healthy.engine.docker("restart", healthy.name("holder"))
    assert healthy.source() == ""
    wait_until(
        lambda: "ending, to join the new one" in healthy.last_check() or healthy.health() == "starting", "noticed", 20
    )
    wait_until(lambda: healthy.health() == "healthy", "the watchdog is healthy in the new network", 40)
    assert healthy.source() == ""
    healthy.engine.docker("restart", healthy.name("app"))
    wait_until(healthy.tunnelled, "the app's requests come from the provider", 20)


def test_the_holder_crashes(healthy: Stack) -> None:
    before = started(healthy, "watchdog")
    kill(healthy, "holder")
    wait_until(lambda: restarted_after(healthy, "watchdog", before), "the watchdog goes to the new network", 40)
    wait_until(lambda: healthy.health() == "healthy", "the watchdog is healthy in the new network", 40)
    assert healthy.source() == ""


def test_an_app_that_joins_the_new_network_at_once(healthy: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    """The holder starts anew, and an app that waits for nobody joins it in the first instant that Docker lets it."""
    engine, noise, holder = healthy.engine, healthy.name("noise"), healthy.name("holder")
    sealed, joined = [], []
    for _ in range(4):
        engine.docker("kill", noise)
        before, now = started(healthy, "holder"), datetime.now(UTC)
        restart = threading.Thread(target=engine.docker, args=("restart", "--time", "0", holder))
        restart.start()
        wait_until(lambda before=before: started(healthy, "holder") != before, "the holder starts anew", 20, 0)  # type: ignore[misc]
        wait_until(lambda: engine.try_docker("start", noise) is not None, "the app joins", 20, 0)
        restart.join()
        moment = wait_until(lambda now=now: _sealed_at(healthy, now), "the holder has sealed its network", 20)  # type: ignore[misc]
        begin = when(started(healthy, "holder"))
        sealed.append((moment - begin).total_seconds() * 1000 if moment else 0)
        joined.append((when(started(healthy, "noise")) - begin).total_seconds() * 1000)
        time.sleep(0.5)
    with capsys.disabled():
        print(
            f"\nafter the holder's start: sealed within {max(sealed):.0f} ms, the first app after {min(joined):.0f} ms"
        )


def _sealed_at(stack: Stack, since: datetime) -> datetime | None:
    """When the holder said last that it holds. That may be before the moment at which Docker calls it started."""
    ended = stack.engine.run(docker_command(), "logs", "--timestamps", "--tail", "1", stack.name("holder"))
    said = when(ended.stderr.partition(" ")[0]) if ended.stderr else None
    return said if said and said > since else None


def test_the_provider_goes_and_comes_back(healthy: Stack) -> None:
    app = started(healthy, "app")
    healthy.engine.docker("stop", "--time", "1", "provider")
    wait_until(lambda: healthy.health() == "unhealthy", "Docker shows it", 60)
    assert "VPN is not active" in healthy.last_check()
    assert healthy.source() == ""
    healthy.engine.docker("start", "provider")
    wait_until(lambda: healthy.health() == "healthy", "Docker shows it", 90)
    wait_until(healthy.tunnelled, "the app's requests come from the provider", 20)
    assert started(healthy, "app") == app


def test_a_power_failure(healthy: Stack) -> None:
    """Docker starts in any order what was running: what cannot join its holder stays down until the next `up`."""
    verdict = healthy.capture.verdict()
    assert not verdict.leaked, str(verdict)
    engine = healthy.engine
    engine.power_off()
    engine.prepare()
    healthy.listen()
    engine.boot()
    connect_networks(engine)
    wait_until(lambda: healthy.state("holder") == "running", "the holder is back", 30)
    time.sleep(3)  # whatever Docker starts by itself has begun by now
    assert healthy.source() in ("", PROVIDER)
    assert healthy.up().returncode == 0
    wait_until(healthy.tunnelled, "the app's requests come from the provider", 20)


# --- the judge sees what there is to see -----------------------------------------------------------------------------


def test_an_app_without_init_wg_is_seen(healthy: Stack) -> None:
    """The positive control, on the stack's own network. Its leak is seen; then it is set aside as not the stack's."""
    address = str(STACK[99])
    plain = ["run", "--rm", f"--network={PROJECT}_default", f"--ip={address}", LAB_IMAGE]
    since = time.time()
    seen_from = healthy.engine.docker(*plain, "wget", "-q", "-O", "-", f"http://{WEB}/")
    assert seen_from != PROVIDER
    leaks = healthy.capture.verdict(since).leaks
    assert [leak for leak in leaks if address in leak.what]
    assert all(address in leak.what for leak in leaks)
    healthy.capture.forgive(address)


# --- the files -------------------------------------------------------------------------------------------------------


def test_no_service_has_more_than_it_needs(stack: Stack) -> None:
    shown = stack.compose("config").stdout
    for word in ("privileged", "SYS_MODULE", "NET_RAW", "network_mode: host", "sysctls", "unconfined"):
        assert word not in shown
    for service in ("holder", "init-wg", "watchdog"):
        config = json.loads(stack.engine.docker("inspect", stack.name(service)))[0]["HostConfig"]
        assert config["CapDrop"] == ["ALL"]
        assert config["CapAdd"] == ["NET_ADMIN"]
        assert config["ReadonlyRootfs"] is True
        assert config["SecurityOpt"] == ["no-new-privileges"]
        assert not config["Privileged"]
        assert not config.get("Sysctls")
        assert bool(config["Devices"]) == (service != "holder")


def test_the_example_settings_are_the_ones_that_exist() -> None:
    """Every variable of .env.example is used in a compose file, and the other way round."""
    example = (ROOT / "compose/.env.example").read_text()
    named = set(re.findall(r"^#([A-Z_]+)=", example, re.MULTILINE))
    files = "".join((ROOT / file).read_text() for file in (*FILES[:2], *SERVER_FILES))
    used = set(re.findall(r"\$\{([A-Z_]+)", files))
    assert named - {"COMPOSE_FILE"} == used


@pytest.mark.parametrize(
    "files",
    [FILES[:1], FILES[:2], SERVER_FILES[:1], SERVER_FILES],
    ids=["kernel", "userspace", "server-kernel", "server-userspace"],
)
def test_compose_takes_the_files_as_they_are(files: tuple[str, ...], tmp_path: object) -> None:
    arguments = [word for file in files for word in ("-f", str(ROOT / file))]
    command = compose_command()
    assert command
    shown = subprocess.run([*command, *arguments, "config", "--quiet"], capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
