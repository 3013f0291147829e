"""The image: what is in it, what is not, and how it starts with the least that it needs."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import struct
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from .engine import IMAGE, LAB_IMAGE, ROOT, Engine, docker_command, wait_until

#: Bytes, as `docker image inspect` tells them: all layers, unpacked. What today's best-known peer has.
GOAL = 43_000_000
KEY = "8GboYh0YF3q1RJwVkmUs3WMm8XbVXzDXkCBu5qKpVGc="
CONFIG = f"""\
[Interface]
PrivateKey = {KEY}
Address = 10.64.0.2/32
[Peer]
PublicKey = {KEY}
Endpoint = 192.0.2.1:51820
AllowedIPs = 0.0.0.0/0
"""
#: Exactly what compose.yaml and the manifests give.
LEAST = ["--cap-drop=ALL", "--cap-add=NET_ADMIN", "--read-only", "--security-opt=no-new-privileges", "--tmpfs=/run"]
CAP_NET_ADMIN = 1 << 12


@dataclass
class Ended:
    """A container that has run."""

    status: int
    output: str
    errors: str

    @property
    def last_line(self) -> str:
        return self.errors.strip().rpartition("\n")[2]


def run(engine: Engine, *arguments: str, least: bool = True) -> Ended:
    """Run a container to its end. `arguments`: docker's options, the image, the command."""
    ended = engine.run(docker_command(), "run", "--rm", *(LEAST if least else []), *arguments)
    return Ended(ended.returncode, ended.stdout, ended.stderr)


@pytest.fixture(scope="module")
def files(engine: Engine) -> dict[str, tarfile.TarInfo]:
    """Everything in the image, by its absolute name."""
    container = engine.docker("create", IMAGE)
    export = subprocess.run(
        [docker_command(), "export", container], env=engine.environment, capture_output=True, check=True
    )
    engine.docker("rm", container)
    with tarfile.open(fileobj=io.BytesIO(export.stdout)) as archive:
        return {f"/{member.name.rstrip('/')}": member for member in archive}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A configuration in a folder of its own, as only root may read it."""
    (tmp_path / "wg0.conf").write_text(CONFIG)
    (tmp_path / "wg0.conf").chmod(0o400)
    return tmp_path


@pytest.fixture
def pod(engine: Engine) -> Iterator[str]:
    """A container with an open network of its own, for others to join."""
    name = engine.docker("run", "--detach", LAB_IMAGE, "sleep", "infinity")
    yield name
    engine.docker("rm", "-f", name)


def leaves(engine: Engine, pod: str) -> bool:
    """Can anything leave the pod? Sending a datagram to anybody outside is refused at once where not."""
    code = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'', ('198.51.100.1', 9))"
    return engine.try_docker("exec", pod, "python3", "-c", code) is not None


# --- what is in it ---------------------------------------------------------------------------------------------------


def test_size(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    size = int(engine.docker("image", "inspect", "--format", "{{.Size}}", IMAGE))
    saved = subprocess.run([docker_command(), "save", IMAGE], env=engine.environment, capture_output=True, check=True)
    compressed = len(gzip.compress(saved.stdout, 6))
    with capsys.disabled():
        print(f"\nimage: {size / 1e6:.1f} MB (goal: {GOAL / 1e6:.0f}), {compressed / 1e6:.1f} MB to download")
    assert size <= GOAL


def test_nothing_that_has_no_business_here(files: dict[str, tarfile.TarInfo]) -> None:
    names = {Path(name).name for name, member in files.items() if member.isfile() or member.issym()}
    assert not names & {"sh", "bash", "dash", "busybox", "apt", "dpkg", "pip", "pip3", "cc", "gcc", "ld", "as", "curl"}
    assert not {name for name in names if name.endswith((".key", ".conf~", ".git", ".env"))}
    assert not [
        name for name in files if "/ensurepip" in name or "/pip/" in name or name.startswith(("/source", "/root/"))
    ]
    # certifi's list of authorities is the only thing with this ending.
    assert {name for name in names if name.endswith(".pem")} == {"cacert.pem"}
    assert not [name for name, member in files.items() if member.isfile() and member.mode & 0o6000], "set-uid programs"
    assert files["/etc/wireguard"].isdir()
    assert not [name for name in files if name.startswith("/etc/wireguard/")]


def test_our_packages_are_in_an_environment_of_their_own(engine: Engine) -> None:
    code = "import init_wg, watchdog, sys; print(init_wg.__file__, watchdog.__file__, sys.prefix)"
    ours, theirs, prefix = run(engine, IMAGE, "/opt/init-wg/bin/python", "-I", "-c", code).output.split()
    assert prefix == "/opt/init-wg"
    assert ours.startswith(prefix)
    assert theirs.startswith(prefix)


def test_everything_is_compiled_and_never_compared_with_its_source(engine: Engine) -> None:
    """Ours beside its source; of Python itself there is nothing else."""
    code = """
