"""What goes wrong in a pod, as data. Each fault can be made, healed and told from health.

`break_it` makes it. `undo` puts right only what no program in the pod could or should put right: the world outside, an
address that a container runtime gave. `healed` says that all is well again: traffic flows through the tunnel and, as
far as the fault allows, the state is the one from before; the leak suite heals by running `init_wg up`, the
watchdog's tests by waiting. `spares` names probes that this fault lets out by its nature, with the reason beside it:
nobody can hold these without something that reacts.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from . import reaper
from .lab import INSIDE, LabError, wait_until

if TYPE_CHECKING:
    from .lab import Family, Lab

Act = Callable[["Lab"], None]

# Frames that a program with CAP_NET_RAW builds itself meet no output hook: only the egress gate on their link.
# An answer to such a frame meets no socket: the pod's kernel says so to its sender, as to any stranger.
FRAMES = frozenset({"packet-udp", "packet-bypass-udp", "packet-mark-udp", "packet-stamp-udp", "icmp-error"})
# The egress gate knows what the deciding table has let pass by a mark, which a program with CAP_NET_RAW may guess.
FORGED = frozenset({"stamp-udp", "stamp-tcp", "stamp-device-udp"})
RA_PREFIX = "fd99::"


def nothing(lab: Lab) -> None:
    """No part of the world needs to be put right."""


# Without the ports of sockets that were open when the rules were first loaded.
STATE = """
nft --stateless list table inet init_wg | sed '/set older {/,/^\t}/d'
nft --stateless list table netdev init_wg
for family in -4 -6; do ip $family rule; ip $family route show table 51820; done
ip -oneline link show wg0 | grep -o '[<,]UP[,>]\\|mtu [0-9]*'
ip -brief address show wg0 scope global  # the kernel makes a link-local one, another one each time
for what in peers endpoints allowed-ips fwmark; do wg show wg0 $what; done
"""


def state_of(lab: Lab) -> str:
    """What a set-up pod has beside its uplink, as text to compare: asked of the kernel's own tools, not of init_wg."""
    return lab.pod.run(["sh", "-c", f"{{ {STATE}}} 2>&1"], check=False).stdout


@dataclass(frozen=True)
class Fault:
    name: str
    break_it: Act
    undo: Act = nothing
    same_state: bool = True  # False: the pod around the tunnel has changed, and so must what is made for it
    spares: frozenset[str] = frozenset()
    needs: Literal["", "userspace", "ipv6"] = ""

    def __str__(self) -> str:
        return self.name

    def healed(self, lab: Lab, before: str) -> bool:
        """Is all well again? `before` is the state_of() the lab when it was well."""
        return (not self.same_state or state_of(lab) == before) and lab.flows(timeout=0.5)

    def possible(self, lab: Lab) -> bool:
        """Does this lab have what the fault breaks?"""
        if self.needs == "userspace":
            return bool(wireguard_daemons(lab))
        return self.needs != "ipv6" or lab.pod_ipv6


# --- helpers ---------------------------------------------------------------------------------------------------------


def ip(*words: str, family: Family | None = None) -> Act:
    """`ip` in the pod."""
    argv = ["ip", *([f"-{family}"] if family else []), *words]
    return lambda lab: void(lab.pod.run(argv))


def both(*words: str) -> Act:
    """`ip` in the pod, for each family that it has. Says nothing when there is nothing to do."""

    def act(lab: Lab) -> None:
        for family in lab.families:
            lab.pod.run(["ip", f"-{family}", *words], check=False)

    return act


def chain(*acts: Act) -> Act:
    def act(lab: Lab) -> None:
        for one in acts:
            one(lab)

    return act


def void(_: object) -> None:
    pass


def nft(text: str) -> Act:
    return lambda lab: void(lab.pod.run(["nft", "-f", "-"], stdin=text))


def tables(lab: Lab, name: str = "init_wg") -> list[tuple[str, str]]:
    """The kill-switch's tables in the pod: family and name."""
    listed = [line.split()[1:3] for line in lab.pod.run(["nft", "list", "tables"]).stdout.splitlines()]
    return [(family, table) for family, table in listed if table == name]


