"""Files of a network plugin -> the networks of its pods. Pure.

The main table knows a pod network once its bridge is there, which is after the first pod; and of a cluster with several
nodes this node's part alone.
"""

from __future__ import annotations

import json
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from init_wg.model.networks import Network

#: flannel's (pkg/subnet/subnet.go, WriteSubnetFile): the whole cluster's networks.
_WHOLE = ("FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK")


def networks(flannel: str, configurations: Iterable[str]) -> tuple[Network, ...]:
    """flannel: the text of its subnet.env, "" for none. configurations: the texts of CNI's *.conf and *.conflist.

    The files are somebody else's: a part that cannot be read is left out.
    """
    words = list(_words(flannel))
    for text in configurations:
        try:
            words += _subnets(json.loads(text))
        except (ValueError, RecursionError):
            continue
    return tuple(dict.fromkeys(filter(None, map(_network, words))))


def _words(flannel: str) -> Iterator[str]:
    for line in flannel.splitlines():
        name, _, value = line.partition("=")
        if name.strip() in _WHOLE:
            yield from value.strip().strip("\"'").split(",")


def _subnets(found: Any) -> Iterator[str]:
    """Of every "ipam" in it (the CNI specification; host-local's "subnet", or "ranges" of such)."""
    if isinstance(found, list):
        for each in found:
            yield from _subnets(each)
    elif isinstance(found, dict):
        for name, each in found.items():
            if name == "subnet" and isinstance(each, str):
                yield each
            elif name in ("plugins", "delegate", "ipam", "ranges"):
                yield from _subnets(each)


def _network(word: str) -> Network | None:
    try:
        return ip_network(word.strip())
    except ValueError:
        return None
