"""The command line. `up` and `lockdown` seal the pod before anything else is even imported."""

from __future__ import annotations

import gc
import os
import sys

from init_wg import interrupts

TYPE_CHECKING = False  # typing's own costs 5 ms, a quarter of the lockdown
if TYPE_CHECKING:
    from typing import NoReturn

_WORDS = ("up", "lockdown", "hold", "check", "status", "down")


def main() -> None:
    """Entry point of `init-wg` and `python -m init_wg`; exits with the codes of init_wg.errors."""
    gc.disable()  # a short life leaves nothing to collect, and looking for it costs a tenth of the imports
    interrupts.install()
    try:
        status = _run(sys.argv[1:])
    except interrupts.Interrupted as signal:
        from init_wg import log

        log.info(f"{signal}; what is sealed stays sealed")
        status = signal.exit_code
    except Exception:  # noqa: BLE001 - a mistake of ours; Python itself would wait for a reader of stderr
        from traceback import format_exc

        from init_wg import log

        log.relay(format_exc())
        status = 1
    _exit(status)


def _run(arguments: list[str]) -> int:
    word = arguments[0] if arguments and arguments[0] in _WORDS else "up" if not arguments else ""
    # Whatever follows them: `up --server x` too has to be sealed first, and refused in the node's own network. But
    # who asks what a command does has not asked for it.
    asked = arguments[-1:] in (["--help"], ["-h"])
    status = _sealed(arguments) if word in ("up", "lockdown", "hold") and not asked else None
    if status is None:
        from init_wg import cli

        status = cli.run(arguments)
    return status


def _sealed(arguments: list[str]) -> int | None:
    """Lock down first. An exit status when that was all, or when it failed; None to go on."""
    from init_wg.errors import InitWgError
    from init_wg.setup import lockdown

    try:
        lockdown.seal()
    except InitWgError as error:
        from init_wg import log

        log.error(str(error))
        return error.exit_code
    return 0 if arguments == ["lockdown"] else None


def _exit(status: int) -> NoReturn:
    """Leave the tear-down to the kernel: Python's own, object by object, takes a tenth of a whole `up`."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError):  # closed from the start; or whoever read it has gone
            continue
    os._exit(status)


if __name__ == "__main__":
    main()
