"""The commands behind the command line, each from arguments to an exit status."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Protocol

from init_wg import __version__, log
from init_wg.errors import DONE, ConfigError, InitWgError, KernelError, VerifyError
from init_wg.kernel import process

if TYPE_CHECKING:
    from typing import Any

    from init_wg.config.settings import Settings

#: How each command is called, and what it does.
COMMANDS = {
    "up": (
        "up [--server NAME]",
        """seal the pod, set up the tunnel, verify, exit (without a command: up)
Servers are tried in the order of their files' names; --server NAME (a file's name without .conf) begins with
that one, and demands that it answers now.""",
    ),
    "lockdown": (
        "lockdown",
        """only seal the pod
Nothing leaves it until `up` has set up the tunnel. A kill-switch that is in place is left as it is.""",
    ),
    "hold": (
        "hold",
        """seal the pod, then stay until told to end: for the container that owns a stack's network
SIGTERM ends it; the kill-switch stays as long as the network does.""",
    ),
    "check": (
        "check",
        """what differs from what should be there (exit status 5: something does)
Changes nothing.""",
    ),
    "check FILE": (
        "check FILE",
        """is this configuration file right, and what would it set up? Needs no privilege
Works anywhere. Keys are not shown.""",
    ),
    "status": (
        "status [--json|--watch]",
        """what is there now
For people, or with --json for programs. With --watch it looks again every two seconds, until a signal ends it.
Keys are not shown.""",
    ),
    "peer": (
        "peer ...",
        """server mode: list, show, add and remove peers; init-wg peer --help
  peer list [--json]            every peer, its addresses, its last handshake and its traffic; no keys
  peer show NAME                the peer's file on stdout, with its private key
       --qr | --svg | --png     the same as a QR code: for a terminal, or as a picture
       --force                  a QR code where stdout is no terminal, a PNG where it is one
  peer add NAME                 a peer beside those of PEERS
       --public-key KEY         it keeps its private key itself
  peer remove NAME              refuse it at once and destroy its keys; its address is never given again
  peer secret NAME...           a Kubernetes Secret with these peers' files on stdout""",
    ),
    "names": (
        "names",
        """run the DNS forwarder, if DNS_MODE needs one (the watchdog does this; exit status 0: not needed)
It stays in the foreground.""",
    ),
    "node": (
        "node COMMAND",
        """let a cluster work beside the machine's VPN (docs/node.md): the one command for the machine's own network
node print shows the table; node up loads it; node check and node status [--json] compare; node down takes it away.
No other command acts in the machine's own network, and this one acts nowhere else.""",
    ),
    "down": (
        "down",
        """take everything away: the pod is open then
Only ever on request: nothing else takes the kill-switch away.""",
    ),
}
_ENDING = """\
exit status: 0 done; 2 wrong configuration or usage; 3 the kernel or a permission said no;
             4 no handshake in time; 5 applied but read back different;
             128 and its number: a signal (143 SIGTERM, 130 SIGINT, 131 SIGQUIT); what is sealed stays sealed
settings come from the environment: see docs/configuration.md
"""
USAGE = (
    "usage: init-wg [COMMAND]\n\n"
    + "".join(f"  {form:<24} {words.partition(chr(10))[0]}\n" for form, words in COMMANDS.values())
    + "  --version, --help        also COMMAND --help\n\n"
    + _ENDING
)


def usage(command: str) -> str:
    """The text that `init-wg COMMAND --help` prints."""
    told = [
        f"usage: init-wg {form}\n\n{words}\n\n"
        for name, (form, words) in COMMANDS.items()
        if name.split()[0] == command
    ]
    return "".join(told) + _ENDING


def run(arguments: list[str]) -> int:
    """Run one command. Every failure ends in one line on stderr that says what to do."""
    process.forbid_core_dumps()
    try:
        return _run(arguments)
    except InitWgError as error:
        log.error(str(error))
        return error.exit_code
    except BrokenPipeError:  # whoever read stdout has gone, as in `init-wg status | head -1`
        from signal import SIGPIPE

        return 128 + SIGPIPE
    except OSError as error:
        from init_wg.kernel.netlink import describe

        log.error(describe(error))
        return KernelError.exit_code


def _run(arguments: list[str]) -> int:
    match arguments or ["up"]:
        case [command, *_, "--help" | "-h"] if command in COMMANDS:
            print(usage(command), end="")
        case ["up"]:
            return _up(None)
        case ["up", "--server", name]:
            return _up(name)
        case ["lockdown"]:
            return DONE
        case ["hold"]:
            return _hold()
        case ["check"]:
            return _check()
        case ["check", path]:
            return _check_file(path)
        case ["status"]:
            return _status(as_json=False)
        case ["status", "--json"]:
            return _status(as_json=True)
        case ["status", "--watch"]:
            return _watch()
        case ["peer", *words]:
            return _peer(words)
        case ["names"]:
            return _names()
        case ["node", *words]:
            from init_wg.node import run as node

            return node.run(words)
        case ["down"]:
            return _down()
        case ["--version"]:
            print(f"init-wg {__version__}")
        case ["--help" | "-h" | "help"]:
            print(USAGE, end="")
        case _:
            sys.stderr.write(USAGE)
            raise ConfigError(f"usage: {' '.join(arguments)[:80]!a} is no command of init-wg")
    return DONE


