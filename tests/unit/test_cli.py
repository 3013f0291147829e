"""init_wg.cli: words, exit codes, and the one line at the end. Nothing here needs a privilege, or changes a network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from init_wg import __version__, cli, log
from init_wg.errors import ConfigError, HandshakeError, InitWgError, KernelError, VerifyError
from init_wg.setup import report
from tests import documents
from tests.unit import build

CONFIG = f"""\
[Interface]
PrivateKey = {build.PRIVATE}
Address = 10.64.0.2/32

[Peer]
PublicKey = {build.SERVER}
AllowedIPs = 0.0.0.0/0
Endpoint = vpn.example.net:51820
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("WG_", "ENABLE_", "DNS_", "BYPASS_", "LOG_", "VPN_"))]:
        monkeypatch.delenv(name)


def test_the_exit_codes_are_an_api() -> None:
    errors = (ConfigError, KernelError, HandshakeError, VerifyError)
    assert [error.exit_code for error in errors] == [2, 3, 4, 5]
    assert all(issubclass(error, InitWgError) for error in errors)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["-h"], ["help"]):
        assert cli.run(arguments) == 0
        shown = capsys.readouterr()
        assert shown.out == cli.USAGE
        assert shown.err == ""
    for word in ("up", "lockdown", "check", "status", "peer", "down", "--version"):
        assert f"\n  {word}" in cli.USAGE


@pytest.mark.parametrize("option", ["--help", "-h"])
@pytest.mark.parametrize("command", ["up", "lockdown", "hold", "check", "status", "peer", "names", "node", "down"])
def test_help_of_one_command(command: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([command, option]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith(f"usage: init-wg {command}")
    assert "exit status: 0 done" in shown.out
    assert shown.err == ""


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"init-wg {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["start"],
        ["--json"],
        ["check", "a", "b"],
        ["status", "--yaml"],
        ["down", "now"],
        ["up", "--server"],
        ["x\n\x1b["],
    ],
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(cli.USAGE)
    last = shown.err.removeprefix(cli.USAGE).splitlines()
    assert len(last) == 1
    assert last[0].startswith("init-wg: error: usage: ")
    assert last[0].isprintable()


def test_a_right_file_is_previewed_without_a_privilege(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "wg0.conf"
    file.write_text(CONFIG)
    file.chmod(0o600)
    assert cli.run(["check", str(file)]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert f"{file}: right\n" in shown.out
    for word in ("10.64.0.2/32", "vpn.example.net:51820", build.SERVER, "0.0.0.0/0"):
        assert word in shown.out
    assert build.PRIVATE not in shown.out


HOSTILE = "1\x1b]0;owned\x07\x1b[2J\u202e\udcff"


def test_a_name_that_would_command_a_terminal_is_only_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / f"{HOSTILE}.conf"
    file.write_text(CONFIG)
    file.chmod(0o600)
    assert cli.run(["check", str(file)]) == 0
    facts: dict[str, Any] = {
        "up": True, "interface": HOSTILE, "implementation": "kernel", "sealed": True, "refused_packets": 0,
        "server": HOSTILE, "addresses": [], "mtu": 1420, "bypass": {"networks": [], "closed": []}, "peers": [],
        "dns": {"mode": "tunnel", "resolvers": [], "redirected_queries": 0, "refused_queries": 0},
        "notices": [HOSTILE], "drift": [HOSTILE],
    }  # fmt: skip
    print(report.as_text(facts))
    log.warning(HOSTILE)
    shown = capsys.readouterr()
    assert shown.err.endswith("init-wg: warning: 1?]0;owned??[2J??\n")
    for line in (shown.out + shown.err).splitlines():
        assert line.isprintable()
    assert shown.out.count("1?]0;owned??[2J??") == 6


def test_a_wrong_file_is_one_line_with_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "wg0.conf"
    file.write_text(CONFIG.replace("51820\n", "70000\n"))
    assert cli.run(["check", str(file)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert line.startswith(f"init-wg: error: {file}:8: ")


@pytest.mark.parametrize("word", [["check"], ["status"], ["status", "--json"], ["down"], ["up", "--server", "a"]])
def test_a_wrong_environment_ends_every_command_before_it_begins(
    word: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ENABLE_KILL_SWITCH", "fasle")
    assert cli.run(word) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "init-wg: error: environment: ENABLE_KILL_SWITCH=fasle is not understood: it may be true or false"
    )  # fmt: skip


def test_a_missing_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WG_CONFIG", str(tmp_path / "nowhere"))
    assert cli.run(["check"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"init-wg: error: {tmp_path}/nowhere: no such file or folder: ")


def test_the_last_line_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LOG_FORMAT", "json")
    assert cli.run(["check", "/nonexistent\n/wg0.conf"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    entry = json.loads(line)
    assert list(entry) == documents.named_fields("Logs", "docs/monitoring.md")
    assert entry["level"] == "error"
    assert entry["time"].endswith("Z")
    assert "no such file" in entry["message"]


@pytest.mark.parametrize(("level", "shown"), [("debug", True), ("error", True), ("nonsense", True), ("", True)])
def test_an_error_is_always_told(
    level: str, shown: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOG_LEVEL", level)
    cli.run(["check", "/nonexistent"])
    assert bool(capsys.readouterr().err) is shown


def test_as_a_program(tmp_path: Path) -> None:
    """python -m init_wg, as kubectl and people start it."""
    file = tmp_path / "wg0.conf"
    file.write_text("[Interface]\n")
    argv = [sys.executable, "-m", "init_wg"]
    ended = subprocess.run([*argv, "check", str(file)], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"init-wg: error: {file}:")
    assert ended.stderr.count("\n") == 1
    assert subprocess.run([*argv, "--version"], capture_output=True, check=False).returncode == 0
    assert subprocess.run([*argv, "nonsense"], capture_output=True, check=False).returncode == 2


def test_who_reads_may_stop_reading(tmp_path: Path) -> None:
    """init-wg check FILE | head -1: no error to tell, and the exit status of a program that SIGPIPE ends."""
    file = tmp_path / "wg0.conf"
    file.write_text(CONFIG)
    file.chmod(0o600)
    argv = [sys.executable, "-u", "-m", "init_wg", "check", str(file)]
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write) as stdout:
        ended = subprocess.run(argv, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (141, "")