import importlib.util, pathlib
ours = pathlib.Path("/opt/init-wg/lib").rglob("*.py")
for compiled in [pathlib.Path(importlib.util.cache_from_source(str(source))) for source in ours]:
    print(compiled, compiled.read_bytes()[4:8].hex() if compiled.exists() else "missing")
for compiled in pathlib.Path("/usr/lib/python3.11").rglob("*.py*"):
    print(compiled, compiled.read_bytes()[4:8].hex() if compiled.suffix == ".pyc" else "a source")
"""
    lines = run(engine, IMAGE, "/opt/init-wg/bin/python", "-I", "-c", code).output.splitlines()
    unchecked = struct.pack("<I", 0b01).hex()  # PEP 552: by its hash, which nobody checks
    assert len(lines) > 300
    assert [line for line in lines if not line.endswith(unchecked)] == []


def test_says_what_it_is(engine: Engine) -> None:
    config = json.loads(engine.docker("image", "inspect", "--format", "{{json .Config}}", IMAGE))
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in config["Labels"].items()}
    assert {"title", "description", "licenses", "version", "revision", "base.name"} <= set(labels)
    assert config["User"] == "0:0"
    assert config["Cmd"] == ["init-wg"]
    assert not config["Entrypoint"]
    assert "Healthcheck" not in config
    assert not [word for word in config["Env"] if "KEY" in word or "SECRET" in word]
    assert run(engine, IMAGE, "init-wg", "--version").output == f"init-wg {labels['version']}\n"


def test_scanners_find_the_packages(files: dict[str, tarfile.TarInfo]) -> None:
    packages = {Path(name).name for name in files if name.startswith("/var/lib/dpkg/status.d/")}
    assert {"dnsmasq-base", "nftables", "libc6", "libpython3.11-stdlib", "libssl3"} <= packages
    assert {package for package in packages if f"/usr/share/doc/{package}/copyright" not in files} == set()
    assert [name for name in files if name.endswith("/wgconfig-1.2.0.dist-info/METADATA")]


def test_wireguard_go_is_the_pinned_one(engine: Engine, files: dict[str, tarfile.TarInfo]) -> None:
    """Not Debian's, which moves half as much. Go writes the modules into what it builds; go.sum has checked them."""
    pinned = {tuple(line.split()[:2]) for line in (ROOT / "image/wireguard-go/go.sum").read_text().splitlines()}
    script = "import sys; sys.stdout.buffer.write(open('/usr/bin/wireguard-go', 'rb').read())"
    argv = [docker_command(), "run", "--rm", IMAGE, "/opt/init-wg/bin/python", "-I", "-c", script]
    program = subprocess.run(argv, env=engine.environment, capture_output=True, check=True).stdout
    built = set(re.findall(r"\n(?:mod|dep)\t(\S+)\t(v\S+)\t", program.decode("latin-1")))
    assert "golang.zx2c4.com/wireguard" in {module for module, _ in built}
    assert built <= pinned
    assert "/usr/share/doc/wireguard-go/copyright" in files


# --- how it starts ---------------------------------------------------------------------------------------------------


def test_runs_with_one_capability(engine: Engine) -> None:
    name = engine.docker("run", "--detach", *LEAST, IMAGE, "init-wg", "hold")
    try:
        wait_until(lambda: "kept" in engine.run(docker_command(), "logs", name).stderr, "it holds")
        python = ["exec", name, "/opt/init-wg/bin/python", "-I", "-c"]
        status = engine.docker(*python, "print(open('/proc/1/status').read())")
        facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert int(facts["CapEff"], 16) == int(facts["CapBnd"], 16) == CAP_NET_ADMIN
        assert facts["NoNewPrivs"] == "1"
        assert facts["Seccomp"] == "2"
        for path in ("/x", "/etc/x", "/tmp/x", "/proc/sys/net/ipv4/ip_forward"):
            assert engine.try_docker(*python, f"open({path!r}, 'w')") is None, path
        engine.docker("stop", "--time", "5", name)
        assert engine.inspect(name, "{{.State.ExitCode}}") == "0"
    finally:
        engine.docker("rm", "-f", name)


