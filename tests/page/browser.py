"""A real Chromium, driven over a pipe by the DevTools protocol (chromedevtools.github.io/devtools-protocol): no port,
no driver program, no library."""

from __future__ import annotations

import base64
import json
import os
import select
import subprocess
import time
from itertools import count
from pathlib import Path
from typing import IO, Any, Protocol, Self

#: Seconds for one answer. A browser that begins on a busy machine takes ten.
PATIENCE = 60.0


class Starts(Protocol):
    """tests.lab.lab.Member.popen."""

    def __call__(
        self, argv: list[str | Path], *, stdin: int | IO[bytes], stdout: int | IO[bytes], stderr: int | IO[bytes]
    ) -> subprocess.Popen[bytes]: ...


class BrowserError(Exception):
    """The browser refused a command, ended, or says nothing."""


class Browser:
    """One page in one browser, which `start` starts in a network of its own. Use it as a context manager."""

    def __init__(self, start: Starts, folder: Path) -> None:
        self._start = start
        self._folder = folder
        self._received = b""
        self._ids = count(1)
        self._session: str | None = None
        #: What the page was told off for: console errors, exceptions, violations of its policy.
        self.complaints: list[str] = []

    def __enter__(self) -> Self:
        command = (
            "exec chromium --headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run "
            f"--remote-debugging-pipe --user-data-dir={self._folder}/profile about:blank 3<&0 4>&1 >/dev/null"
        )
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "browser.log").open("wb") as log:
            argv: list[str | Path] = ["sh", "-c", command]
            self._process = self._start(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        target = self.command("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.command("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.command(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()

    def command(self, method: str, **parameters: object) -> dict[str, Any]:
        """Send one command and return its result. Raises BrowserError."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        assert self._process.stdin
        os.write(self._process.stdin.fileno(), json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE
        while True:
            answer = self._next(deadline, method)
            if answer.get("id") != number:
                self._note(answer)
                continue
            if "error" in answer:
                raise BrowserError(f"{method}: {answer['error']}")
            result: dict[str, Any] = answer["result"]
            return result

    def open(self, url: str) -> None:
        """Load a page, and wait until its script has run once."""
        self.complaints.clear()
        if error := self.command("Page.navigate", url=url).get("errorText"):
            raise BrowserError(f"{url}: {error}")

    def evaluate(self, expression: str) -> Any:
        """What an expression gives, as plain values; promises are waited for."""
        answer = self.command("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise BrowserError(f"{expression[:80]}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def until(self, expression: str) -> Any:
        """Evaluate until it is true. Raises BrowserError with what the page shows instead."""
        deadline = time.monotonic() + PATIENCE
        while not (found := self.evaluate(expression)):
            if time.monotonic() > deadline:
                shown = self.evaluate("document.body.innerText")
                raise BrowserError(f"still not so after {PATIENCE:g} s: {expression}; the page shows:\n{shown}")
            time.sleep(0.05)
        return found

    def look(self, *, dark: bool, width: int, height: int = 900) -> None:
        """The screen's size in CSS pixels, and whether the person likes it dark."""
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, path: Path) -> None:
        """The whole page as PNG."""
        data = self.command("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))

    def _next(self, deadline: float, waiting_for: str) -> dict[str, Any]:
        pipe = self._process.stdout
        assert pipe
        while b"\0" not in self._received:
            ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise BrowserError(f"no answer to {waiting_for} in {PATIENCE:g} s")
            data = os.read(pipe.fileno(), 1 << 16)
            if not data:
                raise BrowserError(f"the browser ended: {(self._folder / 'browser.log').read_text()[-2000:]}")
            self._received += data
        line, _, self._received = self._received.partition(b"\0")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _note(self, event: dict[str, Any]) -> None:
        if event.get("method") == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
            self.complaints.append(event["params"]["entry"]["text"])
        if event.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(str(event["params"]["exceptionDetails"]))
