"""The DNS forwarder, where DNS_MODE needs one: `init_wg names` becomes it, and this keeps it alive.

While it is away names fail and nothing leaks: the kill-switch leads every query to its port, and only there. A process
that runs proves nothing: it is asked each second, and counts once it has answered.
"""

from __future__ import annotations

import socket
from select import EPOLLIN

from init_wg import log

from . import scheduler

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .child import Child, Ended
    from .loop import Loop, Timer
    from .supervisor import Spawn

#: init_wg.killswitch.FORWARDER_PORT, without the memory of that module.
PORT = 10053
#: "version.bind. TXT CH", which dnsmasq answers by itself. ID 0x7764.
QUERY = bytes.fromhex("7764 0100 0001 0000 0000 0000 07 76657273696f6e 04 62696e64 00 0010 0003")
#: Seconds until it is started again: at once the first time, then doubling.
AGAIN_FIRST, AGAIN_LAST = 0.05, 10.0
#: Seconds between two questions to one that was just started, so that its first answer is soon known.
ASK_FIRST = 0.02
#: Questions without an answer, a second apart: it does not answer; it hangs, and is replaced.
SILENT, HUNG = 2, 5
#: It ran for so long: whatever ended it is not a mistake in its command line.
STEADY = 10.0
FOR_EVER = 1e9
#: dnsmasq's word for a resolver. With a "/" in it, it is for some names only.
SERVER = "--server="


class _Asker:
    """Asks the forwarder whether it answers. first: called in the loop when it did, for the first time."""

    def __init__(self, loop: Loop, first: Callable[[], None]) -> None:
        self._loop = loop
        self._first = first
        self._socket: socket.socket | None = None
        self._again: Timer | None = None
        #: Since it was started; and questions since the last answer.
        self.answered, self.unanswered = False, 0

    def begin(self) -> None:
        """One was just started: ask until it answers."""
        self.answered, self.unanswered = False, 0
        self._ask_on()

    def ask(self) -> None:
        """A question to its port, from a socket of its own: what nobody listens to is refused, and unanswered, too."""
        self.unanswered += 1
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
                self._loop.watch(self._socket.fileno(), EPOLLIN, self._ready)
                self._socket.connect(("127.0.0.1", PORT))
            self._socket.send(QUERY)
        except OSError:
            return

    def end(self) -> None:
        """There is none to ask any more."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self._socket is not None:
            self._loop.forget(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _ask_on(self) -> None:
        if not self.answered:
            self.ask()
            self._again = self._loop.call_later(ASK_FIRST, self._ask_on)

    def _ready(self, _events: int) -> None:
        for _ in range(8):
            try:
                data = self._socket.recv(512) if self._socket else b""
            except OSError:  # nothing more; or the refusal of a question
                return
            if data[:2] != QUERY[:2]:
                return
            known, self.answered, self.unanswered = self.answered, True, 0
            if not known:
                self._first()


class Forwarder:
    """One child, restarted when it ends or hangs, renewed when what it was told has changed.

    `turned` is called in the loop when it began to answer.
    """

    def __init__(self, loop: Loop, spawn: Spawn, turned: Callable[[], None]) -> None:
        self._loop = loop
        self._spawn = spawn
        self._turned = turned
        self._child: Child | None = None
        self._again: Timer | None = None
        self._delay = AGAIN_FIRST
        self._renewed = False
        self._asker = _Asker(loop, self._first_answer)
        #: None: not asked yet; False: no server and no mode needs it.
        self.needed: bool | None = None
        self._known_need: bool | None = None  # the last answer to that
        self._why = ""  # it ended

    @property
    def running(self) -> bool:
        """Is there a forwarder?"""
        return self._child is not None and self.needed is not False

    @property
    def trouble(self) -> str:
        """Why redirected names are not answered, "" when they are or none is redirected."""
        if (self._known_need if self.needed is None else self.needed) is False:
            return ""
        if self._child is None:
            return f"the DNS forwarder does not run{f' ({self._why})' if self._why else ''}"
        if not self._asker.answered:
            return "the DNS forwarder has not answered yet"
        return "the DNS forwarder does not answer" if self._asker.unanswered >= SILENT else ""

    def asked_first(self) -> str:
        """The resolver that it queries before all others, by its command line; "" while it does not answer."""
        if self._child is None or not self._asker.answered or self._renewed:
            return ""
        try:
            with open(f"/proc/{self._child.pid}/cmdline", encoding="utf-8", errors="replace") as file:
                words = file.read().split("\0")
        except OSError:
            return ""
        servers = (word.removeprefix(SERVER) for word in words if word.startswith(SERVER))
        return next((server for server in servers if "/" not in server), "")

    def ensure(self) -> None:
        """After a setup: start it unless it runs, is about to, or is not needed."""
        if self._child is None and self._again is None and self.needed is not False:
            self._start()

    def renew(self) -> None:
        """Another server or another configuration: ask anew whether it is needed, and for what."""
        self.needed = None
        if self._child is not None:
            self._renewed = True
            self._child.end()
        else:
            self.ensure()

    def tick(self) -> None:
        """Once a second: does it still answer?"""
        if self._child is None or not self._asker.answered or self._renewed:
            return
        if self._asker.unanswered == HUNG:
            log.warning(f"the DNS forwarder has not answered for {HUNG} s: replacing it")
            self._child.end()
        self._asker.ask()

    def _start(self) -> None:
        self._again = None
        self._child = self._spawn(("init_wg", "names"), FOR_EVER, self._ended)
        if self._child is None:
            self._later()
        else:
            self._asker.begin()

    def _ended(self, ended: Ended) -> None:
        self._child = None
        self._asker.end()
        if self._renewed:
            self._renewed = False
            self._start()
        elif ended.code == scheduler.DONE:  # it never ends by itself with 0: this was "not needed"
            self.needed = self._known_need = False
            self._turned()
        else:
            if ended.code != scheduler.WRONG_CONFIG:  # a file that is wrong says nothing of what is set up
                self.needed = self._known_need = True
            if ended.seconds > STEADY:
                self._delay = AGAIN_FIRST
            self._why = f"by signal {-ended.code}" if ended.code < 0 else ended.last_line() or f"status {ended.code}"
            log.warning(f"the DNS forwarder ended ({self._why}); starting it again")
            self._later()
            self._turned()

    def _first_answer(self) -> None:
        self.needed = self._known_need = True
        self._turned()

    def _later(self) -> None:
        self._again = self._loop.call_later(self._delay, self._start)
        self._delay = min(self._delay * 2, AGAIN_LAST)
