"""`make demo-compose` and `make image`: the stack of compose/ up, a request, the watchdog killed, a request, away.

    python -m tests.containers.demo [image]

`image`: only build the image, and say how big it is. With a Docker daemon that answers, it is built there, to be used;
else in the tests' own.
"""

from __future__ import annotations

import gzip
import subprocess
import sys
import time

from tests.lab.needs import missing

from .engine import IMAGE, NEEDS, ROOT, Engine, docker_command, wait_until
from .stack import PROVIDER, WEB, Stack


def say(text: str) -> None:
    print(text, flush=True)


def image() -> None:
    """Build it where a daemon answers."""
    docker = docker_command()
    if subprocess.run([docker, "version"], capture_output=True, check=False).returncode == 0:
        subprocess.run([docker, "build", "--tag", IMAGE, str(ROOT)], check=True)
        size = subprocess.run(
            [docker, "image", "inspect", "--format", "{{.Size}}", IMAGE], capture_output=True, text=True, check=True
        ).stdout
        say(f"{IMAGE}: {int(size) / 1e6:.1f} MB")
        return
    with Engine() as engine:
        _ = engine.images
        size = engine.docker("image", "inspect", "--format", "{{.Size}}", IMAGE)
        saved = subprocess.run([docker, "save", IMAGE], env=engine.environment, capture_output=True, check=True).stdout
        say(f"{IMAGE}: {int(size) / 1e6:.1f} MB, {len(gzip.compress(saved, 6)) / 1e6:.1f} MB to download")
        say("no daemon answers here: it was built in the tests' own, which has ended again")


def demo() -> None:
    """What a user sees."""
    with Engine() as engine, Stack(engine) as stack:
        say(f"a provider at {PROVIDER}, the web at {WEB}, and the stack of compose/:")
        began = time.monotonic()
        started = stack.up()
        if started.returncode:
            sys.exit(started.stderr)
        say(
            f"up after {time.monotonic() - began:.1f} s; the watchdog is {stack.health()}: {stack.last_check().strip()}"
        )
        wait_until(stack.tunnelled, "the app's requests come from the provider", 20)
        say(f"the web sees the app at {stack.source()}, which is the provider")
        pid = engine.inspect(stack.name("watchdog"), "{{.State.Pid}}")
        before = engine.inspect(stack.name("watchdog"), "{{.State.StartedAt}}")
        subprocess.run(["nsenter", f"--target={engine.first}", "--pid", "--mount", "--", "kill", "-9", pid], check=True)
        say("the watchdog is killed, and wireguard-go with it")
        say(f"the web sees the app at {stack.source() or 'nowhere: sealed'}")
        wait_until(lambda: engine.inspect(stack.name("watchdog"), "{{.State.StartedAt}}") != before, "a restart", 20)
        wait_until(stack.tunnelled, "the app's requests come from the provider again", 30)
        say(f"Docker has restarted it: the web sees the app at {stack.source()} again")
        verdict = stack.capture.verdict()
        say(f"packets of the stack that left in clear, from its first instant on: {verdict.leaked}")
        if verdict.leaked:
            sys.exit(str(verdict))
    say("cleaned up")


if __name__ == "__main__":
    if lacking := missing(NEEDS):
        sys.exit(f"this needs {lacking}")
    image() if sys.argv[1:] == ["image"] else demo()
