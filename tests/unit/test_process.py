"""init_wg.kernel.process: programs are run with memory files for streams, and nothing of ours."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from init_wg.kernel import process


def python(code: str) -> tuple[str, ...]:
    """An argument list that is found on PATH whatever this interpreter is called."""
    return ("sh", "-c", 'exec "$0" "$@"', sys.executable, "-c", code)


def test_on_linux_streams_and_status() -> None:
    code = "import sys; text = sys.stdin.read(); print(text[::-1]); sys.stderr.write('bad'); sys.exit(3)"
    result = process.run(python(code), "grün")
    assert (result.status, result.stdout, result.stderr) == (3, "nürg\n", "bad")


def test_on_linux_no_pipe_can_fill_up() -> None:
    """With pipes, a program that writes before it has read all would wait for us, and we for it."""
    code = "import sys; sys.stdout.write('x' * 3_000_000); sys.stderr.write(str(len(sys.stdin.read())))"
    result = process.run(python(code), "y" * 3_000_000)
    assert (result.status, len(result.stdout), result.stderr) == (0, 3_000_000, "3000000")


def test_on_linux_a_signal_is_a_negative_status() -> None:
    assert process.run(("sh", "-c", "kill -9 $$")).status == -signal.SIGKILL


def test_on_linux_output_that_is_no_text() -> None:
    assert process.run(("sh", "-c", r"printf 'a\377b'")).stdout == "a\N{REPLACEMENT CHARACTER}b"


def test_on_linux_one_that_has_done_its_work_is_not_waited_for(tmp_path: Path) -> None:
    """But one that ends before, with an error, is heard."""
    done = tmp_path / "done"
    started = time.monotonic()
    result = process.run(("sh", "-c", 'touch "$0"; sleep 20', str(done)), done=done.exists)
    assert (result.status, done.exists()) == (0, True)
    assert time.monotonic() < started + 10
    result = process.run(("sh", "-c", "echo bad >&2; exit 3"), done=lambda: False)
    assert (result.status, result.stderr) == (3, "bad\n")


def test_on_linux_nothing_is_left_open() -> None:
    before = os.listdir("/proc/self/fd")
    for _ in range(5):
        process.run(("true",))
        with pytest.raises(FileNotFoundError):
            process.run(("no-such-program-anywhere",))
    assert os.listdir("/proc/self/fd") == before


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError, match="no-such-program-anywhere"):
        process.start(("no-such-program-anywhere",), {})


def test_programs_are_found_beyond_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PATH first; then the usual places, for PATH may lack the sbin folders."""
    mine = tmp_path / "sh"
    mine.write_text("#!/bin/sh\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert process.find("sh") != str(mine)  # not executable
    mine.chmod(0o755)
    assert process.find("sh") == str(mine)
    for path in ("", ":::", "/nonexistent"):
        monkeypatch.setenv("PATH", path)
        found = process.find("sh")
        assert found
        assert found.endswith("/bin/sh")
    assert process.find("no-such-program-anywhere") is None


def ended(program: process.Background) -> str:
    deadline = time.monotonic() + 10
    while (printed := program.ended()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return printed


def test_on_linux_a_background_program_that_ends_says_why() -> None:
    assert ended(process.start(("sh", "-c", "echo out; echo err >&2"), {})) == "out\nerr\n"


def test_on_linux_a_background_program_has_nothing_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the environment (LOG_LEVEL means something else to wireguard-go) nor streams, session or files."""
    monkeypatch.setenv("LOG_LEVEL", "debug")
    read, write = os.pipe()
    os.set_inheritable(write, False)
    script = 'env; readlink /proc/self/fd/0; ls /proc/$$/fd; cut -d " " -f 6 /proc/$$/stat'
    program = process.start(("sh", "-c", script), {"PATH": os.environ["PATH"], "MARK": "1"})
    printed = ended(program)
    os.close(read)
    os.close(write)
    assert "LOG_LEVEL" not in printed
    variables, rest = printed.split("/dev/null\n")
    assert "MARK=1" in variables
    *files, session = rest.split()
    assert session == str(program.pid)
    assert str(write) not in files
    assert set(files) >= {"0", "1", "2"}


def test_on_linux_a_detached_program_lives_on_without_memory_of_what_it_says() -> None:
    read, write = os.pipe()
    os.set_inheritable(write, True)
    program = process.start(
        ("sh", "-c", f"sleep 0.2; echo late; echo alive > /proc/self/fd/{write}"), {"PATH": os.environ["PATH"]}
    )
    os.close(write)
    assert program.ended() is None
    program.detach()
    with open(read) as pipe:
        assert "alive" in pipe.read()  # it was not killed by writing what nobody takes
    os.waitpid(program.pid, 0)
