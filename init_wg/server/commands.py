"""`init-wg peer ...`: the peers, their files, and peers that come and go beside PEERS.

Secrets go to stdout on request, and nowhere else: not into the log, nor an error, nor the list.
"""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from init_wg import log
from init_wg.config import peer_names, server_settings, values
from init_wg.design import pod as pods
from init_wg.errors import ConfigError, InitWgError, KernelError, VerifyError
from init_wg.kernel import device, lock, netlink, rtnetlink_read
from init_wg.model.wireguard import Change
from init_wg.server import enrol, keys, report, run, store
from init_wg.server.design import desired, peerfile
from init_wg.server.design import register as registers
from init_wg.setup import lockdown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from init_wg.config.server_settings import ServerSettings
    from init_wg.config.settings import Settings
    from init_wg.model.snapshot import Interface
    from init_wg.model.wireguard import Reading
    from init_wg.server.design.register import Peer, Register

PICTURES = ("--qr", "--svg", "--png")


def peer(settings: Settings, words: list[str]) -> None:
    """One command about peers. Raises InitWgError, and OSError when stdout takes no more."""
    match words:
        case ["list"]:
            _print(_as_text(_rows(settings)) + "\n")
        case ["list", "--json"]:
            _print(report.as_json({"peers": _rows(settings)}) + "\n")
        case ["show", *rest]:
            _show(settings, *_show_options(rest))
        case ["add", name]:
            _add(settings, name, None)
        case ["add", name, "--public-key", key]:
            _add(settings, name, key)
        case ["remove", name]:
            _remove(settings, name)
        case ["secret", *names] if names and not any(name.startswith("-") for name in names):
            _print(_secret(settings, names))
        case _:
            raise _misused()


def _misused() -> ConfigError:
    return ConfigError("usage: init-wg peer --help shows how the commands about peers are written")


def _print(text: str | bytes) -> None:
    """All of it, or an error: half a file must not look like a whole one."""
    sys.stdout.buffer.write(text.encode() if isinstance(text, str) else text)
    sys.stdout.buffer.flush()


# --- the list ------------------------------------------------------------------------------------------------------


def _rows(settings: Settings) -> list[dict[str, Any]]:
    """A plain value for each peer, without any key. Times are Unix seconds, 0 for never."""
    server = run.read(settings)
    register = _kept(server)
    reading = _reading(settings.interface)
    rows = report.peers(
        register,
        enrol.within(server, register),
        reading.device if reading else None,
        reading.traffic if reading else {},
    )
    return [{name: value for name, value in row.items() if name != "public_key"} for row in rows]


def _as_text(rows: list[dict[str, Any]]) -> str:
    """For a terminal."""
    table = [("NAME", "ADDRESSES", "STATE", "HANDSHAKE", "RECEIVED", "SENT")]
    for row in rows:
        state = "active" if row["active"] else "inactive"
        state += ", needs its new file" if row["needs_new_file"] else ""
        age = f"{max(0, time.time() - row['latest_handshake']):.0f} s ago" if row["latest_handshake"] else "never"
        traffic = (report.size(row["received_bytes"]), report.size(row["sent_bytes"]))
        table.append((row["name"], ", ".join(row["addresses"]), state, age, *traffic))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip() for line in table
    )


# --- files ---------------------------------------------------------------------------------------------------------


def _show_options(words: list[str]) -> tuple[str, str, bool]:
    """The peer's name, how to show its file ("" is as text), and whether to do it wherever stdout leads."""
    force = "--force" in words
    left = [word for word in words if word != "--force"]
    kinds = [word for word in left if word in PICTURES]
    names = [word for word in left if word not in PICTURES]
    if len(names) != 1 or len(kinds) > 1 or len(words) - len(left) > 1 or names[0].startswith("-"):
        raise _misused()
    return names[0], (kinds or [""])[0], force


def _show(settings: Settings, name: str, kind: str, force: bool) -> None:
    server = run.read(settings)
    register = _kept(server)
    found = registers.found(register, name, "show")
    if kind and not found.key:
        raise ConfigError(
            f"peer show {name}: this peer keeps its private key itself, so no code can hold its file: without {kind}, "
            "its file shows where the key belongs"
        )
    if not force:
        _refuse_stdout(name, kind)
    text = _files(settings, server, register, {name: found})[name]
    if not found.active:
        log.warning(f"peer {name} is not in the list of peers: it is refused until it is")
    if not kind:
        _print(text)
        return
    from init_wg.server import qr

    _print(qr.terminal(text) if kind == "--qr" else qr.picture(text, kind.removeprefix("--")))


def _refuse_stdout(name: str, kind: str) -> None:
    """The code is the private key: a log must not get it by accident. A terminal makes nothing of a PNG."""
    terminal = sys.stdout.isatty()
    if kind == "--qr" and not terminal:
        raise ConfigError(
            f"peer show {name} --qr: stdout is no terminal, and the code holds the private key: ask for a terminal "
            "(kubectl exec -it), or add --force"
        )
    if kind == "--png" and terminal:
        raise ConfigError(
            f"peer show {name} --png: stdout is a terminal: send it to a file (> {name}.png), or add --force"
        )


