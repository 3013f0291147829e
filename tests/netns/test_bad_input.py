"""Every wrong input, for real: an exit code, one clear last line, and a pod that is sealed.

Before each case the pod is open. What `up` says goes to people who read the last line of a log: it names the thing
(and the line, where there is one), says what to do, and has no key in it. Afterwards the pod's own attempts are
refused at once, and the judge on the node sees nothing.

How a name that does not resolve ends is in test_endpoint_names.py.
"""

from __future__ import annotations

import base64
import ctypes
import errno
import os
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from init_wg.errors import ConfigError
from init_wg.setup.lockdown import refuse_node
from tests.lab.judge import Judge
from tests.lab.lab import AF, HTTP, PROJECT, Lab, kernel_wireguard

UP = (sys.executable, "-m", "init_wg", "up")
FIRST_NAMESPACE = Path("/proc/sys/net/core/netdev_budget")  # a setting that only the first network namespace has
WITHOUT_NET_ADMIN = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", "--")
WITHOUT_ANYTHING = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--")
WITHOUT_DAC = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all", "--")
WITHOUT_TUN = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /dev/net && exec "$@"', "sh")
WITHOUT_NFT = ("unshare", "--mount", "sh", "-c", 'mount --bind /dev/null "$(command -v nft)" && exec "$@"', "sh")
WITHOUT_NETFILTER = (sys.executable, "-c", "from tests.netns.test_bad_input import without_netfilter as main; main()")
ALL_ZERO = "A" * 43 + "="
KEYS = re.compile(r"[A-Za-z0-9+/]{42,}")


def without_netfilter() -> None:
    """Become the program in argv, and the kernel one without netfilter: socket(..., NETLINK_NETFILTER) is refused.

    By a seccomp filter; see seccomp(2) and linux/filter.h.
    """
    load, equal, end = 0x20, 0x15, 0x06
    number = {"x86_64": 41, "aarch64": 198}[os.uname().machine]
    refuse = 0x00050000 | errno.EPROTONOSUPPORT
    program = [(load, 0, 0, 0), (equal, 0, 5, number)]
    program += [(load, 0, 0, 16), (equal, 0, 3, socket.AF_NETLINK), (load, 0, 0, 32), (equal, 0, 1, 12)]
    program += [(end, 0, 0, refuse), (end, 0, 0, 0x7FFF0000)]
    packed = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in program))
    head = struct.pack("HxxxxxxP", len(program), ctypes.addressof(packed))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, head, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    os.execvp(sys.argv[1], sys.argv[1:])


# --- the pod ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def machines() -> Iterator[tuple[Lab, Judge]]:
    with Lab() as lab, Judge(lab) as judge:
        yield lab, judge


@pytest.fixture
def pod(machines: tuple[Lab, Judge]) -> Iterator[Lab]:
    """Open, with a right configuration."""
    lab, _ = machines
    lab.pod.run(["nft", "flush", "ruleset"])
    lab.config()
    yield lab
    if lab.pod.ok(["ip", "link", "show", "wg0"]):
        lab.init_wg("down")
    lab.pod.run(["nft", "flush", "ruleset"])
    for file in lab.config_path.parent.iterdir():
        file.unlink()


@pytest.fixture
def judge(machines: tuple[Lab, Judge]) -> Judge:
    return machines[1]


def one_clear_line(ended: subprocess.CompletedProcess[str], code: int, says: str) -> None:
    """The error is the last line, the only one of its kind, and without a secret."""
    lines = ended.stderr.splitlines()
    assert ended.returncode == code, ended.stderr
    assert re.search(says, lines[-1]), lines[-1]
    assert lines[-1].startswith("init-wg: error: "), lines[-1]
    assert ": " in lines[-1].removeprefix("init-wg: error: "), "what is wrong, and what to do"
    assert sum("error" in line for line in lines) == 1, ended.stderr
    assert "Traceback" not in ended.stderr + ended.stdout
    assert not KEYS.search(ended.stderr), ended.stderr