def rules_of(lab: Lab, hook: str) -> list[tuple[str, str, int]]:
    """The rules of the kill-switch's filter chain on this hook: family, chain, handle."""
    found: list[tuple[str, str, int]] = []
    for family, table in tables(lab):
        entries = json.loads(lab.pod.run(["nft", "-j", "list", "table", family, table]).stdout)["nftables"]
        chains = [e["chain"]["name"] for e in entries if "chain" in e and e["chain"].get("hook") == hook]
        chains = [
            name
            for name in chains
            for e in entries
            if e.get("chain", {}).get("name") == name and e["chain"]["type"] == "filter"
        ]
        found += [
            (family, e["rule"]["chain"], e["rule"]["handle"])
            for e in entries
            if e.get("rule", {}).get("chain") in chains
        ]
    return found


def delete_rule(hook: str, which: int) -> Act:
    def act(lab: Lab) -> None:
        family, chain_name, handle = rules_of(lab, hook)[which]
        lab.pod.run(["nft", "delete", "rule", family, "init_wg", chain_name, "handle", str(handle)])

    return act


def accept_policy(lab: Lab) -> None:
    """Every base chain that decides about what goes out now accepts by policy."""
    for family, table in tables(lab):
        entries = json.loads(lab.pod.run(["nft", "-j", "list", "table", family, table]).stdout)["nftables"]
        for entry in entries:
            if entry.get("chain", {}).get("hook") == "output" and family == "inet":
                lab.pod.run(["nft", f"chain inet {table} {entry['chain']['name']} {{ policy accept; }}"])


def accept_everything(lab: Lab) -> None:
    """Another table that accepts all, before, between and after the kill-switch."""
    chains = "".join(
        f"chain {hook}_{number} {{ type filter hook {hook} priority {priority}; policy accept; accept; }}\n"
        for hook in ("input", "output", "postrouting", "forward")
        for number, priority in enumerate((-500, -151, -1, 1, 500))
    )
    nft(f"table inet foreign {{\n{chains}}}\n")(lab)


def wireguard_daemons(lab: Lab) -> list[int]:
    """wireguard-go's processes in the pod."""
    pids = reaper.inhabitants({(reaper.NETNS / lab.pod.netns).stat().st_ino})
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().strip() == "wireguard-go":
                found.append(pid)
    return found


def kill_daemon(lab: Lab) -> None:
    for pid in wireguard_daemons(lab):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not wireguard_daemons(lab), "wireguard-go's end")


def rekey(lab: Lab) -> None:
    """The provider has another key from now on, as after a reinstallation."""
    other = lab.folder / "other.key"
    other.touch(mode=0o600)
    other.write_bytes(subprocess.run(["wg", "genkey"], capture_output=True, check=True).stdout)
    lab.provider.run(["wg", "set", "wg0", "private-key", other])
    lab.provider.admit()


def rekey_back(lab: Lab) -> None:
    lab.provider.run(["wg", "set", "wg0", "private-key", lab.provider.secret])
    lab.provider.admit()


def default_again(lab: Lab) -> None:
    """The main table loses its default route and gets it back, as when an uplink's lease is renewed."""
    for family in lab.families:
        lab.pod.run(["ip", f"-{family}", "route", "del", "default", "dev", "eth0"])
        lab.pod.run(["ip", f"-{family}", "route", "add", "default", "via", lab.gateway(family), "dev", "eth0"])


def routes(word: Literal["add", "del"], *kinds: Literal["halves", "host"]) -> Act:
    """Routes in the main table that are better than any default, through the gateway and past the tunnel."""

    def act(lab: Lab) -> None:
        halves: dict[Family, tuple[str, ...]] = {4: ("0.0.0.0/1", "128.0.0.0/1"), 6: ("::/1", "8000::/1")}
        for family in lab.families:
            to = [
                *(halves[family] if "halves" in kinds else ()),
                *([lab.web.addresses[family]] if "host" in kinds else []),
            ]
            for destination in to:
                via = ["via", lab.gateway(family), "dev", "eth0"]
                lab.pod.run(["ip", f"-{family}", "route", word, destination, *via], check=word == "add")

    return act


