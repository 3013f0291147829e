"""The loop and its children, with real processes and signals, without root."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from select import EPOLLIN

import pytest

from watchdog import child as module
from watchdog.child import KEPT, Child, Ended
from watchdog.loop import Loop, watch_signals


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


def test_timers_in_order_and_cancelled(loop: Loop) -> None:
    called: list[str] = []
    loop.call_later(0.02, lambda: called.append("second"))
    loop.call_later(0.01, lambda: called.append("first"))
    cancelled = loop.call_later(0.015, lambda: called.append("never"))
    cancelled.cancel()
    loop.call_later(0.03, loop.stop)
    loop.run()
    assert called == ["first", "second"]


def test_a_mistake_in_a_callback_is_told_and_survived() -> None:
    told: list[Exception] = []
    loop = Loop(told.append)
    loop.call_later(0, lambda: [][0])
    loop.call_later(0.01, loop.stop)
    loop.run()
    assert [type(error) for error in told] == [IndexError]
    loop.close()


class Children:
    """What the keeper does with its children, in small."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.ended: list[Ended] = []
        self.children: dict[int, Child] = {}
        self.undo = watch_signals(loop, (signal.SIGCHLD,), lambda _: self.reap())

    def python(self, code: str, timeout: float = 30.0) -> Child:
        argv = (sys.executable, "-I", "-S", "-c", code)
        child = Child(self.loop, argv, os.environ, timeout, self.ended.append)
        self.children[child.pid] = child
        return child

    def reap(self) -> None:
        for pid in list(self.children):  # not -1: the test runner may have children of its own
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                self.children.pop(pid).reaped(status)

    def wait(self) -> Ended:
        deadline = time.monotonic() + 20
        while not self.ended:
            assert time.monotonic() < deadline
            self.loop.turn(0.1)
        return self.ended.pop()


@pytest.fixture
def children(loop: Loop) -> Iterator[Children]:
    made = Children(loop)
    yield made
    for child in made.children.values():
        child.signal(signal.SIGKILL)
        os.waitpid(child.pid, 0)
    made.undo()


def test_a_child_says_what_it_has_to_say(children: Children) -> None:
    children.python("import sys; print('out'); sys.stderr.write('first\\nlast\\n\\n'); sys.exit(4)")
    ended = children.wait()
    assert (ended.code, ended.output, ended.last_line(), ended.late) == (4, "out\n", "last", False)


def test_a_talkative_child_neither_blocks_nor_fills_the_memory(children: Children) -> None:
    children.python("import sys\nfor n in range(100000): sys.stderr.write(f'line {n}\\n')")
    ended = children.wait()
    assert ended.last_line() == "line 99999"
    assert len(ended.errors) <= KEPT


def test_a_child_that_takes_too_long_is_ended(children: Children) -> None:
    children.python("import time; time.sleep(60)", timeout=0.2)
    ended = children.wait()
    assert ended.late
    assert ended.code == -signal.SIGTERM


def test_a_child_that_does_not_want_to_end_is_made_to(children: Children, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE", 0.2)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    children.python(code, timeout=0.5)
    assert children.wait().code == -signal.SIGKILL


def test_what_a_child_leaves_running_is_not_waited_for(children: Children) -> None:
    code = "import os, time\nif os.fork() == 0:\n    os.setsid(); time.sleep(3)\n"
    started = time.monotonic()
    children.python(code)
    assert children.wait().code == 0
    assert time.monotonic() - started < 2.5


def test_a_child_inherits_no_descriptor(children: Children) -> None:
    children.python("import os; print(sorted(map(int, os.listdir('/proc/self/fd'))))")
    found = set(json.loads(children.wait().output))
    # 3 is the listing itself; the rest is what the test runner passes on to everyone.
    assert found <= {0, 1, 2, 3} | {fd for fd in range(1024) if is_inheritable(fd)}


def is_inheritable(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False


def test_a_program_that_is_not_there(loop: Loop) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        Child(loop, ("/nonexistent",), os.environ, 1, lambda _: None)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_last_descriptor_waits_for_all_others_and_for_the_timers() -> None:
    loop = Loop()
    order: list[str] = []
    pairs = [socket.socketpair() for _ in range(3)]
    try:
        for number, (reader, writer) in enumerate(pairs):
            writer.send(b"x")
            if number == 0:
                loop.watch_last(reader.fileno(), lambda _: order.append("last"))
            else:
                loop.watch(reader.fileno(), EPOLLIN, lambda _, number=number: order.append(str(number)))  # type: ignore[misc]
        loop.call_later(0, lambda: order.append("timer"))
        loop.turn()
        assert sorted(order[:2]) == ["1", "2"]
        assert order[2:] == ["timer", "last"]
        loop.forget(pairs[0][0].fileno())
        loop.turn()
        assert order.count("last") == 1
    finally:
        for pair in pairs:
            for end in pair:
                end.close()
        loop.close()
