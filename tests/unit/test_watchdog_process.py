"""The resident process from outside: what it loads, how big it is, whose module it is. No root needed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import watchdog
from watchdog.remembered import Remembered, inherited
from watchdog.web.server import listen

PROJECT = Path(__file__).resolve().parents[2]
#: KiB. The promise is 16 MiB, with every Python that is supported.
LARGEST = 16 * 1024


def test_the_name_watchdog_is_ours() -> None:
    """There is a distribution of that name on PyPI: it must never be the one that is imported."""
    assert watchdog.__file__
    assert Path(watchdog.__file__).resolve() == PROJECT / "watchdog" / "__init__.py"
    for folder in ("/", "/tmp"):
        argv = [sys.executable, "-P", "-c", "import watchdog; print(watchdog.__file__)"]
        found = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
        assert Path(found).resolve() == PROJECT / "watchdog" / "__init__.py"


def test_no_module_shadows_the_standard_library() -> None:
    names = {file.stem for file in (PROJECT / "watchdog").glob("*.py")}
    assert not names & set(sys.stdlib_module_names) - {"__init__", "__main__"}
    assert "setup" not in names


def loaded() -> set[str]:
    code = "import sys, watchdog.__main__, watchdog.keeper, watchdog.limits; print('\\n'.join(sys.modules))"
    argv = [sys.executable, "-P", "-c", code]
    return set(subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split())


def test_the_resident_process_is_standard_library_only_and_light() -> None:
    names = loaded()
    ours = {"init_wg", "watchdog"}
    top = {name.partition(".")[0] for name in names} - ours
    # What pip's editable installs put in is not ours.
    foreign = {name for name in top - sys.stdlib_module_names if not name.startswith("__editable__")}
    assert foreign - {"_distutils_hack", "sitecustomize", "__main__"} == set()
    heavy_ones = "asyncio logging subprocess http.server dataclasses inspect threading email ctypes json"
    for heavy in heavy_ones.split():
        assert heavy not in names, heavy
    for setup in (
        "pyroute2",
        "wgconfig",
        "requests",
        "dns",
        "init_wg.setup.reconcile",
        "init_wg.cli",
        "init_wg.design.desired",
    ):
        assert setup not in names, setup


def test_pure_modules_import_no_io() -> None:
    for name in ("peer_health", "scheduler", "web/metrics", "web/request", "exit_check"):
        text = (PROJECT / "watchdog" / f"{name}.py").read_text()
        imports = [line.split()[1] for line in text.splitlines() if line.startswith(("import ", "from "))]
        assert set(imports) <= {"__future__", "typing", "functools", "init_wg.model.wireguard"}, name


def test_wrong_settings_end_it_with_one_line() -> None:
    argv = [sys.executable, "-P", "-m", "watchdog"]
    ended = subprocess.run(argv, env={"HEALTH_PORT": "many"}, capture_output=True, text=True, check=False, timeout=30)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert "HEALTH_PORT=many" in ended.stderr


def without_privilege(config: Path) -> tuple[subprocess.Popen[str], int]:
    """A watchdog, and its port."""
    with listen(0) as free:
        port = free.getsockname()[1]
    environment = {"HEALTH_PORT": str(port), "WG_CONFIG": str(config), "WG_INTERFACE": "none0"}
    argv = [sys.executable, "-P", "-m", "watchdog"]
    return subprocess.Popen(unprivileged(argv), env=environment, stderr=subprocess.PIPE, text=True), port


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_it_serves_without_any_privilege_and_ends_at_once(number: signal.Signals, tmp_path: Path) -> None:
    """No configuration, no capability: it says so at its endpoint, stays small, and does not die of it."""
    process, port = without_privilege(tmp_path)
    try:
        status, body = fetch(port, "/")
        assert status == 503
        assert body.startswith("VPN is not active: ")
        assert fetch(port, "/livez")[0] == 200
        assert fetch(port, "/metrics")[0] == 200
        assert json.loads(fetch(port, "/status")[1])["up"] is False
        assert resident(process.pid) <= LARGEST
    finally:
        process.send_signal(number)
        code = process.wait(2)
        assert process.stderr
        process.stderr.close()
    assert code == 0


def test_whoever_read_its_log_may_go(tmp_path: Path) -> None:
    """A container runtime that was restarted, a disk that is full: no reason to repair nothing any more."""
    process, port = without_privilege(tmp_path)
    try:
        assert fetch(port, "/livez")[0] == 200
        assert process.stderr
        process.stderr.close()
        for _ in range(3):
            process.send_signal(signal.SIGHUP)  # it says something at each
            time.sleep(0.3)
            assert fetch(port, "/livez")[0] == 200
        assert process.poll() is None
    finally:
        process.kill()
        process.wait(2)


def unprivileged(argv: list[str]) -> list[str]:
    """Without any capability, even when the tests run as root: nothing of this machine can be changed."""
    if os.geteuid():
        return argv
    bare = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all", "--"]
    text = subprocess.run([*bare, "cat", "/proc/self/status"], capture_output=True, text=True, check=True).stdout
    assert "CapEff:\t0000000000000000" in text
    return [*bare, *argv]


def fetch(port: int, path: str) -> tuple[int, str]:
    for _ in range(200):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            time.sleep(0.02)
    raise AssertionError("it does not serve")


def resident(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS:"))


def test_a_remembered_file_is_readable_by_a_child_and_gone_when_closed(tmp_path: Path) -> None:
    file = tmp_path / "wg0.conf"
    file.write_text("[Interface]\n")
    remembered = Remembered()
    assert remembered.path == ""
    remembered.take(str(file), 1)
    file.write_text("something else\n")
    remembered.take(str(file), 1)  # the same version as far as anybody knows
    path = remembered.path
    shown = subprocess.run(["cat", path], capture_output=True, text=True, check=True, pass_fds=inherited(path))
    assert shown.stdout == "[Interface]\n"
    assert inherited(str(file)) == ()
    assert Path(path).stat().st_mode & 0o777 == 0o600
    (tmp_path / "wg0.address").write_text("10.0.0.2/32\n")
    remembered.take(str(file), 2)
    assert remembered.path == "", "one file alone would be half of it"
    remembered.take(str(tmp_path / "absent.conf"), 3)
    remembered.close()
    assert remembered.path == ""
    assert not Path(path).exists()