def _secret(settings: Settings, names: list[str]) -> str:
    server = run.read(settings)
    register = _kept(server)
    found = {name: registers.found(register, name, "secret") for name in names}
    for name, each in found.items():
        if not each.key:
            raise ConfigError(
                f"peer secret {name}: this peer keeps its private key itself: init-wg peer show {name} prints the rest"
            )
    return peerfile.secret(_files(settings, server, register, found))


def _files(settings: Settings, server: ServerSettings, register: Register, peers: dict[str, Peer]) -> dict[str, str]:
    """The text of each peer's file."""
    within = enrol.within(server, register)
    with netlink.Socket() as kernel:
        pod = pods.discover(rtnetlink_read.snapshot(kernel), settings.interface)
    host = peerfile.host(server, pod)
    own, mtu = keys.public(register.key), desired.mtu(pod, within)
    return {name: peerfile.text(each, server, within, own, host, mtu) for name, each in peers.items()}


# --- peers that come and go ----------------------------------------------------------------------------------------


def _add(settings: Settings, name: str, key: str | None) -> None:
    server = run.read(settings)
    if not peer_names.is_name(name):
        raise ConfigError(
            f"peer add: a name has 1 to {peer_names.LONGEST} letters, digits, _ . or -, and begins with a letter or a "
            "digit"
        )
    _refuse_listed(server, name, "add")
    lockdown.seal()
    with store.locked(server.data):
        register = enrol.kept(server)
        public = _public(register, name, key) if key else None
        last = desired.last_number(server)
        store.save(server.data, registers.with_peer(register, name, public, enrol.makes(server), last))
    with _saying(f"peer {name} is added, but the server is not as it should be"):
        run.up(settings)
    log.info(f"peer {name} is added: init-wg peer show {name} prints its file")


def _public(register: Register, name: str, text: str) -> str:
    try:
        public = values.key(text)
    except values.BadValueError as error:
        raise ConfigError(f"peer add {name}: the public key {error}") from None
    if public == keys.public(register.key):
        raise ConfigError(f"peer add {name}: this is the server's own public key: take the peer's")
    return public


def _remove(settings: Settings, name: str) -> None:
    """Revoke a peer. After each line this process may die.

    The volume comes first: from then on no run of `up` lets the peer in again. Then it leaves the device, and only then
    its keys and its name are gone: whoever had to begin again finds it by its name.
    """
    server = run.read(settings)
    _refuse_listed(server, name, "remove")
    lockdown.seal()
    # No run of `up` that has read the older register is still at work.
    with lock.acquire(run.LOCK_TIMEOUT), netlink.Socket() as kernel:
        with store.locked(server.data):
            register = registers.suspended(enrol.kept(server), name)
            store.save(server.data, register)
        with _saying(f"peer {name} may still be served: run init-wg peer remove {name} again when this is mended"):
            _refuse(kernel, settings.interface, register.peers[name].public_key)
        if behind := server_settings.behind_by(server, name):
            raise ConfigError(
                f"environment: {behind} names peer {name}, which is refused from now on: delete {behind}, then run "
                f"init-wg peer remove {name} again, which destroys its keys"
            )
        holds = f"peer {name} is refused from now on, but its keys are still on the volume"
        with _saying(holds), store.locked(server.data):
            store.save(server.data, registers.without(enrol.kept(server), name))
    with _saying(f"peer {name} is removed and its keys are destroyed, but the server is not as it should be"):
        run.up(settings)
    log.info(f"peer {name} is removed, and its keys are destroyed")


def _refuse(kernel: netlink.Socket, interface: str, public_key: str) -> None:
    """The device forgets this peer at once, whatever else is wrong with the pod. Raises KernelError, VerifyError."""
    link = _link(kernel, interface)
    if link is None:
        return
    if _has(device.read(interface, link.kind), interface, public_key):
        device.write(interface, link.kind, Change(None, None, None, (public_key,), ()))
        if _has(device.read(interface, link.kind), interface, public_key):
            raise VerifyError(f"{interface} still has this peer: something else in this pod is changing it")


def _has(reading: Reading | None, interface: str, public_key: str) -> bool:
    if reading is None:
        raise KernelError(f"{interface} does not answer: init-wg up makes it anew")
    return any(peer.public_key == public_key for peer in reading.device.peers)


@contextmanager
def _saying(holds: str) -> Iterator[None]:
    """An error says first what holds in spite of it."""
    try:
        yield
    except InitWgError as error:
        raise type(error)(f"{holds}: {error}") from None
    except OSError as error:
        raise KernelError(f"{holds}: {netlink.describe(error)}") from None


def _refuse_listed(server: ServerSettings, name: str, word: str) -> None:
    if any(listed.lower() == name.lower() for listed in enrol.names(server)):
        where = "PEERS" if server.peers is not None else "PEERS_FILE"
        raise ConfigError(f"peer {word} {name}: this name is in {where}: change it there, so that there is one list")


# --- what all of them need -----------------------------------------------------------------------------------------


def _kept(server: ServerSettings) -> Register:
    with store.locked(server.data):
        return enrol.kept(server)


def _reading(interface: str) -> Reading | None:
    """What the device says; None where there is none that answers. Raises OSError without NET_ADMIN."""
    with netlink.Socket() as kernel:
        link = _link(kernel, interface)
    return device.read(interface, link.kind) if link else None


def _link(kernel: netlink.Socket, name: str) -> Interface | None:
    return next((each for each in rtnetlink_read.snapshot(kernel).interfaces if each.name == name), None)
