"""`init-wg node ...`: observe, compare, load, observe again. It acts in the machine's own network, and on one table."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from init_wg import log
from init_wg.config import node_settings
from init_wg.errors import DONE, ConfigError, KernelError, VerifyError
from init_wg.kernel import conntrack, lock, netlink, nft, rtnetlink_read
from init_wg.model import networks
from init_wg.node.design import cni, facts, ruleset
from init_wg.setup import lockdown
from init_wg.setup.observe import resolv_conf

if TYPE_CHECKING:
    from init_wg.config.node_settings import NodeSettings
    from init_wg.model.networks import Network
    from init_wg.node.design.facts import Machine
    from init_wg.node.design.ruleset import Policy

USAGE = "node print|up|check|status [--json]|down"
LOCK_TIMEOUT = 30.0  # seconds
#: Where network plugins write; k3s has a place of its own.
_FLANNEL = "/run/flannel/subnet.env"
_CNI = ("/etc/cni/net.d", "/var/lib/rancher/k3s/agent/etc/cni/net.d")
_ARP_IGNORE = "/proc/sys/net/ipv4/conf/all/arp_ignore"


class Look(NamedTuple):
    """wanted, have: the table's text, "" where there is none."""

    machine: Machine
    policy: Policy
    wanted: str
    have: str
    notices: tuple[str, ...]


def run(words: list[str]) -> int:
    """One command. Raises InitWgError."""
    match words:
        case ["print"]:
            sys.stdout.write(look().wanted)
        case ["up"]:
            up()
        case ["check"]:
            return _check()
        case ["status"]:
            sys.stdout.write(as_text(status()))
        case ["status", "--json"]:
            from json import dumps

            sys.stdout.write(f"{dumps(status(), indent=2)}\n")
        case ["down"]:
            down()
        case _:
            raise ConfigError(f"usage: init-wg {USAGE}")
    return DONE


def up() -> None:
    """Load the table, if it is not there already. Raises InitWgError; what was there stays then."""
    _refuse_pod()
    with lock.acquire(LOCK_TIMEOUT):
        seen = look()
        if seen.have != seen.wanted:
            nft.load(ruleset.replacement(seen.wanted))
            if (found := nft.tables(nft.everything(), ruleset.NAME)) != seen.wanted:
                raise VerifyError(
                    f"loaded, but it reads back different: {_first_difference(seen.wanted, found)}; something else on "
                    f"this machine changes the table {ruleset.NAME}: find it"
                )
            told = ", ".join(map(str, seen.machine.pods)) or "none yet"
            log.info(f"pods may talk beside the VPN: {told}; ports for outsiders: {_ports(seen.policy)}")
    for notice in seen.notices:
        log.warning(notice)


def down() -> None:
    """Take the table away, and nothing else: the VPN's rules and the cluster's are theirs."""
    _refuse_pod()
    with lock.acquire(LOCK_TIMEOUT):
        nft.load(f"table inet {ruleset.NAME}\ndelete table inet {ruleset.NAME}\n")


def look() -> Look:
    """All that decides, read without changing anything. Raises InitWgError where it is refused."""
    settings = node_settings.read(os.environ)
    with netlink.Socket() as kernel:
        snapshot = rtnetlink_read.snapshot(kernel)
    rules = nft.everything()
    machine = facts.discover(snapshot, settings, rules, _written() if settings.pods is None else ())
    facts.refuse(machine, rules, resolv_conf().nameservers)
    policy = _policy(settings, machine)
    told = (*settings.notices, *facts.notices(machine, _read(_ARP_IGNORE), rules))
    return Look(machine, policy, ruleset.text(policy), nft.tables(rules, ruleset.NAME), told)


