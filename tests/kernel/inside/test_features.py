"""What the other tests in here stand on: the guest's kernel does all that init_wg may ask of one."""

import errno
import socket
import sys
from pathlib import Path

import pytest
from pyroute2 import IPRoute, WireGuard

from tests.kernel.inside.shell import sh

RULES = """
table inet gate {
    counter refused { }
    chain replies {
        type route hook output priority mangle
        ct direction reply ct original ip daddr 192.0.2.1 meta mark set 7
        ct direction reply ct original ip6 daddr 2001:db8::1 meta mark set 7
    }
    chain names {
        type nat hook output priority -90
        udp dport 53 redirect to :5353
        ip daddr 198.51.100.1 udp dport 54 dnat ip to 127.0.0.1:5353
    }
    chain source {
        type nat hook postrouting priority srcnat
        oifname "elsewhere" masquerade
    }
    chain output {
        type filter hook output priority filter; policy drop
        oifname "lo" accept
        ip daddr 127.0.0.0/8 accept  # after dnat this chain still sees the device from before
        ct direction reply oifname "cable" accept
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
        udp dport 9 meta mark set 9 accept
        counter name refused meta l4proto tcp reject with tcp reset
        limit rate 5/second log prefix "refused " group 1
        reject with icmpx admin-prohibited
    }
    chain input {
        type filter hook input priority filter; policy accept
        ct state established,related accept
        fib daddr type local accept
    }
}
table netdev gate {
    counter raw { }
    chain egress {
        type filter hook egress device "cable" priority filter; policy drop
        meta mark { 7, 9 } accept
        meta protocol arp accept
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
        ether type 0x88b5 counter name raw
    }
}
"""


def python(code: str, namespace: str) -> str:
    """What a small program prints, in a namespace."""
    return sh(f"{sys.executable} - <<'END'\nimport socket\n{code}\nEND", namespace)


def test_ip_makes_a_kernel_wireguard_interface() -> None:
    sh("ip link add wg9 type wireguard")
    try:
        assert "wireguard" in sh("ip -details link show wg9")
        assert sh("wg show interfaces").split() == ["wg9"]
        assert Path("/sys/module/wireguard").exists()
    finally:
        sh("ip link delete wg9")


def test_pyroute2_makes_and_reads_a_kernel_wireguard_interface() -> None:
    with IPRoute() as ip, WireGuard() as wireguard:
        ip.link("add", ifname="wg9", kind="wireguard")
        try:
            wireguard.set("wg9", listen_port=51820, fwmark=51820)
            (info,) = wireguard.info("wg9")
            assert (info.get("WGDEVICE_A_LISTEN_PORT"), info.get("WGDEVICE_A_FWMARK")) == (51820, 51820)
        finally:
            ip.link("del", ifname="wg9")


@pytest.mark.parametrize(
    "make",
    ["link add name x9 type dummy", "link add name x9 type bridge", "tuntap add name x9 mode tun"],
    ids=["dummy", "bridge", "tun"],
)
def test_ip_makes_other_interfaces(make: str) -> None:
    sh(f"ip {make}; ip link set x9 up; ip link show x9; ip link delete x9")


def test_nft_loads_the_rules_and_reads_them_back(pair: tuple[str, str]) -> None:
    sh(f"nft -f - <<'END'\n{RULES}\nEND", "left")
    rules = sh("nft --stateless list ruleset", "left")
    for spelling in (
        "ct direction reply",
        "reject with icmpx admin-prohibited",
        "redirect to :5353",
        "dnat ip to 127.0.0.1:5353",
        'oifname "elsewhere" masquerade',
        'type filter hook egress device "cable"',
    ):
        assert spelling in rules


def test_nft_rules_do_what_they_say(pair: tuple[str, str]) -> None:
    sh(f"nft -f - <<'END'\n{RULES}\nEND", "left")

    # Refused at once, and by name: a reset for TCP, "prohibited" for the rest.
    connect = "s = socket.socket({family}, {kind}); s.settimeout(5); print(s.connect_ex(('{host}', 80)))"
    for family, host in (("socket.AF_INET", "192.0.2.2"), ("socket.AF_INET6", "2001:db8::2")):
        refused = python(connect.format(family=family, kind="socket.SOCK_STREAM", host=host), "left")
        assert int(refused) == errno.ECONNREFUSED
    assert "packets 0" not in sh("nft list counter inet gate refused", "left")
    assert "Packet filtered" in sh("ping -c1 -W1 192.0.2.2 2>&1 || true", "left")

    # Replies leave, on connections that came in.
    assert "1 received" in sh("ping -c1 -W5 192.0.2.1", "right")
    assert "1 received" in sh("ping -c1 -W5 2001:db8::1", "right")

    # Names asked of anybody are asked here.
    sh("ip route add 198.51.100.0/24 via 192.0.2.2", "left")
    received = python(
        """
here = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
here.bind(("127.0.0.1", 5353))
here.settimeout(5)
for host, port in (("127.0.0.9", 53), ("198.51.100.1", 54)):
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(str(port).encode(), (host, port))
    print(here.recv(9).decode())
""",
        "left",
    )
    assert received.split() == ["53", "54"]

    # A frame that meets no output hook meets the egress gate, and its sender is told.
    sent = python(
        """
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
raw.bind(("cable", 0))
try:
    print(raw.send(bytes(12) + bytes.fromhex("88b5") + bytes(46)))
except OSError as error:
    print(error.errno)
""",
        "left",
    )
    assert int(sent) == errno.ENOBUFS
    assert "packets 1 " in sh("nft list counter netdev gate raw", "left")


def test_the_machine_around_the_command() -> None:
    assert socket.gethostname() == "guest"
    assert abs(Path("/proc/self").stat().st_mtime - Path("/run/guest/command").stat().st_mtime) < 3600
    assert Path("/var/run").resolve() == Path("/run")
    assert Path("/dev/net/tun").is_char_device()
    assert Path("/sys/fs/cgroup/cgroup.controllers").exists()
    assert sh("bash -c 'cat <(echo a file that is a pipe)' | tee /dev/stderr") == "a file that is a pipe\n"
    assert sh("unshare --user --map-root-user id -u") == "0\n"
    assert sh("ping -c1 -W5 127.0.0.1; ping -c1 -W5 ::1").count("1 received") == 2