def refused_at_once(lab: Lab, judge: Judge) -> None:
    """TCP and UDP, both families: an error, not a wait; and nothing came out."""
    judge.mark()
    for family in lab.families:
        web = (lab.web.addresses[family], HTTP)
        with lab.pod.socket(AF[family], socket.SOCK_STREAM) as stream:
            stream.settimeout(5)
            started = time.monotonic()
            with pytest.raises((ConnectionRefusedError, PermissionError, OSError)) as refusal:
                stream.connect(web)
            assert not isinstance(refusal.value, TimeoutError)
            assert time.monotonic() - started < 1
        with lab.pod.socket(AF[family], socket.SOCK_DGRAM) as datagram, pytest.raises(OSError, match=r".+"):
            datagram.connect(web)
            datagram.send(b"anybody there?")
    verdict = judge.verdict()
    assert not verdict.leaked, str(verdict)


def tables(lab: Lab) -> str:
    return lab.pod.run(["nft", "list", "tables"]).stdout


def everything(lab: Lab) -> str:
    """What init_wg could have changed in a namespace."""
    commands = ("nft --stateless list ruleset", "ip -details link", "ip address", "ip rule", "ip -6 rule")
    more = ("ip route show table all", "ip -6 route show table all")
    return lab.pod.run(["sh", "-c", "; ".join([*commands, *more])]).stdout


# --- the file --------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """`spoil` gets the path of a right file. `says` must match the last line; "{}" in it is the file's path."""

    spoil: Callable[[Path], object]
    says: str
    code: int = 2


def text(data: str | bytes) -> Callable[[Path], object]:
    return lambda file: file.write_bytes(data.encode() if isinstance(data, str) else data)


def without(key: str) -> Callable[[Path], object]:
    """The right file, one line less."""

    def spoil(file: Path) -> None:
        lines = [line for line in file.read_text().splitlines() if not line.startswith(f"{key} =")]
        file.write_text("\n".join(lines) + "\n")

    return spoil


def line(key: str, value: str) -> Callable[[Path], object]:
    """The right file, with another value in one line."""

    def spoil(file: Path) -> None:
        new, count = re.subn(rf"(?m)^{key} = .*$", f"{key} = {value}", file.read_text())
        assert count == 1
        file.write_text(new)

    return spoil


def more(lines: str) -> Callable[[Path], object]:
    """The right file, and more at its end. "{}" is the key that is its peer's already."""

    def spoil(file: Path) -> None:
        found = re.search(r"PublicKey = (.*)", file.read_text())
        assert found
        file.write_text(file.read_text() + lines.replace("{}", found[1]))

    return spoil


