"""A new configuration: seen, validated, applied or refused; and what repairs read while the one on disk is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, cast

import pytest

from tests.unit.build_watchdog import StillLoop
from watchdog import facts, reloader
from watchdog.child import Child, Ended
from watchdog.facts import Server
from watchdog.reloader import EVERY, QUIET, Reloader

BAD = "init-wg: error: wg0.conf:1: what is this?\n"


class Check(NamedTuple):
    """A validation that was begun."""

    command: tuple[str, ...]
    ended: Callable[[Ended], None]

    def end(self, code: int, errors: str = "") -> None:
        self.ended(Ended(code, "", errors, 0.1, late=False))


class Keeper:
    """Who uses it, in small: it ticks once a second, and counts what it is to apply."""

    def __init__(self, loop: StillLoop, path: Path, in_use: str | None = None, ports: str = "") -> None:
        self.loop, self.in_use = loop, in_use
        self.checks: list[Check] = []
        self.applied = 0
        self.reloader = Reloader(loop, self.spawn, str(path), self.server, self.apply, ports)
        self.wait(EVERY)

    def spawn(self, command: tuple[str, ...], timeout: float, ended: Callable[[Ended], None]) -> Child | None:
        self.checks.append(Check(command, ended))
        return cast("Child", self.checks[-1])

    def server(self) -> Server | None:
        return next((each for each in self.reloader.servers if each.name == self.in_use), None)

    def apply(self) -> None:
        self.applied += 1

    def wait(self, seconds: float) -> None:
        until = self.loop.now() + seconds
        while self.loop.now() < until:
            self.reloader.tick(self.loop.now())
            self.loop.advance(min(1.0, until - self.loop.now()))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "wg0.conf"
    made.write_text("PublicKey = first\n")
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in "ab":
        (tmp_path / f"{name}.conf").write_text(f"PublicKey = {name}\n")
    return tmp_path


def test_who_changes_nothing_is_left_alone(loop: StillLoop, file: Path) -> None:
    keeper = Keeper(loop, file)
    keeper.wait(60)
    assert not keeper.checks


def test_a_new_file_is_validated_and_then_applied(
    loop: StillLoop, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keeper = Keeper(loop, file)
    file.write_text("PublicKey = the second\n")
    keeper.wait(EVERY + QUIET)
    assert [check.command for check in keeper.checks] == [("init_wg", "check", str(file))]
    assert keeper.applied == 0
    assert keeper.reloader.servers[0].public_keys == {"first"}
    keeper.checks[0].end(0)
    assert keeper.applied == 1
    assert keeper.reloader.servers[0].public_keys == {"the second"}
    assert capsys.readouterr().err == f"init-wg: {file} changed\n"
    keeper.wait(60)
    assert len(keeper.checks) == 1


def test_a_secret_is_swapped_as_a_whole(loop: StillLoop, tmp_path: Path) -> None:
    """Every name leads through ..data, as the kubelet does it: the names, sizes and times may all be the same."""
    for version in ("..1", "..2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "wg0.conf").write_text(f"PublicKey = {version}\n")
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "wg0.conf").symlink_to("..data/wg0.conf")
    keeper = Keeper(loop, tmp_path, in_use="wg0")
    (tmp_path / "..data_tmp").symlink_to("..2")
    (tmp_path / "..data_tmp").rename(tmp_path / "..data")
    keeper.wait(EVERY + QUIET)
    keeper.checks[0].end(0)
    assert keeper.reloader.servers[0].public_keys == {"..2"}


def test_a_pattern_is_a_folder_of_its_own(loop: StillLoop, tmp_path: Path) -> None:
    """Other replicas' files are beside; the one in use is validated, and the tunnel's servers are this replica's."""
    for name in ("web-1.a", "web-1.b", "web-10.a", "web-2.a"):
        (tmp_path / f"{name}.conf").write_text(f"PublicKey = {name}\n")
    keeper = Keeper(loop, tmp_path / "web-1.*.conf", in_use="web-1.b")
    assert " ".join(keeper.reloader.names) == "web-1.a web-1.b"
    (tmp_path / "web-1.b.conf").write_text("PublicKey = new\n")
    (tmp_path / "web-1.c.conf").write_text("PublicKey = third\n")
    keeper.wait(EVERY + QUIET)
    assert [check.command for check in keeper.checks] == [("init_wg", "check", str(tmp_path / "web-1.b.conf"))]
    keeper.checks[0].end(0)
    assert keeper.applied == 1
    assert " ".join(keeper.reloader.names) == "web-1.a web-1.b web-1.c"