def other_address(lab: Lab) -> None:
    """The uplink gets another address of its network, and loses the first one."""
    # In this order: a second address of the same network would go with the first.
    lab.pod.run(["ip", "address", "flush", "dev", "eth0", "to", lab.pod.addresses[4]])
    lab.pod.run(["ip", "address", "add", "10.42.1.77/24", "dev", "eth0"])
    lab.pod.run(["ip", "route", "replace", "default", "via", lab.gateway(4), "dev", "eth0"])
    if lab.pod_ipv6:
        lab.pod.run(["ip", "address", "add", "fd42:1::77/64", "dev", "eth0", "nodad"])
        lab.pod.run(["ip", "-6", "address", "flush", "dev", "eth0", "to", lab.pod.addresses[6]])
        lab.pod.run(["ip", "-6", "route", "replace", "default", "via", lab.gateway(6), "dev", "eth0"])


def bounce_uplink(lab: Lab) -> None:
    """Down and up again: the kernel forgets the uplink's routes, and its IPv6 addresses too."""
    lab.pod.run(["ip", "link", "set", "eth0", "down"])
    lab.pod.run(["ip", "link", "set", "eth0", "up"])


def advertise(lab: Lab) -> None:
    """The node advertises itself as a router of high preference, with a prefix to make addresses of."""
    mac = lab.node.link_address("pod0")
    high_preference = 0x08
    head = struct.pack("!BBHBBHII", 134, 0, 0, 64, high_preference, 1800, 0, 0)
    on_link_autonomous = 0xC0
    prefix = struct.pack("!BBBBIII", 3, 4, 64, on_link_autonomous, 3600, 3600, 0) + ip_address(RA_PREFIX).packed
    with lab.node.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as router:
        with lab.node.inside():
            index = socket.if_nametoindex("pod0")
        router.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        router.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        router.bind(("fe80::1", 0, 0, index))
        for _ in range(3):
            router.sendto(head + struct.pack("!BB", 1, 1) + mac + prefix, ("ff02::1", 0, 0, index))

    def configured() -> bool:
        return RA_PREFIX in lab.pod.run(["ip", "-6", "address", "show", "dev", "eth0"]).stdout

    # A set-up pod that had no advertisements before drops them; any other makes an address of the prefix.
    with contextlib.suppress(LabError):
        wait_until(configured, "an address made of the advertised prefix", timeout=0.5)


def forget_router(lab: Lab) -> None:
    lab.pod.run(["ip", "-6", "route", "flush", "proto", "ra"], check=False)
    lab.pod.run(["ip", "-6", "address", "flush", "dev", "eth0", "to", f"{RA_PREFIX}/64"], check=False)


def rename(lab: Lab) -> None:
    lab.pod.run(["ip", "link", "set", "wg0", "down"])
    lab.pod.run(["ip", "link", "set", "wg0", "name", "stolen0"])
    lab.pod.run(["ip", "link", "set", "stolen0", "up"])


def replace_by_bridge(lab: Lab) -> None:
    """Something that is no tunnel, but is called wg0, has its addresses and answers.

    In one go, and no matter what of it fails: a watchdog may have it away before it is complete.
    """
    lines = ["link delete wg0", "link add wg0 type bridge", "link set wg0 up"]
    for family in lab.families:
        everything = {4: "0.0.0.0/0", 6: "::/0"}[family]
        lines += [f"address add {INSIDE[family]} dev wg0", f"route replace {everything} dev wg0 table 51820"]
    lab.pod.run(["ip", "-force", "-batch", "-"], stdin="\n".join(lines) + "\n", check=False)


def run_again(lab: Lab) -> None:
    lab.init_wg("up")


def flush_rules(lab: Lab) -> None:
    """Our rules are gone; the kernel's own are as they always were."""
    for family in lab.families:
        lab.pod.run(["ip", f"-{family}", "rule", "flush"])
        lab.pod.run(["ip", f"-{family}", "rule", "add", "pref", "32766", "lookup", "main"])


def delete_one_rule(lab: Lab) -> None:
    """The one rule that leads into the tunnel."""
    both("rule", "delete", "table", "51820")(lab)


