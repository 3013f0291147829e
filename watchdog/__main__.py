"""`python -m watchdog`: the long-lived half. It ends only when told to; everything else it lives through."""

from __future__ import annotations

import os
import signal
import sys

from init_wg import __version__, log
from init_wg.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from init_wg.config.server_settings import ServerSettings
    from init_wg.config.settings import Settings

    from .keeper import Keeper
    from .loop import Loop
    from .machine import Machine
    from .serving import Server
    from .supervisor import Supervisor

_PR_SET_CHILD_SUBREAPER = 36
_END = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


USAGE = """\
usage: init-wg-watchdog

Serves :9999, watches the tunnel, and runs `init-wg up` whenever something is not as it should be. It stays until
told to end: SIGTERM ends it, SIGHUP makes it read the configuration again.

  --version, --help

exit status: 0 ended by a signal; 2 wrong settings or usage
settings come from the environment: see docs/configuration.md
"""


def main() -> int:
    """Entry point of `init-wg-watchdog` and `python -m watchdog`. 0: ended by a signal; 2: wrong settings."""
    # Before anything heavy is imported: as process 1 it would miss a signal that comes meanwhile.
    for number in _END:
        signal.signal(number, lambda *_: os._exit(0))
    if arguments := sys.argv[1:]:
        return _told(arguments)
    from init_wg.config import settings

    from . import limits
    from .loop import Loop, watch_signals
    from .supervisor import Supervisor

    try:
        found = settings.read(os.environ)
        server = _server_settings() if found.mode == "server" else None
        if found.mode == "node":
            _refuse_wrong_node_settings()
    except ConfigError as error:
        log.error(str(error))
        return error.exit_code
    for notice in found.notices:
        log.warning(notice)
    limits.raise_descriptors()
    limits.keep_secrets()
    _adopt_orphans()
    loop = Loop(_mistake)
    supervisor = Supervisor(loop, os.environ)
    keeper = _keeper(loop, found, server, supervisor)

    def on_signal(number: int) -> None:
        if number == signal.SIGCHLD:
            supervisor.reap()
        elif number == signal.SIGHUP:
            keeper.reload()
        else:
            log.info(f"ended by {signal.Signals(number).name}; the kill-switch and the tunnel stay")
            loop.stop()

    watch_signals(loop, (*_END, signal.SIGHUP, signal.SIGCHLD), on_signal)
    keeper.start()
    limits.give_back()
    loop.run()
    keeper.stop()
    return 0


def _server_settings() -> ServerSettings:
    from init_wg.config import server_settings

    return server_settings.read(os.environ)


def _refuse_wrong_node_settings() -> None:
    from init_wg.config import node_settings

    for notice in node_settings.read(os.environ).notices:
        log.warning(notice)


def _keeper(
    loop: Loop, found: Settings, server: ServerSettings | None, supervisor: Supervisor
) -> Keeper | Server | Machine:
    if found.mode == "node":
        from .machine import Machine

        return Machine(loop, found, supervisor)
    if server:
        from .serving import Server

        return Server(loop, found, server, supervisor)
    from .keeper import Keeper

    return Keeper(loop, found, supervisor)


def _told(arguments: list[str]) -> int:
    """It takes no words but those that ask about itself."""
    if arguments in (["--help"], ["-h"], ["help"]):
        sys.stdout.write(USAGE)
        return 0
    if arguments == ["--version"]:
        sys.stdout.write(f"init-wg-watchdog {__version__}\n")
        return 0
    sys.stderr.write(USAGE)
    log.error(f"usage: {' '.join(arguments)[:80]!a} is no option of init-wg-watchdog")
    return ConfigError.exit_code


def _mistake(error: Exception) -> None:
    """Something this program did not foresee: say where, and live on."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "somewhere"
    log.error(f"a mistake in the watchdog, please report it: {type(error).__name__}: {error} at {where}")


def _adopt_orphans() -> None:
    """Become the parent of what our children leave behind: wireguard-go, which is then seen to end, and reaped.

    PID 1 of a container is that anyway.
    """
    from init_wg.kernel import libc

    if os.getpid() != 1:
        # Where that fails, its end is noticed by the interface that goes with it.
        libc.call("prctl", _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main())
