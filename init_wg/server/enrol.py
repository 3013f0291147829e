"""The list of peers and the volume -> the register to serve: what is known comes back, what is new is made and kept."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from init_wg import log
from init_wg.config import peer_names, source
from init_wg.config.peer_names import BadNameError
from init_wg.errors import ConfigError, InitWgError, KernelError
from init_wg.server import keys, linuxserver, store
from init_wg.server.design import desired
from init_wg.server.design import register as registers
from init_wg.server.design.register import Makes, Register

if TYPE_CHECKING:
    from init_wg.config.server_settings import ServerSettings
    from init_wg.server.design.desired import Networks
    from init_wg.server.design.register import Peer


class Enrolled(NamedTuple):
    """Whom to serve, and in which networks. failure: why that is not what was asked for; what was known is served."""

    register: Register
    within: Networks
    failure: InitWgError | None

    @property
    def active(self) -> dict[str, Peer]:
        """The peers that are served, by name."""
        return {name: peer for name, peer in self.register.peers.items() if peer.active}


def enrol(server: ServerSettings, *, keep: bool = True) -> Enrolled:
    """Read the volume, and extend it where there are new peers. keep=False: as it would be, and nothing is written.

    Raises InitWgError where there is nothing to serve yet. Later the running server must go on, and be repaired, with
    what it has: a full volume or a wrong list of peers is a failure beside that.
    """
    with store.locked(server.data):
        stored = _stored(server)
        known = stored or (_adopted(server) if _foreign(server) else None)
        try:
            wanted = names(server)
            register = registers.listed(
                known or Register(keys.pair()[0], {}), wanted, makes(server), desired.last_number(server)
            )
        except ConfigError as error:
            if known is None:
                raise
            return Enrolled(known, within(server, known), error)
        networks = within(server, register)
        register, outdated = registers.moved(register, tuple(map(str, networks)), time.time())
        if keep and register != stored:
            try:
                store.save(server.data, register)
            except KernelError as error:
                if known is None:
                    raise
                return Enrolled(registers.known(known, wanted), networks, error)
    if keep and outdated:
        log.warning(
            f"the tunnel's networks have changed: these peers need their file anew (init-wg peer show NAME): "
            f"{', '.join(outdated)}"
        )
    return Enrolled(register, networks, None)


def names(server: ServerSettings) -> tuple[str, ...]:
    """Of PEERS, or of its file. Raises ConfigError."""
    if server.peers is not None:
        return server.peers
    path = server.peers_file
    text, _ = source.read(path, f"{source.shown(path)}: no such file: mount it, or correct PEERS_FILE")
    try:
        return peer_names.in_lines(text)
    except BadNameError as error:
        raise ConfigError(f"{source.shown(path)}: it {error}") from None


def makes(server: ServerSettings) -> Makes:
    """Where new keys come from."""
    return Makes(keys.pair, keys.preshared if server.preshared_keys else lambda: None)


def within(server: ServerSettings, register: Register) -> Networks:
    """The tunnel's networks."""
    return desired.inside(server, keys.public(register.key))


def kept(server: ServerSettings) -> Register:
    """The register as it is on the volume, for who holds the lock. Raises InitWgError where there is none yet."""
    register = _stored(server)
    if register is None:
        raise ConfigError(f"{source.shown(server.data)}: no server has run with this volume yet: run init-wg up first")
    return register


def _stored(server: ServerSettings) -> Register | None:
    """What the volume has of ours. Raises InitWgError."""
    return None if _foreign(server) else store.load(server.data)


def _foreign(server: ServerSettings) -> bool:
    """A volume of linuxserver's that is not ours yet."""
    return linuxserver.is_there(server.data) and not store.exists(server.data)


def _adopted(server: ServerSettings) -> Register:
    register = linuxserver.adopted(server.data, server.subnet)
    log.info(f"{source.shown(server.data)}: taken over from linuxserver/wireguard: {len(register.peers)} peer(s)")
    return register
