"""The set-ups that are compared: how each is brought up in a lab's pod from the same WireGuard file.

Each is what its own documentation says, as far as a network namespace can follow it:

    wg-quick          nothing else
    man page          wg-quick(8), the "kill-switch" of its examples, with the line for IPv6 that it mentions
    linuxserver       docker-wireguard's README at 0101801b, "Maintaining local access to attached services"
    blog              jmartins.dev/posts/wireguard-docker-killswitch: the rule with the mark 0xca6c, loaded before
                      wg-quick, for both families
    gluetun           its own binary, if GLUETUN names one
    init-wg           `init-wg up`, then the watchdog
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.lab.lab import HTTP, POD_NETWORKS, QUICK_USERSPACE, SERVICE_NETWORKS, Lab, LabError, wait_until

HEALTH_PORT = 9999
#: What leaves neither by the tunnel nor with this mark, and goes to somebody else, is refused.
RULE = "OUTPUT ! -o {interface} -m mark ! --mark {mark} -m addrtype ! --dst-type LOCAL -j REJECT"
PRIVATE = ("192.168.0.0/16", "10.0.0.0/8", "172.16.0.0/12")


class Setup(NamedTuple):
    """begin: bring it up from a file; raises LabError if it says that it failed. resident: it has a process that
    watches. health: what its health check says, "" for well; None: it has none. several: it takes several servers."""

    name: str
    begin: Callable[[Lab, Path], None]
    resident: bool = False
    health: Callable[[Lab], str] | None = None
    several: bool = False


def wg_quick(*post_up: str, before: tuple[str, ...] = ()) -> Callable[[Lab, Path], None]:
    """wg-quick, with these PostUp lines in the file, after these commands."""

    def begin(lab: Lab, file: Path) -> None:
        lines = "".join(f"PostUp = {line}\n" for line in post_up)
        quick = lab.folder / "compared" / "wg0.conf"
        quick.parent.mkdir(exist_ok=True)
        quick.touch(mode=0o600)
        quick.write_text(file.read_text().replace("[Interface]\n", f"[Interface]\n{lines}", 1))
        for command in before:
            lab.pod.run(["sh", "-ec", command])
        env = {} if lab.kernel_wireguard else QUICK_USERSPACE
        lab.pod.run(["wg-quick", "up", quick], env=env)

    return begin


def refusal(how: str, mark: str, interface: str = "%i", tools: tuple[str, ...] = ("iptables", "ip6tables")) -> str:
    """The rule of the man page for these families. how: -I or -A."""
    return " && ".join(f"{tool} {how} {RULE.format(interface=interface, mark=mark)}" for tool in tools)


OWN_MARK = "$(wg show %i fwmark)"
LINUXSERVER = "; ".join(
    [
        "gateway=$(ip route | awk '/^default/ {print $3}')",
        *(f"ip route add {network} via $gateway" for network in reversed(PRIVATE)),
        *(f"iptables {'-A' if at else '-I'} OUTPUT -d {network} -j ACCEPT" for at, network in enumerate(PRIVATE)),
        refusal("-A", OWN_MARK, tools=("iptables",)),
    ]
)


def init_wg(lab: Lab, file: Path) -> None:
    """The init container, and the container that stays."""
    env = {"WG_CONFIG": str(file)}
    lab.init_wg("up", env=env)
    quiet = subprocess.DEVNULL
    lab.pod.popen([sys.executable, "-P", "-m", "watchdog"], env={**lab.pod_env, **env}, stdout=quiet, stderr=quiet)
    wait_until(lambda: says(lab) == "VPN is active", "the watchdog's content")


def says(lab: Lab) -> str:
    """At GET /, to the node."""
    return lab.request(lab.node, lab.pod.addresses[4], HEALTH_PORT) or ""


def init_wg_health(lab: Lab) -> str:
    answer = says(lab)
    return "" if answer == "VPN is active" else answer


def gluetun(binary: str) -> Callable[[Lab, Path], None]:
    """With the same keys, addresses and networks outside of the tunnel."""

    def begin(lab: Lab, file: Path) -> None:
        words = dict(re.findall(r"^(\w+) = (.*)$", file.read_text(), re.MULTILINE))
        host, _, port = words["Endpoint"].rpartition(":")
        folder = lab.folder / "gluetun"
        folder.mkdir(exist_ok=True)
        env = {
            "VPN_SERVICE_PROVIDER": "custom",
            "VPN_TYPE": "wireguard",
            "WIREGUARD_IMPLEMENTATION": "auto" if lab.kernel_wireguard else "userspace",
            "WIREGUARD_ENDPOINT_IP": host,
            "WIREGUARD_ENDPOINT_PORT": port,
            "WIREGUARD_PUBLIC_KEY": words["PublicKey"],
            "WIREGUARD_PRIVATE_KEY": words["PrivateKey"],
            "WIREGUARD_ADDRESSES": words["Address"],
            "FIREWALL_OUTBOUND_SUBNETS": ",".join(map(str, (*POD_NETWORKS, *SERVICE_NETWORKS))),
            "HEALTH_SERVER_ADDRESS": f":{HEALTH_PORT}",
            "HEALTH_TARGET_ADDRESS": f"{lab.web.addresses[4]}:{HTTP}",
            "STORAGE_FILEPATH": str(folder / "servers.json"),
            "PUBLICIP_FILE": str(folder / "ip"),
            "PUBLICIP_ENABLED": "off",
            "VERSION_INFORMATION": "off",
            "DOT": "off",
            "DNS_KEEP_NAMESERVER": "on",
            "HTTP_CONTROL_SERVER_LOG": "off",
        }
        with (folder / "log").open("wb") as log:
            process = lab.pod.popen([binary], env=env, stdout=log, stderr=log)
        wait_until(lambda: process.poll() is not None or lab.traffic_source(4, 0.2), "gluetun's tunnel, or its end", 60)
        if process.poll() is not None:
            raise LabError(f"gluetun ended: {(folder / 'log').read_text()[-500:]}")

    return begin


def gluetun_health(lab: Lab) -> str:
    """Its server answers 200 or 500."""
    answer = lab.pod.run(
        ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"http://127.0.0.1:{HEALTH_PORT}/"], check=False
    )
    return "" if answer.stdout == "200" else f"status {answer.stdout}"


SETUPS = (
    Setup("init-wg", init_wg, resident=True, health=init_wg_health, several=True),
    Setup("wg-quick", wg_quick()),
    Setup("man page", wg_quick(refusal("-I", OWN_MARK))),
    Setup("linuxserver", wg_quick(LINUXSERVER)),
    Setup("blog", wg_quick(refusal("-I", OWN_MARK), before=(refusal("-I", "0xca6c", "wg0"),))),
)


def chosen() -> tuple[Setup, ...]:
    """All that can be had here."""
    binary = os.environ.get("GLUETUN")
    if not binary:
        return SETUPS
    return (*SETUPS, Setup("gluetun", gluetun(binary), resident=True, health=gluetun_health))
