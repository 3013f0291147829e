"""Kernels that lack what init_wg needs: it says so, in a guest whose modules were left out."""

import sys

import pytest

from tests.kernel import guest

BARE = """
set -e
ip link set lo up
ip link add eth0 type veth peer name node0
ip link set node0 up
ip link set eth0 up
ip address add 192.0.2.10/24 dev eth0
ip route add default via 192.0.2.1
umask 077
cat >/run/wg0.conf <<END
[Interface]
PrivateKey = $(wg genkey)
Address = 10.64.0.2/32
[Peer]
PublicKey = $(wg genkey | wg pubkey)
AllowedIPs = 0.0.0.0/0
Endpoint = 192.0.2.1:51820
END
set +e
export WG_CONFIG=/run/wg0.conf
"""


def in_a_guest_without(monkeypatch: pytest.MonkeyPatch, absent: str, *commands: str) -> list[list[str]]:
    """What each command says in a prepared pod: its lines, and "exit ..." as the last one."""
    monkeypatch.setattr(
        guest, "MODULES", [name for name in guest.MODULES if not name.startswith(tuple(absent.split()))]
    )
    script = BARE + "".join(f"{command} 2>&1; echo exit $?\n" for command in commands)
    result = guest.run(["unshare", "--net", "sh", "-c", script], timeout=180)
    assert result.status == 0, result.output
    said: list[list[str]] = [[]]
    for line in result.output.splitlines():
        said[-1].append(line)
        if line.startswith("exit "):
            said.append([])
    return said[:-1]


def test_without_nf_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    up, made = in_a_guest_without(monkeypatch, "nf nft xt", f"{sys.executable} -m init_wg up", "ip link show wg0")
    assert "the kernel has no nf_tables" in up[-2]
    assert "load the node's nf_tables module" in up[-2]
    assert up[-1] == "exit 3"
    assert made[-1] == "exit 1", "not sealed, and yet a tunnel"


def test_with_neither_wireguard_nor_tun(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, kernel, left = in_a_guest_without(
        monkeypatch,
        "wireguard tun",
        f"{sys.executable} -m init_wg up",
        f"WG_IMPLEMENTATION=kernel {sys.executable} -m init_wg up",
        "nft list table inet init_wg",
    )
    assert chosen[-2].startswith("init-wg: error: neither kernel WireGuard nor /dev/net/tun is here")
    assert chosen[-1] == "exit 3"
    assert kernel[-2].startswith("init-wg: error: the kernel has no WireGuard: load the node's wireguard module")
    assert kernel[-1] == "exit 3"
    assert any("hook output priority filter; policy drop;" in line for line in left), "sealed it stays"