def test_the_forwarder_needs_no_more(engine: Engine) -> None:
    """dnsmasq as the watchdog runs it: no other user, nothing to write to, and no IPv6, which Docker takes away."""
    code = """
import socket, subprocess
from init_wg.design.dns import ResolvConf, forwarder
from init_wg.design.firewall.policy import Names
names = Names(resolvers=("192.0.2.1",), cluster=(), docker=True, forwarded=True)
command = forwarder(names, ResolvConf(("127.0.0.11",), ()), None, [])
child = subprocess.Popen([*command, "--address=/answered.test/192.0.2.7"], stderr=subprocess.PIPE, text=True)
for line in child.stderr:
    print(line, end="", flush=True)
    if "started" in line:
        break
query = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
query.settimeout(5)
question = bytes.fromhex("000101000001000000000000") + b"\\x08answered\\x04test\\0" + bytes.fromhex("00010001")
query.sendto(question, ("127.0.0.1", 10053))
print(socket.inet_ntoa(query.recv(512)[-4:]))
child.kill()
"""
    ended = run(engine, "--sysctl=net.ipv6.conf.all.disable_ipv6=1", IMAGE, "/opt/init-wg/bin/python", "-I", "-c", code)
    assert ended.output.endswith("192.0.2.7\n"), ended


def test_without_the_capability(engine: Engine, pod: str, folder: Path) -> None:
    mount = f"--volume={folder}:/etc/wireguard:ro"
    for user in ([], ["--cap-add=NET_ADMIN", "--user=65534"]):
        ended = run(engine, "--cap-drop=ALL", *user, f"--network=container:{pod}", mount, IMAGE, least=False)
        assert ended.status == 3
        assert "NET_ADMIN" in ended.last_line
        assert "nothing was changed" in ended.last_line
    assert leaves(engine, pod)


def test_without_a_configuration(engine: Engine, pod: str) -> None:
    assert leaves(engine, pod)
    ended = run(engine, f"--network=container:{pod}", IMAGE)
    assert ended.status == 2
    assert "/etc/wireguard: a folder without *.conf" in ended.last_line
    assert not leaves(engine, pod)


def test_with_a_bad_configuration(engine: Engine, pod: str, folder: Path) -> None:
    (folder / "wg0.conf").write_text(CONFIG.replace("[Peer]", "[Pear]"))
    ended = run(engine, f"--network=container:{pod}", f"--volume={folder}:/etc/wireguard:ro", IMAGE)
    assert ended.status == 2
    assert "/etc/wireguard/wg0.conf:4" in ended.last_line
    assert KEY not in ended.errors
    assert not leaves(engine, pod)


def test_with_a_configuration_it_may_not_read(engine: Engine, pod: str, folder: Path) -> None:
    """Root without DAC_OVERRIDE reads what is root's, and not what is somebody else's."""
    os.chown(folder / "wg0.conf", 1000, 1000)
    ended = run(engine, f"--network=container:{pod}", f"--volume={folder}:/etc/wireguard:ro", IMAGE)
    assert ended.status == 2
    assert "wg0.conf" in ended.last_line
    assert "ermission" in ended.last_line
    assert not leaves(engine, pod)


def test_without_the_tun_device(engine: Engine, pod: str, folder: Path) -> None:
    mount = f"--volume={folder}:/etc/wireguard:ro"
    ended = run(engine, f"--network=container:{pod}", mount, "--env=WG_IMPLEMENTATION=userspace", IMAGE)
    assert ended.status == 3
    assert "/dev/net/tun" in ended.last_line
    assert not leaves(engine, pod)


def test_when_nobody_answers(engine: Engine, pod: str, folder: Path) -> None:
    tun = ["--device=/dev/net/tun", "--env=WG_IMPLEMENTATION=userspace", "--env=HANDSHAKE_TIMEOUT=1"]
    ended = run(engine, f"--network=container:{pod}", f"--volume={folder}:/etc/wireguard:ro", *tun, IMAGE)
    assert ended.status == 4
    assert "no handshake" in ended.last_line
    assert not leaves(engine, pod)


def test_refuses_the_nodes_own_network(engine: Engine) -> None:
    ended = run(engine, "--network=host", IMAGE)
    assert ended.status == 2
    assert "hostNetwork" in ended.last_line
    assert "init_wg" not in engine.inside("nft", "list", "tables")


def test_the_watchdog_refuses_wrong_settings(engine: Engine) -> None:
    ended = run(engine, "--env=HEALTH_PORT=many", IMAGE, "init-wg-watchdog")
    assert ended.status == 2
    assert "HEALTH_PORT=many" in ended.last_line


def test_the_health_check_without_a_watchdog(engine: Engine) -> None:
    ended = run(engine, IMAGE, "init-wg-health")
    assert ended.status == 1
    assert "the watchdog does not answer on port 9999" in ended.output