def _up(server: str | None) -> int:
    from init_wg.config import settings

    found = settings.read(os.environ)
    _mode(found).up(found, server)
    return DONE


def _hold() -> int:
    """The pod is sealed already. Whoever owns a network namespace only has to be there; PID 1 must ask for signals."""
    import signal

    end = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
    signal.pthread_sigmask(signal.SIG_BLOCK, end)
    log.info("this network is kept until its holder is told to end")
    signal.sigwait(end)
    return DONE


def _check() -> int:
    from init_wg.config import settings
    from init_wg.kernel import nft

    found = settings.read(os.environ)
    steps = _mode(found).differences(found)
    strangers = nft.strangers()
    for line in (*steps, *strangers):
        print(log.printable(str(line)))
    if steps:
        raise VerifyError(f"{len(steps)} difference(s): run init-wg up to mend them")
    if strangers:
        raise VerifyError("somebody else marks packets as init-wg does: find who loads this table, and delete it")
    print("everything is as it should be")
    return DONE


def _check_file(path: str) -> int:
    from init_wg.config import tunnel as config
    from init_wg.setup import report

    tunnel = config.load(path)
    config.refuse_own_key(tunnel)
    print(report.preview(tunnel))
    return DONE


def _status(*, as_json: bool) -> int:
    from init_wg.config import settings

    found = settings.read(os.environ)
    report = _report(found)
    facts = report.status(found)
    print(report.as_json(facts) if as_json else report.as_text(facts))
    return DONE


def _watch() -> int:
    from init_wg import watch
    from init_wg.config import settings

    found = settings.read(os.environ)
    report = _report(found)
    watch.run(lambda: report.as_text(report.status(found)))
    return DONE


def _peer(words: list[str]) -> int:
    from init_wg.config import settings

    found = settings.read(os.environ)
    if found.mode != "server":
        raise ConfigError("usage: only a server has peers of its own: set WG_MODE=server, or see init-wg status")
    from init_wg.server import commands

    commands.peer(found, words)
    return DONE


def _names() -> int:
    """Become the forwarder: whoever started this process now supervises that.

    Not as process 1, nor at a terminal: dnsmasq heeds neither SIGINT nor, as process 1, SIGQUIT.
    """
    from init_wg.config import settings
    from init_wg.kernel import process

    found = settings.read(os.environ)
    command = _mode(found).forwarder(found)
    if command is None:
        log.debug("no DNS forwarder is needed")
        return DONE
    path = process.find(command[0])
    if path is None:
        raise KernelError(f"{command[0]} is not installed, and DNS_MODE needs it: use the image, or dnsmasq-base")
    if os.getpid() == 1 or os.isatty(0):
        return process.attend(path, command)
    process.become(path, command)
    return DONE


def _down() -> int:
    from init_wg.config import settings
    from init_wg.kernel import sealed
    from init_wg.setup import lockdown

    found = settings.read(os.environ)
    # A pod that is sealed may have got a network plugin's or an engine's interface since: that one is still ours.
    if not sealed.in_place():
        lockdown.refuse_node()
    _mode(found).down(found)
    log.warning("everything is taken away: this pod's traffic is not protected any more")
    return DONE


def _mode(settings: Settings) -> _Mode:
    """Who sets up the pod. Raises ConfigError."""
    _refuse_node_mode(settings)
    if settings.mode == "server":
        from init_wg.server import run

        return run
    from init_wg.setup import connect

    return connect


def _report(settings: Settings) -> _Report:
    """Who tells about it. Raises ConfigError."""
    _refuse_node_mode(settings)
    if settings.mode == "server":
        from init_wg.server import report as server

        return server
    from init_wg.setup import report as egress

    return egress


def _refuse_node_mode(settings: Settings) -> None:
    if settings.mode == "node":
        raise ConfigError("environment: WG_MODE=node: in this mode there is `init-wg node` alone: init-wg node up")


class _Mode(Protocol):
    """The module of one WG_MODE. Its functions raise InitWgError."""

    def up(self, settings: Settings, server: str | None) -> None: ...
    def differences(self, settings: Settings) -> tuple[object, ...]: ...
    def forwarder(self, settings: Settings) -> tuple[str, ...] | None: ...
    def down(self, settings: Settings) -> None: ...


class _Report(Protocol):
    """The module that tells about one WG_MODE."""

    def status(self, settings: Settings) -> dict[str, Any]: ...
    def as_json(self, facts: dict[str, Any]) -> str: ...
    def as_text(self, facts: dict[str, Any]) -> str: ...
