"""The harness itself: a command's output and status come back, everything else is an error, and nothing stays."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel import guest


@pytest.fixture(autouse=True)
def nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process and no file is left of any guest, however it ended."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    deadline = time.monotonic() + 30  # the kernel ends QEMU soon after its killed parent
    while (left := processes_of(folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left
    assert not list(folder.iterdir())


def processes_of(folder: Path) -> list[str]:
    """Those that have an open file in `folder`: virtiofsd and QEMU, by their logs."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(str(file.readlink()).startswith(f"{folder}/") for file in (process / "fd").iterdir()):
                found.append((process / "comm").read_text().strip())
        except OSError:  # ended meanwhile
            continue
    return found


def start(*command: str) -> subprocess.Popen[bytes]:
    arguments = [sys.executable, "-m", "tests.kernel.guest", "--", *command]
    return subprocess.Popen(arguments, cwd=guest.PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_output_and_status_come_back_and_the_host_stays_as_it_was() -> None:
    echoed: list[bytes] = []
    result = guest.run(
        ["sh", "-c", 'pwd; echo "$WORD" >&2; echo a word >README.guest; cat README.guest; sleep 999 & exit 7'],
        environment={"WORD": 'it\'s "so" $HOME'},
        echo=echoed.append,
    )
    assert result.output.splitlines() == [str(guest.PROJECT), 'it\'s "so" $HOME', "a word"]
    assert result.output.encode() == b"".join(echoed)
    assert result.status == 7
    assert not (guest.PROJECT / "README.guest").exists()


def test_long_output_comes_whole() -> None:
    result = guest.run(["seq", "100000"])
    assert result.output.splitlines() == [str(number) for number in range(1, 100001)]


def test_a_kernel_panic_is_an_error_that_says_so() -> None:
    with pytest.raises(guest.GuestError, match=r"(?s)without an exit status.*as far as this.*sysrq_handle_crash"):
        guest.run(["sh", "-c", "echo as far as this; sleep 1; echo c >/proc/sysrq-trigger"])


def test_a_command_without_end_is_an_error() -> None:
    with pytest.raises(guest.GuestError, match="no end after 4 s"):
        guest.run(["sleep", "999"], timeout=4)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    packages = tmp_path / "packages.txt"
    packages.write_text("# a comment\ndpkg\nno-such-emulator\n")
    monkeypatch.setattr(guest, "PACKAGES", packages)
    with pytest.raises(guest.GuestError, match=r"apt-get install no-such-emulator$"):
        guest.run(["true"])


def test_without_root_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(guest.GuestError, match="needs root"):
        guest.run(["true"])


def test_the_command_line_passes_output_and_status_on() -> None:
    with start("sh", "-c", "echo said; exit 3") as command:
        output, errors = command.communicate()
    assert (output, errors, command.returncode) == (b"said\n", b"", 3)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_the_command_line_cleans_up_when_told_to_end(how: signal.Signals) -> None:
    with start("sh", "-c", "echo ready; sleep 999") as command:
        assert command.stdout
        assert command.stdout.readline() == b"ready\n"
        command.send_signal(how)
    assert command.returncode == 128 + how


def test_no_process_survives_a_kill(tmp_path: Path) -> None:
    with start("sh", "-c", "echo ready; sleep 999") as command:
        assert command.stdout
        assert command.stdout.readline() == b"ready\n"
        assert set(processes_of(tmp_path)) >= {"virtiofsd"}
        command.kill()
    for folder in (tmp_path / "scratch").glob("guest-*"):  # nobody was there to do it
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
