"""A volume of linuxserver/wireguard -> a register with its keys and addresses. It is read, and left as it is.

server/privatekey-server
peer1/privatekey-peer1       for PEERS=1; peer_phone/privatekey-peer_phone for PEERS=phone
peer1/presharedkey-peer1     older volumes have none
peer1/peer1.conf             the address is in here only
"""

from __future__ import annotations

import os
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING

from init_wg.config import peer_names, source, values
from init_wg.errors import ConfigError
from init_wg.model.secret import Secret
from init_wg.server import keys
from init_wg.server.design.register import SERVER_NUMBER, Peer, Register

if TYPE_CHECKING:
    from collections.abc import Iterator

_SERVER_KEY = "server/privatekey-server"
_NAMED = "peer_"


def is_there(folder: str) -> bool:
    """Is this such a volume?"""
    return os.path.exists(os.path.join(folder, _SERVER_KEY))


def adopted(folder: str, subnet: IPv4Network) -> Register:
    """Its server and its peers, all inactive. Raises ConfigError naming the file that is wrong."""
    peers = dict(_peers(folder, subnet))
    numbers: dict[int, str] = {}
    for name, peer in peers.items():
        first = numbers.setdefault(peer.number, name)
        if first != name:
            raise ConfigError(
                f"{source.shown(folder)}: the peers {first} and {name} have the same address: correct Address in the "
                "file of one of them"
            )
    return Register(Secret(_key(folder, _SERVER_KEY)), peers)


def _peers(folder: str, subnet: IPv4Network) -> Iterator[tuple[str, Peer]]:
    for entry in sorted(os.listdir(folder)):
        if not entry.startswith("peer") or not os.path.exists(os.path.join(folder, f"{entry}/privatekey-{entry}")):
            continue
        name = entry.removeprefix(_NAMED)
        if not peer_names.is_name(name):
            raise ConfigError(
                f"{source.shown(os.path.join(folder, entry))}: this peer's name is not allowed: rename it"
            )
        key = _key(folder, f"{entry}/privatekey-{entry}")
        preshared = f"{entry}/presharedkey-{entry}"
        there = os.path.exists(os.path.join(folder, preshared))
        yield (
            name,
            Peer(
                public_key=keys.public(key),
                key=Secret(key),
                preshared_key=Secret(_key(folder, preshared, private=False)) if there else None,
                number=_number(folder, f"{entry}/{entry}.conf", subnet),
                active=False,
            ),
        )


def _key(folder: str, name: str, *, private: bool = True) -> str:
    path = os.path.join(folder, name)
    text, _ = source.read(path, f"{source.shown(path)}: missing: restore it from a copy")
    if not text.strip():
        raise ConfigError(
            f"{source.shown(path)}: empty, as a full volume leaves it: restore it from a copy, or delete this peer's "
            "folder, and it gets new keys"
        )
    try:
        return values.private_key(text.strip()) if private else values.key(text.strip())
    except values.BadValueError as error:
        raise ConfigError(f"{source.shown(path)}: the key {error}") from None


def _number(folder: str, name: str, subnet: IPv4Network) -> int:
    """The number of its address in the subnet."""
    path = os.path.join(folder, name)
    text, _ = source.read(path, f"{source.shown(path)}: missing: restore it, because this peer's address is in it")
    for line, content in source.lines(text):
        word, _, value = (part.strip() for part in content.partition("="))
        if word.lower() == "address":
            return _number_of(value.split(",")[0].partition("/")[0].strip(), subnet, path, line)
    raise ConfigError(f"{source.shown(path)}: it has no Address: restore it, because this peer's address is in it")


def _number_of(text: str, subnet: IPv4Network, path: str, line: int) -> int:
    try:
        address = IPv4Address(text)
    except ValueError:
        source.fail(path, line, "Address begins with something that is no IPv4 address: correct it")
    number = int(address) - int(subnet.network_address)
    if address not in subnet or not SERVER_NUMBER < number < subnet.num_addresses - 1:
        source.fail(path, line, f"Address is none of a peer in {subnet}: set INTERNAL_SUBNET to the network it was")
    return number