def sparse(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.truncate(100 << 20)


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def own_public_key(file: Path) -> None:
    """As when the two keys of `wg genkey` and `wg pubkey` both went into the client's file."""
    private = re.search(r"PrivateKey = (.*)", file.read_text())
    assert private
    public = subprocess.run(["wg", "pubkey"], input=private[1], capture_output=True, text=True, check=True).stdout
    line("PublicKey", public.strip())(file)


ANOTHER_KEY = "4GgaQCy68nzNsUE5aJ9fuLzHhB65tAlwbmA72MWnOm8="
FILES: dict[str, Case] = {
    "no file": Case(lambda file: file.unlink(), r"{}: no such file"),
    "empty file": Case(text(""), r"{}: an empty file"),
    "only comments": Case(text("# one day\n\n"), r"{}: an empty file"),
    "HTML": Case(text("<!DOCTYPE html>\n<html><body>Please log in</body></html>\n"), r"{}:1: HTML"),
    "binary": Case(text(bytes(range(256)) * 8), r"{}:1: .*binary"),
    "not UTF-8": Case(text(b"[Interface]\n# \xff\xfe\n"), r"{}:2: not UTF-8"),
    "100 MB": Case(sparse, r"{}: larger than 64 KiB"),
    "no [Peer]": Case(lambda file: file.write_text(file.read_text().split("[Peer]")[0]), r"{}: no \[Peer\]"),
    "no PrivateKey": Case(without("PrivateKey"), r"{}:1: .*no PrivateKey"),
    "no Address, no .address file": Case(without("Address"), r"{}:1: .*no Address: .*wg0\.address"),
    "no PublicKey": Case(without("PublicKey"), r"{}:6: .*no PublicKey"),
    "no Endpoint": Case(without("Endpoint"), r"{}:6: .*no Endpoint"),
    "no AllowedIPs": Case(without("AllowedIPs"), r"{}:6: .*no AllowedIPs"),
    "short key": Case(line("PrivateKey", ANOTHER_KEY[:40]), r"{}:2: PrivateKey has 40 characters"),
    "key not base64": Case(line("PrivateKey", ANOTHER_KEY[:20] + "!" * 23 + "="), r"{}:2: PrivateKey is not base64"),
    "key of 33 bytes": Case(line("PublicKey", ANOTHER_KEY[:43] + "9"), r"{}:7: PublicKey is not exact base64"),
    "our own public key": Case(own_public_key, r"{}:7: this PublicKey belongs to this file's own PrivateKey"),
    "key of zeroes": Case(line("PublicKey", ALL_ZERO), r"{}:7: PublicKey is all zeroes"),
    "bad preshared key": Case(more("PresharedKey = no key at all\n"), r"{}:11: PresharedKey has"),
    "address without sense": Case(line("Address", "10.64.300.1/32"), r"{}:3: Address has .*not an IP address"),
    "address of loopback": Case(line("Address", "127.0.0.1/8"), r"{}:3: Address has a loopback"),
    "port 0": Case(line("Endpoint", "203.0.113.51:0"), r"{}:9: Endpoint must be a port"),
    "port 70000": Case(line("Endpoint", "203.0.113.51:70000"), r"{}:9: Endpoint must be a port"),
    "no port": Case(line("Endpoint", "203.0.113.51"), r"{}:9: Endpoint has no port"),
    "duplicate peers": Case(
        more("[Peer]\nPublicKey = {}\nAllowedIPs = 10.9.0.0/16\nEndpoint = 203.0.113.52:51820\n"),
        r"{}:12: the same PublicKey as in line 7",
    ),
    "allowed IPs of two peers": Case(
        more(
            f"[Peer]\nPublicKey = {ANOTHER_KEY}\nAllowedIPs = 10.9.0.0/16, 0.0.0.0/0\nEndpoint = 203.0.113.52:51820\n"
        ),
        r"{}:13: AllowedIPs has a network that the peer in line 8 has",
    ),
    "unknown key": Case(more("Obfuscation = on\n"), r"{}:11: unknown key Obfuscation"),
    "a key in the wrong place": Case(more(f"{ANOTHER_KEY}\n"), r"{}:11: "),
    "an .address file of nonsense": Case(
        lambda file: (without("Address")(file), file.with_suffix(".address").write_text("10.64.1.2/32\nhere\n")),
        r"/wg0\.address:2: Address has",
    ),
    "a folder where the file should be": Case(a_folder, r"{}: a folder, not a file: .*bind mount"),
}


@pytest.mark.parametrize("name", FILES)
def test_files(pod: Lab, judge: Judge, name: str) -> None:
    case = FILES[name]
    case.spoil(pod.config_path)
    try:
        ended = pod.init_wg("up", check=False)
    finally:
        if pod.config_path.is_dir():
            pod.config_path.rmdir()
    one_clear_line(ended, case.code, case.says.replace("{}", re.escape(str(pod.config_path))))
    refused_at_once(pod, judge)


def test_a_private_key_that_is_not_clamped(pod: Lab) -> None:
    """WireGuard clamps every key, and so shows another one than it was told."""
    private = re.search(r"PrivateKey = (.*)", pod.config_path.read_text())
    assert private
    raw = bytearray(base64.b64decode(private[1]))
    raw[0], raw[31] = raw[0] | 7, raw[31] | 128
    line("PrivateKey", base64.b64encode(raw).decode())(pod.config_path)
    pod.init_wg("up")
    assert pod.flows()
    assert pod.init_wg("check").returncode == 0


def test_an_unreadable_file(pod: Lab, judge: Judge) -> None:
    """To root without CAP_DAC_OVERRIDE, as a container's root is when the file belongs to somebody else."""
    os.chown(pod.config_path, 65534, 65534)
    ended = pod.pod.run([*WITHOUT_DAC, *UP], env=pod.pod_env, check=False)
    one_clear_line(ended, 2, rf"{re.escape(str(pod.config_path))}: no permission to read it")
    refused_at_once(pod, judge)


def test_a_file_that_everybody_may_read_is_told_and_used(pod: Lab) -> None:
    pod.config_path.chmod(0o644)
    ended = pod.init_wg("up")
    assert re.search(r"warning: .*wg0\.conf: everybody can read this file", ended.stderr)
    assert pod.flows()


def test_one_bad_file_among_good_ones_is_told_and_left_out(pod: Lab) -> None:
    folder = pod.config_path.parent
    (folder / "0-broken.conf").write_text("nonsense\n")
    ended = pod.init_wg("up", env={"WG_CONFIG": str(folder)})
    assert re.search(r"warning: .*0-broken\.conf:1: .*this server is left out", ended.stderr)
    assert pod.flows()


NO_KILLSWITCH = {
    "an empty table": "add table inet init_wg",
    "one that sleeps": "add table inet init_wg { flags dormant; }\n"
    "add chain inet init_wg output { type filter hook output priority 0; policy drop; }",
    "one that accepts": "add table inet init_wg\n"
    "add chain inet init_wg output { type filter hook output priority 0; policy accept; }",
    "a chain that is not hooked": "add table inet init_wg\nadd chain inet init_wg output",
    "only a gate": "add table netdev init_wg",
}


@pytest.mark.parametrize("name", NO_KILLSWITCH)
@pytest.mark.parametrize("word", ["lockdown", "up"])
def test_a_table_by_our_name_is_no_killswitch(pod: Lab, judge: Judge, name: str, word: str) -> None:
    """Whatever it is, the pod is sealed afterwards; also when `up` gets no further."""
    pod.pod.run(["nft", "-f", "-"], stdin=NO_KILLSWITCH[name] + "\n")
    assert pod.traffic_source(4) == pod.pod.addresses[4]
    pod.config_path.write_text("")
    assert pod.init_wg(word, check=False).returncode == (0 if word == "lockdown" else 2)
    refused_at_once(pod, judge)


def test_the_sealed_pod_is_left_as_it_is(pod: Lab) -> None:
    """The other side of it: what is a kill-switch is not loaded again, and goes on counting."""
    pod.init_wg("lockdown")
    assert pod.traffic_source(4) is None
    before = pod.pod.run(["nft", "-a", "list", "ruleset"]).stdout
    assert re.search(r"counter packets [1-9]", before)
    pod.init_wg("lockdown")
    assert pod.pod.run(["nft", "-a", "list", "ruleset"]).stdout == before


# --- the environment and the command line ----------------------------------------------------------------------------

ENVIRONMENT: dict[str, tuple[dict[str, str], str]] = {
    f"{name}={value}": ({name: value}, rf"environment: {name}.*: ")
    for name, value in (
        ("WG_INTERFACE", "wg 0"),
        ("WG_INTERFACE", "lo"),
        ("WG_INTERFACE", "../../etc"),
        ("WG_INTERFACE", "a-name-of-16-let"),
        ("WG_IMPLEMENTATION", "turbo"),
        ("ENABLE_KILL_SWITCH", "flase"),
        ("ENABLE_BYPASS_ROUTES", "maybe"),
        ("ENABLE_DNS_CONFIG", "2"),
        ("DNS_MODE", "magic"),
        ("CLUSTER_DOMAIN", "not a domain!"),
        ("VPN_INPUT_PORTS", "http"),
        ("VPN_INPUT_PORTS", "65536"),
        ("HANDSHAKE_TIMEOUT", "soon"),
        ("HANDSHAKE_TIMEOUT", "nan"),
        ("HANDSHAKE_TIMEOUT", "-1"),
        ("LOG_LEVEL", "loud"),
        ("LOG_FORMAT", "xml"),
        ("BYPASS_CIDRS", "10.43.0.0/33"),
        ("BYPASS_CIDRS", "everything"),
        # What they would let out: all of it, the tunnel's own address, its resolver.
        ("BYPASS_CIDRS", "0.0.0.0/0"),
        ("BYPASS_CIDRS", "::/0"),
        ("BYPASS_CIDRS", "10.43.0.0/16, 0.0.0.0/1, 128.0.0.0/1"),
        ("BYPASS_CIDRS", "10.64.0.0/16"),
        ("BYPASS_CIDRS", "10.64.0.1/32"),
        ("BYPASS_CIDRS", "fc00::/7"),
    )
}


@pytest.mark.parametrize("name", ENVIRONMENT)
def test_the_environment(pod: Lab, judge: Judge, name: str) -> None:
    env, says = ENVIRONMENT[name]
    one_clear_line(pod.init_wg("up", env=env, check=False), 2, says)
    refused_at_once(pod, judge)


def test_a_server_that_is_not_there(pod: Lab, judge: Judge) -> None:
    """The pod is sealed first, also with more words than `up`."""
    ended = pod.init_wg("up", "--server", "mars", check=False)
    one_clear_line(ended, 2, r"--server mars: there is no such server; there is: wg0")
    refused_at_once(pod, judge)


@pytest.mark.parametrize("words", [("up", "now"), ("up", "--server")])
def test_up_with_words_that_it_does_not_know(pod: Lab, judge: Judge, words: tuple[str, ...]) -> None:
    one_clear_line(pod.init_wg(*words, check=False), 2, r"usage: .* is no command")
    refused_at_once(pod, judge)


@pytest.mark.parametrize("words", [("frobnicate",), ("lockdwon",), ("status", "--xml"), ("down", "please")])
def test_an_unknown_command_does_nothing(pod: Lab, words: tuple[str, ...]) -> None:
    before = everything(pod)
    ended = pod.init_wg(*words, check=False)
    one_clear_line(ended, 2, r"usage: .* is no command of init-wg")
    assert "up [--server NAME]" in ended.stderr
    assert everything(pod) == before


@pytest.mark.parametrize("words", [("up", "--help"), ("lockdown", "-h"), ("hold", "--help"), ("down", "--help")])
def test_asking_what_a_command_does_does_nothing(pod: Lab, words: tuple[str, ...]) -> None:
    before = everything(pod)
    ended = pod.pod.run([*WITHOUT_NET_ADMIN, *UP[:-1], *words], env=pod.pod_env)
    assert ended.stdout.startswith(f"usage: init-wg {words[0]}")
    assert everything(pod) == before


# --- what is missing around it ---------------------------------------------------------------------------------------


def test_without_net_admin(pod: Lab) -> None:
    """Nothing can be done, so nothing is; the last line names the capability."""
    before = everything(pod)
    for word in ("up", "lockdown", "status", "check"):
        ended = pod.pod.run([*WITHOUT_NET_ADMIN, *UP[:-1], word], env=pod.pod_env, check=False)
        one_clear_line(ended, 3, r"permission denied: .*NET_ADMIN")
    assert everything(pod) == before


def test_without_nft(pod: Lab) -> None:
    before = everything(pod)
    ended = pod.pod.run([*WITHOUT_NFT, *UP], env=pod.pod_env, check=False)
    one_clear_line(ended, 3, r"nft is not installed: ")
    assert everything(pod) == before


def test_without_nf_tables(pod: Lab) -> None:
    before = everything(pod)
    ended = pod.pod.run([*WITHOUT_NETFILTER, *UP], env=pod.pod_env, check=False)
    one_clear_line(ended, 3, r"the kernel has no nf_tables \(.+\): ")
    assert everything(pod) == before


def test_without_wireguard_of_either_kind(pod: Lab, judge: Judge) -> None:
    env = {**pod.pod_env, "WG_IMPLEMENTATION": "userspace" if kernel_wireguard() else "auto"}
    ended = pod.pod.run([*WITHOUT_TUN, *UP], env=env, check=False)
    one_clear_line(ended, 3, r"neither kernel WireGuard nor /dev/net/tun is here: ")
    refused_at_once(pod, judge)


def test_kernel_wireguard_demanded_where_there_is_none(pod: Lab, judge: Judge) -> None:
    if kernel_wireguard():
        pytest.skip("this kernel has WireGuard: nothing is missing")
    ended = pod.init_wg("up", env={"WG_IMPLEMENTATION": "kernel"}, check=False)
    one_clear_line(ended, 3, r"the kernel has no WireGuard: .*WG_IMPLEMENTATION=userspace")
    refused_at_once(pod, judge)


def test_without_a_default_route(pod: Lab, judge: Judge) -> None:
    for family in pod.families:
        pod.pod.run(["ip", f"-{family}", "route", "del", "default"])
    try:
        ended = pod.init_wg("up", check=False)
        one_clear_line(ended, 3, r"no default route \(interfaces: eth0\): ")
        refused_at_once(pod, judge)
    finally:
        pod.restore_uplink()


def test_without_an_uplink(pod: Lab) -> None:
    """A namespace with nothing but its loopback. It is sealed too: whatever comes later cannot get out."""
    show = 'python=$1; shift; "$python" "$@"; code=$?; nft list tables; exit $code'
    argv = ["unshare", "--net", "sh", "-c", show, "sh", *UP]
    ended = subprocess.run(
        argv, capture_output=True, text=True, check=False, cwd=PROJECT, env={**os.environ, **pod.pod_env}
    )
    one_clear_line(ended, 3, r"no network interface but the loopback: ")
    assert "table inet init_wg" in ended.stdout


# --- where nothing may be done at all --------------------------------------------------------------------------------

NODES: dict[str, tuple[str, str]] = {
    "cni0": ("ip link add name cni0 type bridge", "ip link del cni0"),
    "docker0": ("ip link add name docker0 type bridge", "ip link del docker0"),
    "kube-proxy with nft": ("nft add table ip nat; nft add chain ip nat KUBE-SERVICES", "nft delete table ip nat"),
}


@pytest.mark.parametrize("name", NODES)
@pytest.mark.parametrize("words", [("lockdown",), ("up",), ("up", "--server", "wg0"), ("down",)], ids="-".join)
def test_a_nodes_own_network_is_left_alone(pod: Lab, name: str, words: tuple[str, ...]) -> None:
    make, undo = NODES[name]
    pod.pod.run(["sh", "-c", make])
    try:
        before = everything(pod)
        ended = pod.init_wg(*words, check=False)
        one_clear_line(
            ended, 2, r"this is the node's own network \(.+\).*remove hostNetwork: true .*nothing was changed"
        )
        assert everything(pod) == before
        assert pod.traffic_source(4) == pod.pod.addresses[4]
    finally:
        pod.pod.run(["sh", "-c", undo])


def test_the_machines_own_network_is_left_alone(pod: Lab) -> None:
    """The first namespace, from which this very test is run. With nft hidden: a mistake here must harm nobody."""
    if not FIRST_NAMESPACE.exists():
        pytest.skip("not run in the machine's first network namespace")
    with pytest.raises(ConfigError, match="the node's own network"):
        refuse_node()
    for words in (("lockdown",), ("up",), ("up", "--server", "wg0")):
        argv = [*WITHOUT_NFT, *UP[:-1], *words]
        env = {**os.environ, **pod.pod_env}
        ended = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=PROJECT, env=env)
        one_clear_line(ended, 2, r"this is the node's own network \(.+\).*nothing was changed")


