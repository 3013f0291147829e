"""Seal the pod: the first effect of the first process.

Runs before anything heavy is imported, so it asks the kernel's nfnetlink itself with three small messages
and starts one program, nft. A ruleset of ours that is already in place is never touched: an existing
tunnel is not interrupted, and whatever is wrong with it is for the reconciliation to find.
"""

from __future__ import annotations

import _socket  # not `socket`, whose import costs more than everything here
import errno
import os
from struct import pack, unpack_from

from init_wg import killswitch, nft
from init_wg.errors import ConfigError, KernelError

_NETFILTER, _NF_TABLES = 12, 10
_GET_TABLE, _GET_CHAIN = 1, 4
_INET = 1  # NFPROTO_INET
_ERROR, _DONE = 2, 3
# Interfaces that a container engine or a network plugin makes on the node, and nobody makes in a pod.
_NODE_INTERFACES = ("docker0", "cni0", "cbr0", "podman0", "kube-bridge", "kube-ipvs0", "kube-dummy-if", "cilium_host",
                    "cilium_net", "flannel.1", "flannel-wg", "antrea-gw0", "ovn-k8s-mp0", "vxlan.calico", "weave",
                    "nodelocaldns", "lxcbr0", "virbr0")  # fmt: skip
_NODE_PREFIXES = ("cali", "br-")


def seal() -> bool:
    """Load the lockdown unless our kill-switch is there. Returns whether it was loaded.

    Raises KernelError (no NET_ADMIN, no nf_tables, no nft) and ConfigError (this is the node's own network).
    """
    if in_place():
        return False
    refuse_node()
    if os.environ.get("ENABLE_KILL_SWITCH", "true").strip().lower() in ("false", "no", "off", "0"):
        return False
    links = [name for _, name in _socket.if_nameindex() if name not in ("lo", _tunnel())]
    links.sort()
    try:
        nft.load(killswitch.creation(killswitch.sealed(links)))
    except KernelError:
        if in_place():  # by another of us, meanwhile
            return False
        reseal(links)
    return True


def reseal(links: list[str]) -> None:
    """Put the lockdown in place of whatever is there, with the best gate that loads. Raises KernelError.

    No egress hook before Linux 5.16, no realms where they are not compiled in, a link that went away meanwhile:
    then the boundary first, alone.
    """
    for watched, routed in ((links, True), (links, False)):
        try:
            return nft.load(killswitch.replacement(killswitch.sealed(watched, routed=routed)))
        except KernelError:
            continue
    return nft.load(killswitch.replacement(killswitch.sealed(())))


def in_place() -> bool:
    """Is our kill-switch there, and does it drop what it does not know? Raises KernelError without NET_ADMIN or
    without nf_tables.

    A table of our name that is empty, dormant or accepts by policy is no kill-switch: it is put right at once.
    """
    table, chain = _name(1, killswitch.NAME), _name(3, "output")  # NFTA_..._TABLE, NFTA_CHAIN_NAME
    try:
        dormant = pack("=HH", 8, 2) + pack(">I", 1) in _ask(_GET_TABLE, _INET, 0, table)  # NFTA_TABLE_FLAGS
        drops = pack("=HH", 8, 5) + pack(">I", 0) in _ask(_GET_CHAIN, _INET, 0, table + chain)  # NFTA_CHAIN_POLICY
    except OSError as error:
        if error.errno == errno.ENOENT:
            return False
        if error.errno in (errno.EPERM, errno.EACCES):
            raise KernelError(
                "permission denied: the container needs the capability NET_ADMIN and the user root "
                "(securityContext: runAsUser: 0, capabilities: add: [NET_ADMIN]); nothing was changed"
            ) from None
        raise KernelError(
            f"the kernel has no nf_tables ({os.strerror(error.errno or 0)}): load the node's nf_tables module"
        ) from None
    return drops and not dormant


def _name(kind: int, text: str) -> bytes:
    """A netlink attribute that is a string."""
    value = text.encode() + b"\0"
    return pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def refuse_node() -> None:
    """Sealing the node itself would cut off every pod on it. Raises ConfigError when this is its network.

    Some sysctls exist in the first network namespace only (net/core/sysctl_net_core.c: net_core_table);
    a node that is itself a container is known by what its network plugin and kube-proxy leave there.
    """
    sign = None
    if os.path.exists("/proc/sys/net/core/netdev_budget"):
        sign = "the machine's first network namespace"
    for _, name in _socket.if_nameindex():
        if name in _NODE_INTERFACES or name.startswith(_NODE_PREFIXES):
            sign = f"interface {name}"
    if sign is None and b"KUBE-" in _ask(_GET_CHAIN, 0, 0x300, b""):
        sign = "kube-proxy's KUBE- chains"
    if sign:
        raise ConfigError(
            f"this is the node's own network ({sign}), and sealing it would cut off the node: "
            "remove hostNetwork: true (or network_mode: host); nothing was changed"
        )


def _tunnel() -> str:
    return os.environ.get("WG_INTERFACE") or "wg0"


def _ask(message: int, family: int, flags: int, attributes: bytes) -> bytes:
    """One nf_tables question over nfnetlink; everything it answers. Raises OSError."""
    body = pack("=BBH", family, 0, 0) + attributes
    header = pack("=IHHII", 16 + len(body), _NF_TABLES << 8 | message, flags | 0x5, 1, 0)  # NLM_F_REQUEST | NLM_F_ACK
    answer = b""
    kernel = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW, _NETFILTER)
    try:
        kernel.send(header + body)
        while True:
            data = kernel.recv(1 << 17)
            answer += data
            offset = 0
            while offset + 16 <= len(data):
                length, kind = unpack_from("=IH", data, offset)
                if kind in (_ERROR, _DONE):
                    code = -unpack_from("=i", data, offset + 16)[0]
                    if code:
                        raise OSError(code, os.strerror(code))
                    return answer
                offset += (length + 3) & ~3
    finally:
        kernel.close()