def on(family: str, text: str) -> Act:
    """An nft command, if the kill-switch has a table of this family."""

    def act(lab: Lab) -> None:
        if (family, "init_wg") in tables(lab):
            nft(text)(lab)

    return act


# --- the catalogue ---------------------------------------------------------------------------------------------------

FAULTS: tuple[Fault, ...] = (
    # The interface.
    Fault("wg0-deleted", ip("link", "delete", "wg0")),
    Fault("wg0-down", ip("link", "set", "wg0", "down")),
    Fault("wg0-addresses-flushed", ip("address", "flush", "dev", "wg0")),
    Fault("wg0-renamed", rename, undo=lambda lab: void(lab.pod.ok(["ip", "link", "delete", "stolen0"]))),
    Fault("wg0-replaced-by-a-bridge", replace_by_bridge),
    Fault("wireguard-go-killed", kill_daemon, needs="userspace"),
    # Rules and routes.
    Fault("rules-flushed", flush_rules),
    Fault("rule-deleted", delete_one_rule),
    Fault(
        "rogue-rule",
        both("rule", "add", "pref", "10", "lookup", "main"),
        undo=both("rule", "delete", "pref", "10"),
    ),
    Fault("table-51820-flushed", both("route", "flush", "table", "51820")),
    Fault("default-route-again", default_again),
    Fault("routes-0/1-and-128/1", routes("add", "halves"), undo=routes("del", "halves")),
    Fault("route-to-the-web-host", routes("add", "host"), undo=routes("del", "host")),
    # The kill-switch. Its two tables cover for each other.
    Fault("killswitch-deleted", nft("delete table inet init_wg\n"), spares=FORGED),
    Fault("killswitch-flushed", nft("flush table inet init_wg\n")),
    Fault("killswitch-first-rule-deleted", delete_rule("output", 0)),
    Fault("killswitch-last-rule-deleted", delete_rule("output", -1)),
    Fault("killswitch-policy-accept", accept_policy),
    # Whoever may do this has NET_ADMIN; what then still holds frames is nothing that could be made of rules.
    Fault("gate-deleted", on("netdev", "delete table netdev init_wg\n"), spares=FRAMES),
    Fault(
        "foreign-table-accepts-all",
        accept_everything,
        undo=lambda lab: void(lab.pod.ok(["nft", "delete", "table", "inet", "foreign"])),
    ),
    # The peer.
    Fault("peer-silent", lambda lab: lab.provider.silence(), undo=lambda lab: lab.provider.speak()),
    Fault("peer-with-another-key", rekey, undo=rekey_back),
    Fault(
        "peer-removed", lambda lab: void(lab.pod.run(["wg", "set", "wg0", "peer", lab.provider.public_key, "remove"]))
    ),
    # WireGuard's own packets lose their mark: they would go into the tunnel that they are.
    Fault("fwmark-removed", lambda lab: void(lab.pod.run(["wg", "set", "wg0", "fwmark", "0"]))),
    # The uplink.
    Fault("uplink-address-changed", other_address, undo=lambda lab: lab.restore_uplink(), same_state=False),
    Fault("uplink-bounced", bounce_uplink, undo=lambda lab: lab.restore_uplink()),
    Fault(
        "uplink-mtu-changed",
        ip("link", "set", "eth0", "mtu", "1400"),
        undo=lambda lab: void(lab.pod.run(["ip", "link", "set", "eth0", "mtu", str(lab.mtu)])),
        same_state=False,
    ),
    Fault("router-advertisement", advertise, undo=forget_router, same_state=False, needs="ipv6"),
    Fault(
        "second-uplink",
        lambda lab: lab.plug_second_uplink(),
        undo=lambda lab: lab.unplug_second_uplink(),
        same_state=False,
        # A gate is made for a link by its name: on a new link there is none before somebody reacts.
        spares=FRAMES,
    ),
    # No fault at all.
    Fault("up-again", run_again),
)

# Both tables at once: then only routing is left. It must hold whatever goes where the routes lead.
FLUSHED_RULESET = Fault("ruleset-flushed", nft("flush ruleset\n"))