# --- `check FILE`, by anybody ----------------------------------------------------------------------------------------


def unprivileged() -> tuple[str, ...]:
    """As nobody; where nobody may not even read this interpreter, as root without a single capability."""
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all")
    there = subprocess.run([*nobody, sys.executable, "-c", "import init_wg"], capture_output=True, cwd=PROJECT)
    return (*nobody, "--") if there.returncode == 0 else WITHOUT_ANYTHING


def test_a_file_is_checked_without_any_privilege(pod: Lab) -> None:
    user = unprivileged()
    good = pod.config_path
    bad = pod.config(pod.config_path.with_name("bad.conf"))
    line("Endpoint", "203.0.113.51:0")(bad)
    if "--reuid=65534" in user:
        for file in (good, bad):
            os.chown(file, 65534, 65534)
        pod.folder.chmod(0o711)
        pod.config_path.parent.chmod(0o711)
    private = re.search(r"PrivateKey = (.*)", good.read_text())
    assert private
    before = everything(pod)
    ended = pod.pod.run([*user, *UP[:-1], "check", good], check=False)
    assert ended.returncode == 0, ended.stderr
    for part in (f"{good}: right", "10.64.12.34/32", pod.provider.public_key, "203.0.113.51:51820", "0.0.0.0/0"):
        assert part in ended.stdout
    assert private[1] not in ended.stdout + ended.stderr
    ended = pod.pod.run([*user, *UP[:-1], "check", bad], check=False)
    one_clear_line(ended, 2, rf"{re.escape(str(bad))}:9: Endpoint must be a port")
    assert not ended.stdout
    ended = pod.pod.run([*user, *UP[:-1], "check", good.with_name("absent.conf")], check=False)
    one_clear_line(ended, 2, r"absent\.conf: no such file")
    assert everything(pod) == before