def _written() -> tuple[Network, ...]:
    """The pods' networks by the files of network plugins. The watchdog may run without root: some it cannot read."""
    files = [path for folder in _CNI for kind in ("*.conf", "*.conflist") for path in sorted(Path(folder).glob(kind))]
    return cni.networks(_text(Path(_FLANNEL)), map(_text, files))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _policy(settings: NodeSettings, machine: Machine) -> Policy:
    return ruleset.Policy(
        uplinks=machine.uplinks,
        machine=machine.addresses,
        pods=networks.spelled(map(networks.interval, machine.pods)),
        inbound=settings.inbound,
        peers=networks.spelled(map(networks.interval, settings.peers)),
        mark=machine.told.mark,
        tunnel=machine.told.tunnel,
    )


def _check() -> int:
    seen = look()
    for notice in (*seen.notices, *_foreign_marks()):
        print(f"note: {notice}")
    if seen.have == seen.wanted:
        print("everything is as it should be")
        return DONE
    print(f"table inet {ruleset.NAME}: {_first_difference(seen.wanted, seen.have)}")
    return VerifyError.exit_code


def _foreign_marks() -> tuple[str, ...]:
    """Counted here only: on a busy machine there are a hundred thousand connections."""
    known = (0, ruleset.LICENCE, ruleset.MASQUERADED)
    return facts.foreign({mark: count for mark, count in conntrack.marks().items() if mark not in known})


def status() -> dict[str, Any]:
    """Everything there is to know, as plain values."""
    seen = look()
    return {
        "mode": "node",
        "up": seen.have == seen.wanted,
        "vpn": seen.machine.vpn,
        "mark": f"0x{seen.machine.told.mark:08x}",
        "tunnel": seen.machine.told.tunnel,
        "uplinks": list(seen.machine.uplinks),
        "addresses": list(seen.machine.addresses),
        "pods": list(map(str, seen.machine.pods)),
        "inbound": [f"{each.protocol}/{port}" for each in seen.policy.inbound for port in each.ports],
        "peers": list(seen.policy.peers),
        "refused_packets": sum(nft.counters(ruleset.NAME).values()) if seen.have else 0,
        "notices": list(seen.notices),
        "drift": [] if seen.have == seen.wanted else [_first_difference(seen.wanted, seen.have)],
    }


def as_text(told: dict[str, Any]) -> str:
    """For a terminal."""
    lines = [
        f"table:       {'in place' if told['up'] else 'NOT IN PLACE'}, {told['refused_packets']} packets refused",
        f"VPN:         {told['vpn']} ({told['tunnel']}, mark {told['mark']})",
        f"uplinks:     {', '.join(told['uplinks']) or 'none'} ({', '.join(told['addresses']) or 'no address'})",
        f"pods:        {', '.join(told['pods']) or 'none'}",
        f"inbound:     {', '.join(told['inbound']) or 'nothing'}",
        *([f"peers:       {', '.join(told['peers'])}"] if told["peers"] else []),
        *(f"note:        {notice}" for notice in told["notices"]),
        *([f"drift:       {line}" for line in told["drift"]] or ["drift:       none"]),
    ]
    return "\n".join(lines) + "\n"


def _ports(policy: Policy) -> str:
    return ", ".join(f"{each.protocol}/{port}" for each in policy.inbound for port in each.ports) or "none"


def _first_difference(wanted: str, found: str) -> str:
    if not found:
        return "wanted, and absent"
    here, there = wanted.splitlines(), found.splitlines()
    for number in range(max(len(here), len(there))):
        mine, theirs = ("".join(lines[number : number + 1]).strip() for lines in (here, there))
        if mine != theirs:
            return f"wanted {mine or 'its end'!r}, found {theirs or 'its end'!r}"
    return ""


def _refuse_pod() -> None:
    """The reverse of what every other command refuses."""
    if not lockdown.sign_of_a_node():
        raise ConfigError(
            "this is not the machine's own network, and `init-wg node` acts nowhere else: run it on the machine, or "
            "with hostNetwork: true (network_mode: host); nothing was changed"
        )


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError as error:
        raise KernelError(f"{path}: {os.strerror(error.errno or 0)}: mount /proc") from None
