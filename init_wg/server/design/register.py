"""The server's identity and its peers': all that is kept, and how it may change. Pure.

Three promises. A key never changes. A number (and with it an address) is never given to a second peer. A name that
comes back gets what it had; only `without` destroys keys.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from init_wg.config import peer_names, values
from init_wg.errors import ConfigError
from init_wg.model.secret import Secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

VERSION = 1
#: The server's own number: the first address of each network.
SERVER_NUMBER = 1


class Peer(NamedTuple):
    """A peer. key: its private key, None where only the peer has it; number: of its addresses in the networks.

    active: it is on the device. added: by `peer add`, so PEERS says nothing about it. public_key is kept beside the
    private one, because computing it takes milliseconds, and there may be a thousand peers.
    """

    public_key: str
    key: Secret | None
    preshared_key: Secret | None
    number: int
    active: bool
    added: bool = False


class Register(NamedTuple):
    """The server's private key, its peers by name, and the numbers of those that were removed.

    networks: those of the last run, as text; moved: Unix seconds of their last change, 0 for never; outdated: the
    numbers of the peers that were there then.
    """

    key: Secret
    peers: dict[str, Peer]
    retired: tuple[int, ...] = ()
    networks: tuple[str, ...] = ()
    moved: float = 0.0
    outdated: tuple[int, ...] = ()

    def needs_new_file(self, peer: Peer, handshake: float) -> bool:
        """Has it not shaken hands since its addresses changed? handshake: the last one, in Unix seconds."""
        return peer.number in self.outdated and handshake < self.moved


class Makes(NamedTuple):
    """Where keys come from: a new private key with its public key, and a new preshared key, or None for no such key."""

    pair: Callable[[], tuple[Secret, str]]
    preshared: Callable[[], Secret | None]


class DamagedError(ValueError):
    """This text is no register, or not a whole one. Its words never hold a key."""


def listed(register: Register, names: Iterable[str], makes: Makes, last: int) -> Register:
    """The register for this list of peers: known ones as they were, unknown ones with new keys, others inactive.

    last: the last number that the networks have. Raises ConfigError when there are not enough.
    """
    wanted = tuple(names)
    peers = {name: peer._replace(active=peer.added) for name, peer in register.peers.items()}
    used = {SERVER_NUMBER, *register.retired, *(peer.number for peer in peers.values())}
    number = SERVER_NUMBER
    for name in wanted:
        if name in peers:
            if peers[name].number > last:
                raise ConfigError(
                    f"environment: INTERNAL_SUBNET is too small for peer {name}, which has the number "
                    f"{peers[name].number}: take a wider one, or remove this peer"
                )
            # What PEERS names is decided there, whoever made it.
            peers[name] = peers[name]._replace(active=True, added=False)
            continue
        number = _free(number, used, last, name)
        used.add(number)
        key, public = makes.pair()
        peers[name] = Peer(public, key, makes.preshared(), number, active=True)
    return register._replace(peers=peers)


def known(register: Register, names: Iterable[str]) -> Register:
    """The same without new peers: what can be served while the volume takes no new keys."""
    wanted = set(names)
    peers = {n: peer._replace(active=peer.added or n in wanted) for n, peer in register.peers.items()}
    return register._replace(peers=peers)


def with_peer(register: Register, name: str, public_key: str | None, makes: Makes, last: int) -> Register:
    """One more peer, by `peer add`. public_key: the peer keeps its private key. Raises ConfigError."""
    taken = next((other for other in register.peers if other.lower() == name.lower()), None)
    if taken:
        raise ConfigError(f"peer add {name}: there is a peer {taken} already: init-wg peer list shows it")
    if public_key and any(peer.public_key == public_key for peer in register.peers.values()):
        raise ConfigError(f"peer add {name}: another peer has this public key: make a key pair for each peer")
    used = {SERVER_NUMBER, *register.retired, *(peer.number for peer in register.peers.values())}
    number = _free(SERVER_NUMBER, used, last, name)
    key, public = (None, public_key) if public_key else makes.pair()
    peer = Peer(public, key, makes.preshared(), number, active=True, added=True)
    return register._replace(peers={**register.peers, name: peer})


def suspended(register: Register, name: str) -> Register:
    """The peer is inactive until PEERS names it: the first half of its removal. Raises ConfigError."""
    peer = found(register, name, "remove")._replace(active=False, added=False)
    return register._replace(peers={**register.peers, name: peer})


def without(register: Register, name: str) -> Register:
    """The peer is revoked: its keys are destroyed, and its number is never given again. Raises ConfigError."""
    number = found(register, name, "remove").number
    peers = {other: value for other, value in register.peers.items() if other != name}
    outdated = tuple(each for each in register.outdated if each != number)
    return register._replace(peers=peers, retired=tuple(sorted((*register.retired, number))), outdated=outdated)


def found(register: Register, name: str, word: str) -> Peer:
    """The peer of this name. word: the command that asks. Raises ConfigError."""
    peer = register.peers.get(name)
    if peer is None:
        # A long one may be a key in the wrong place.
        raise ConfigError(f"peer {word} {name[:40]}: there is no such peer: init-wg peer list shows them")
    return peer


def moved(register: Register, networks: tuple[str, ...], now: float) -> tuple[Register, tuple[str, ...]]:
    """The register for these networks, and the peers whose addresses have changed: their files are outdated.

    now: Unix seconds.
    """
    if register.networks == networks:
        return register, ()
    if not register.networks:
        return register._replace(networks=networks), ()
    outdated = tuple(name for name, peer in register.peers.items() if peer.active)
    numbers = tuple(sorted(peer.number for peer in register.peers.values()))
    return register._replace(networks=networks, moved=now, outdated=numbers), outdated


def _free(after: int, used: set[int], last: int, name: str) -> int:
    """The lowest number never used."""
    for number in range(after + 1, last + 1):
        if number not in used:
            return number
    raise ConfigError(
        f"environment: INTERNAL_SUBNET has no address left for peer {name}: take a wider one with the same beginning "
        "(peers need their files anew then)"
    )


# --- as text -------------------------------------------------------------------------------------------------------


def encode(register: Register) -> str:
    """As JSON."""
    peers = {
        name: {
            field: value for field, value in peer._asdict().items() if value not in (None, False) or field == "active"
        }
        for name, peer in register.peers.items()
    }
    whole = {"version": VERSION, **register._asdict(), "peers": peers}
    return json.dumps(whole, indent=1) + "\n"


def decode(text: str) -> Register:
    """Raises DamagedError for anything that encode() could not have written."""
    try:
        whole = json.loads(text)
        if whole["version"] != VERSION:
            whole = {}
        register = Register(
            key=_secret(whole["key"]),
            peers={_name(name): _peer(fields) for name, fields in whole["peers"].items()},
            retired=tuple(_number(number) for number in whole["retired"]),
            networks=tuple(str(network) for network in whole["networks"]),
            moved=float(whole["moved"]),
            outdated=tuple(_number(number) for number in whole["outdated"]),
        )
    except Exception:  # noqa: BLE001  whatever it is, its text may quote a key
        raise DamagedError("it is not what this version of init-wg writes") from None
    numbers = [*register.retired, *(peer.number for peer in register.peers.values())]
    if len(set(numbers)) != len(numbers):
        raise DamagedError("two peers have the same number")
    if len({peer.public_key for peer in register.peers.values()}) != len(register.peers):
        raise DamagedError("two peers have the same key")
    return register


def _peer(fields: dict[str, Any]) -> Peer:
    key, preshared = fields.get("key"), fields.get("preshared_key")
    return Peer(
        public_key=values.key(fields["public_key"]),
        key=_secret(key) if key is not None else None,
        preshared_key=_secret(preshared) if preshared is not None else None,
        number=_number(fields["number"]),
        active=fields["active"] is True,
        added=fields.get("added") is True,
    )


def _name(text: str) -> str:
    if not peer_names.is_name(text):
        raise DamagedError("a peer has no name")
    return text


def _secret(text: str) -> Secret:
    return Secret(values.key(text))


def _number(number: Any) -> int:
    if type(number) is not int or number <= SERVER_NUMBER:
        raise DamagedError("a peer has an impossible number")
    return number
