"""Which server is set up: told by the mark, else by resemblance."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from init_wg.config import tunnel
from init_wg.config.tunnel import Endpoint, Tunnel
from init_wg.errors import ConfigError, HandshakeError, InitWgError, KernelError, VerifyError
from init_wg.model import server
from init_wg.model.secret import Secret
from init_wg.model.state import State
from init_wg.setup import endpoints
from init_wg.setup.connect import _gravest, _order
from tests.unit import build
from tests.unit.build_state import FRESH, RIGHT
from watchdog import facts
from watchdog.remembered import Remembered


def servers(*names: str, **differences: object) -> dict[str, Tunnel | ConfigError]:
    """Files that say the same, but for what differs in the last one."""
    found: dict[str, Tunnel | ConfigError] = {name: build.tunnel(name=name) for name in names}
    found[names[-1]] = build.tunnel(name=names[-1], **differences)
    return found


def marked(name: str, state: State = RIGHT) -> State:
    others = frozenset(route for route in state.routes if not server.is_mark(route))
    return state._replace(routes=others | {server.mark(name)} if name else others)


def order(files: dict[str, Tunnel | ConfigError], have: State, first: str | None = None) -> list[str]:
    return [each.name for each in _order(files, have, "wg0", first)]


def test_the_marked_one_comes_first() -> None:
    assert order(servers("a", "b", "c"), marked("b")) == ["b", "c", "a"]
    assert order(servers("a", "b", "c"), marked("b", FRESH)) == ["b", "c", "a"], "wg0 is gone"
    assert order(servers("a", "b", "c"), marked("b"), "c") == ["c", "a", "b"]
    assert order(servers("a", "b"), FRESH) == ["a", "b"]


def test_a_bad_file_is_left_out_and_the_next_one_comes_first() -> None:
    files = {**servers("a", "b", "c"), "b": ConfigError("b.conf:1: bad")}
    assert order(files, marked("b")) == ["c", "a"]
    assert order(files, FRESH, "b") == ["c", "a"]
    with pytest.raises(ConfigError, match="there is no such server; there is: a, b, c"):
        order(files, FRESH, "d")


@pytest.mark.parametrize("lost", ["", "renamed"])
@pytest.mark.parametrize(
    "difference",
    [
        {"private_key": Secret(build.key("another"))},
        {"addresses": ()},
        {"peers": (build.tunnel().peers[0]._replace(endpoint=Endpoint("192.0.2.1", 443)),)},
        {"peers": (build.tunnel().peers[0]._replace(endpoint=Endpoint("2001:db8::1", 51820)),)},
        {"peers": (build.tunnel().peers[0]._replace(public_key=build.OTHER_SERVER),)},
    ],
)
def test_without_a_mark_the_one_that_the_device_resembles(difference: dict[str, object], lost: str) -> None:
    files = servers("a", "b", **difference)
    assert order(files, marked(lost)) == ["a", "b"]
    assert order(dict(reversed(files.items())), marked(lost)) == ["a", "b"]


def test_the_address_of_a_name_is_the_devices_only_for_the_server_that_is_set_up() -> None:
    peer = build.tunnel().peers[0]._replace(endpoint=Endpoint("vpn.example", build.ENDPOINT[1]))
    mine = build.tunnel(name="a", peers=(peer,))
    assert endpoints.known(build.settings(), mine, marked("a")) == {build.SERVER: build.ENDPOINT}
    assert endpoints.known(build.settings(), mine, marked("")) == {build.SERVER: build.ENDPOINT}
    assert endpoints.known(build.settings(), mine, marked("b")) == {}


@pytest.mark.parametrize(
    ("failures", "expected"),
    [
        ([ConfigError("1"), ConfigError("2")], "1"),
        ([HandshakeError("1"), ConfigError("2")], "1"),
        ([KernelError("1"), HandshakeError("2"), VerifyError("3")], "2"),
        ([ConfigError("1"), KernelError("2")], "2"),
        ([VerifyError("1")], "1"),
    ],
)
def test_the_failure_that_counts_is_the_one_that_may_pass(failures: list[InitWgError], expected: str) -> None:
    assert str(_gravest(failures)) == expected


def test_any_name_has_a_number() -> None:
    assert server.number("1-provider") == server.number("1-provider") != server.number("2-provider")
    assert 0 < server.number("\udcff") < 1 << 32


def test_the_watchdog_goes_by_the_mark_too() -> None:
    known = tuple(facts.Server(name, frozenset(["key"]), ()) for name in "ab")
    assert facts.current(known, server.number("b"), None) == known[1]
    assert facts.current(known, 0, None) is None


def test_a_file_that_the_watchdog_remembers_keeps_its_name(tmp_path: Path) -> None:
    for name in ("1-a", "2-b"):
        (tmp_path / f"{name}.conf").write_text(name)
    memory = Remembered()
    for name in ("1-a", "2-b"):  # another server, and no file has changed
        memory.take(str(tmp_path / f"{name}.conf"), 7)
        assert memory.name == tunnel.name(memory.path) == name
        assert Path(memory.path).read_text() == name
    memory.take(str(tmp_path / f"{'n' * 250}.conf"), 7)
    assert memory.path == ""
    assert tunnel.name(f"{tmp_path}/1-a.conf") == "1-a"
    os.symlink("1-a.conf", tmp_path / "link.conf")
    assert tunnel.name(f"{tmp_path}/link.conf") == "link"
    memory.close()
