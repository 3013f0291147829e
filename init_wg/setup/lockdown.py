"""Seal the pod: the first effect of the first process.

Runs before anything heavy is imported, so it asks the kernel itself whether it is sealed
and starts one program, nft. A ruleset of ours that is already in place is never touched: an existing
tunnel is not interrupted, and whatever is wrong with it is for the reconciliation to find.
"""

from __future__ import annotations

import _socket  # not `socket`, whose import costs more than everything here
import errno
import os

from init_wg.design.firewall import killswitch
from init_wg.errors import ConfigError, KernelError
from init_wg.kernel import nft, sealed

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
    """sealed.in_place. Raises KernelError without NET_ADMIN or without nf_tables.

    A table of our name that is empty, dormant or accepts everything is no kill-switch: it is put right at once.
    """
    try:
        return sealed.in_place()
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES):
            raise KernelError(
                "permission denied: the container needs the capability NET_ADMIN and the user root "
                "(securityContext: runAsUser: 0, capabilities: add: [NET_ADMIN]); nothing was changed"
            ) from None
        raise KernelError(
            f"the kernel has no nf_tables ({os.strerror(error.errno or 0)}): load the node's nf_tables module"
        ) from None


def refuse_node() -> None:
    """Sealing the node itself would cut off every pod on it. Raises ConfigError when this is its network."""
    if sign := sign_of_a_node():
        raise ConfigError(
            f"this is the node's own network ({sign}), and sealing it would cut off the node: "
            "remove hostNetwork: true (or network_mode: host); nothing was changed"
        )


def sign_of_a_node() -> str | None:
    """By what this network is known as a node's own, or a machine's; None for a pod's. Raises OSError.

    Some sysctls exist in the first network namespace only (net/core/sysctl_net_core.c: net_core_table);
    a node that is itself a container is known by what its network plugin and kube-proxy leave there.
    """
    sign = None
    if os.path.exists("/proc/sys/net/core/netdev_budget"):
        sign = "the machine's first network namespace"
    for _, name in _socket.if_nameindex():
        if name in _NODE_INTERFACES or name.startswith(_NODE_PREFIXES):
            sign = f"interface {name}"
    if sign is None and any(b"KUBE-" in chain for chain in sealed.ask(sealed.GET_CHAIN, 0, b"", sealed.DUMP)):
        sign = "kube-proxy's KUBE- chains"
    return sign


def _tunnel() -> str:
    return os.environ.get("WG_INTERFACE") or "wg0"
