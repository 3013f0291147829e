"""A state of the kill-switch -> its text. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from init_wg.design.firewall import killswitch
from init_wg.design.firewall.policy import Opened, Resolving, Sealed

if TYPE_CHECKING:
    from init_wg.design.firewall.policy import Hole, Policy


def text(policy: Policy) -> str:
    """The whole ruleset, as nft prints it."""
    match policy:
        case Resolving(otherwise, hole):
            return _text(otherwise, hole)
        case _:
            return _text(policy, None)


def _text(state: Sealed | Opened, hole: Hole | None) -> str:
    match state:
        case Sealed(gate):
            return killswitch.sealed(gate.links, hole, routed=gate.routed) if gate else killswitch.sealed((), hole)
        case Opened():
            return killswitch.opened(state, hole)