def test_what_is_still_being_written_is_not_read(loop: StillLoop, file: Path) -> None:
    keeper = Keeper(loop, file)
    for number in range(1, 100):
        file.write_text("#" * number)
        loop.advance(0.07)
        keeper.reloader.tick(loop.now())
    assert not keeper.checks
    keeper.wait(2 * QUIET)
    assert len(keeper.checks) == 1
    keeper.checks[0].end(0)
    keeper.wait(60)
    assert len(keeper.checks) == 1, "it was read once"


def test_a_bad_one_is_refused_and_said_once(loop: StillLoop, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keeper = Keeper(loop, file)
    for number in range(2):
        file.write_text("<html>" * (number + 1))
        keeper.wait(EVERY + QUIET)
        keeper.checks[-1].end(2, BAD)
    assert keeper.applied == 0
    assert keeper.reloader.refused == "wg0.conf:1: what is this?"
    assert keeper.reloader.servers[0].public_keys == {"first"}
    said = capsys.readouterr().err
    assert said.count(BAD) == 1
    assert said.count("init-wg: error: the new configuration is not applied; what is set up stays\n") == 1
    file.write_text("PublicKey = first\n")
    keeper.wait(EVERY + QUIET)
    keeper.checks[-1].end(0)
    assert keeper.applied == 1
    assert keeper.reloader.refused == ""


def test_of_a_folder_only_the_server_in_use_is_validated(loop: StillLoop, folder: Path) -> None:
    """The other ones init_wg leaves out itself, when they are bad."""
    keeper = Keeper(loop, folder, in_use="b")
    (folder / "a.conf").write_text("<html>")
    keeper.wait(EVERY + QUIET)
    assert [check.command for check in keeper.checks] == [("init_wg", "check", f"{folder}/b.conf")]


def test_a_server_in_use_that_is_taken_away_is_left(loop: StillLoop, folder: Path) -> None:
    keeper = Keeper(loop, folder, in_use="b")
    (folder / "b.conf").unlink()
    keeper.wait(EVERY + QUIET)
    assert not keeper.checks
    assert keeper.applied == 1
    assert keeper.reloader.names == ("a",)


def test_one_validation_at_a_time(loop: StillLoop, file: Path) -> None:
    keeper = Keeper(loop, file)
    for _ in range(3):
        keeper.reloader.reload()
    loop.advance(10)
    assert len(keeper.checks) == 1
    keeper.checks[0].end(0)
    loop.advance(QUIET)
    assert len(keeper.checks) == 2
    keeper.checks[1].end(0)
    loop.advance(10)
    assert len(keeper.checks) == 2, "what was asked for meanwhile is one"


# --- what repairs read -----------------------------------------------------------------------------------------------


class Memory:
    """Stands for watchdog.remembered.Remembered."""

    def __init__(self) -> None:
        self.path = self.name = ""

    def take(self, path: str, version: int) -> None:
        self.path, self.name = f"memory of {path}", Path(path).stem


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    made = Memory()
    monkeypatch.setattr(reloader, "Remembered", lambda: made)
    return made


def works(keeper: Keeper) -> None:
    """A run of the setup with what is on disk."""
    assert keeper.reloader.run_begins(None) == (None, "")
    keeper.reloader.remember(keeper.in_use or "")


def refuse(keeper: Keeper) -> None:
    """What is on disk is found wrong."""
    keeper.reloader.reload()
    keeper.checks[-1].end(2, BAD)


def test_what_worked_is_used_while_what_is_on_disk_is_wrong(loop: StillLoop, file: Path, memory: Memory) -> None:
    keeper = Keeper(loop, file, in_use="wg0")
    works(keeper)
    assert keeper.reloader.run_begins(None) == (None, ""), "what is on disk is right"
    refuse(keeper)
    assert keeper.reloader.run_begins(None) == (None, f"memory of {file}")
    assert keeper.reloader.run_begins("wg0") == ("wg0", f"memory of {file}")
    keeper.reloader.reload()
    keeper.checks[-1].end(0)
    assert keeper.reloader.run_begins(None) == (None, "")


def test_another_server_can_only_be_found_on_disk(loop: StillLoop, folder: Path, memory: Memory) -> None:
    keeper = Keeper(loop, folder, in_use="a")
    works(keeper)
    assert memory.path == f"memory of {folder}/a.conf"
    refuse(keeper)
    assert keeper.reloader.run_begins("b") == ("b", "")
    assert keeper.reloader.run_begins(None) == (None, memory.path)


@pytest.mark.parametrize("how", ["changed", "of an unknown server", "from memory"])
def test_only_what_certainly_worked_is_remembered(loop: StillLoop, file: Path, memory: Memory, how: str) -> None:
    keeper = Keeper(loop, file, in_use="wg0")
    if how == "from memory":
        works(keeper)
        refuse(keeper)
    before = memory.path = memory.path and "memory"
    keeper.reloader.run_begins(None)
    if how == "changed":
        file.write_text("in the meantime")
    if how == "of an unknown server":
        keeper.in_use = None
    keeper.reloader.remember(keeper.in_use or "")
    assert memory.path == before


def test_programs_that_need_what_is_set_up_get_what_worked(loop: StillLoop, folder: Path, memory: Memory) -> None:
    keeper = Keeper(loop, folder, in_use="a")
    assert keeper.reloader.set_up_from("a") == "", "nothing has worked yet"
    works(keeper)
    assert keeper.reloader.set_up_from("a") == f"memory of {folder}/a.conf"
    assert keeper.reloader.set_up_from("b") == "", "it is another server's"


def test_a_run_may_be_the_first_to_see_a_bad_one(loop: StillLoop, file: Path, memory: Memory) -> None:
    keeper = Keeper(loop, file, in_use="wg0")
    ended = Ended(2, "", BAD, 0.1, late=False)
    keeper.reloader.run_begins(None)
    assert not keeper.reloader.run_refused(ended), "nothing has worked yet"
    works(keeper)
    keeper.reloader.run_begins(None)
    assert keeper.reloader.run_refused(ended)
    assert keeper.reloader.refused == "wg0.conf:1: what is this?"
    keeper.reloader.run_begins(None)
    assert not keeper.reloader.run_refused(ended), "this was the one that worked"


# --- the ports that a provider forwards --------------------------------------------------------------------------


def test_the_ports_are_applied_whatever_becomes_of_the_file(loop: StillLoop, file: Path, tmp_path: Path) -> None:
    ports = tmp_path / "forwarded_port"
    keeper = Keeper(loop, file, ports=str(ports))
    changes: tuple[Callable[[], object], ...] = (
        lambda: ports.write_text("51999\n"),
        lambda: ports.write_text("52000\n52001\n"),
        lambda: (tmp_path / "new").write_text("52002\n") and (tmp_path / "new").rename(ports),
        lambda: ports.write_text(""),
        ports.unlink,
    )
    for number, change in enumerate(changes, 1):
        change()
        keeper.wait(EVERY + 2 * QUIET + 1)
        assert keeper.applied == number
        keeper.wait(10)
        assert keeper.applied == number
    assert keeper.checks == []  # the configuration is as it was


def test_the_ports_are_applied_while_the_configuration_is_wrong(loop: StillLoop, file: Path, tmp_path: Path) -> None:
    ports = tmp_path / "forwarded_port"
    keeper = Keeper(loop, file, ports=str(ports))
    file.write_text("nonsense\n")
    keeper.wait(EVERY + QUIET + 1)
    keeper.checks.pop().end(2, BAD)
    assert (keeper.applied, bool(keeper.reloader.refused)) == (0, True)
    ports.write_text("51999\n")
    keeper.wait(EVERY + QUIET + 1)
    assert (keeper.applied, keeper.checks) == (1, [])
    assert keeper.reloader.refused


def test_a_public_key_is_known_in_every_spelling(tmp_path: Path) -> None:
    """The device shows the one spelling; files may have another, or no key at all."""
    file = tmp_path / "wg0.conf"
    file.write_text(f"[Peer]\nPublicKey = {'A' * 41}BB=\n")
    assert facts.servers(str(file))[0].public_keys == {f"{'A' * 41}BA="}
    file.write_text("[Peer]\nPublicKey = none\n")
    assert facts.servers(str(file))[0].public_keys == {"none"}
