"""What a cluster is made of, built once into .cache/cluster: Kubernetes' programs and the images of its pods.

    python -m tests.cluster.build

The programs come from the Go modules pinned in programs/ and policies/; a change there builds again. Go's own caches
stay where Go keeps them. The product's image is the Dockerfile's. Behind the public names of the applications' images
are small Debians made here, because a test does not depend on a registry.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.containers import engine
from tests.containers.engine import ROOT, Engine, docker_command
from tests.lab.needs import Needs, missing

HERE = Path(__file__).resolve().parent
CACHE = ROOT / ".cache/cluster"
BIN, IMAGES = CACHE / "bin", CACHE / "images"
PKI = CACHE / "web"  # the authority that the applications' image trusts, and the web's certificate
MODULES = ("programs", "policies")
GO = (1, 26)

PRODUCT = "ghcr.io/init-wg/init-wg:0.1.0"
CURL = "docker.io/curlimages/curl:8.11.1"
BUSYBOX = "docker.io/library/busybox:1.37.0"
PAUSE = "init-wg.invalid/pause:1"
#: What pods are upgraded from: the programs of 0.1.0 in today's image. The commit is the last one of that version.
OLDER, OLDER_COMMIT = "init-wg.invalid/older:0.1.0", "576e872962af8fbdfeb47bf021789b2dfcb72c32"
CNI = Path("/usr/lib/cni/ptp")


class BuildError(Exception):
    """A program or an image cannot be built."""


def go() -> str | None:
    """A Go that can build this: of this version, or one that fetches it (1.21 and later)."""
    for command in ("go", "/usr/local/go/bin/go"):
        if shutil.which(command):
            said = subprocess.run([command, "env", "GOVERSION"], capture_output=True, text=True, check=False).stdout
            version = re.match(r"go(\d+)\.(\d+)", said)
            if version and (int(version[1]), int(version[2])) >= (1, 21):
                return command
    return None


def some_go() -> str | None:
    """For NEEDS."""
    if built() or go():
        return None
    return f"Go {GO[0]}.{GO[1]} or later (Debian 12's is too old: https://go.dev/dl)"


NEEDS = Needs(
    {
        "containerd": "containerd",
        "runc": "runc",
        "conntrack": "conntrack",
        "ip": "iproute2",
        "iptables": "iptables",
        "nft": "nftables",
        "tcpdump": "tcpdump",
        "openssl": "openssl",
        "busybox": "busybox-static",
        "dnsmasq": "dnsmasq-base",
        "wireguard-go": "wireguard-go",
        "wg": "wireguard-tools",
        "sysctl": "procps",
        "ipset": "ipset",
        str(CNI): "containernetworking-plugins",
    },
    root=True,
    others=(some_go,),
)


def pinned() -> str:
    """One word for everything that decides what the programs are."""
    files = sorted(file for module in MODULES for file in (HERE / module).rglob("*") if file.is_file())
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def built() -> bool:
    stamp = BIN / "pinned"
    return stamp.exists() and stamp.read_text() == pinned()


def kubernetes() -> str:
    """The version of Kubernetes, as v1.36.3."""
    found = re.search(r"k8s\.io/kubernetes (v\S+)", (HERE / "programs/go.mod").read_text())
    if not found:
        raise BuildError("programs/go.mod names no k8s.io/kubernetes")
    return found[1]


def _run(*argv: str | Path, cwd: Path | None = None, **environment: str) -> str:
    ended = subprocess.run(
        list(map(str, argv)), cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if ended.returncode:
        raise BuildError(f"{' '.join(map(str, argv[:6]))} ...: {(ended.stderr or ended.stdout).strip()[-2000:]}")
    return ended.stdout


@contextmanager
def alone() -> Iterator[None]:
    """One process at a time builds."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def programs() -> None:
    """Kubernetes, etcd and CoreDNS, and, of a module of its own, kube-router."""
    if built():
        return
    command = go()
    if command is None:
        raise BuildError(str(missing(engine.NEEDS, NEEDS)))
    # Without a version a kubelet calls itself v0.0.0, and what compares versions fails.
    version = kubernetes()
    name = "k8s.io/component-base/version."
    minor = version.split(".")[1]
    flags = f"-s -w -X {name}gitVersion={version} -X {name}gitMajor=1 -X {name}gitMinor={minor}"
    settings = {"CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false -mod=readonly"}
    BIN.mkdir(parents=True, exist_ok=True)
    for module in MODULES:
        ours = ["./dns"] if (HERE / module / "dns").exists() else []
        argv = [command, "build", "-trimpath", "-ldflags", flags, "-o", f"{BIN}/", "tool", *ours]
        _run("nice", *argv, cwd=HERE / module, **settings)
    (BIN / "server").rename(BIN / "etcd")  # go.etcd.io/etcd/server is the program
    (BIN / "dns").rename(BIN / "coredns")
    (BIN / "pinned").write_text(pinned())


def web() -> None:
    """The lab's certificate authority, and the web's certificate."""
    if (PKI / "web.crt").exists():
        return
    PKI.mkdir(parents=True, exist_ok=True)
    new: list[str | Path] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    days: list[str | Path] = ["-days", "3650"]
    _run("openssl", "req", "-x509", *new, *days, "-subj", "/CN=lab", "-keyout", PKI / "ca.key", "-out", PKI / "ca.crt")
    _run("openssl", "req", *new, "-subj", "/CN=web", "-keyout", PKI / "web.key", "-out", PKI / "web.csr")
    (PKI / "names").write_text("subjectAltName=DNS:api.ipify.org,DNS:am.i.mullvad.net,DNS:web.example")
    signed: list[str | Path] = [
        "-CA",
        PKI / "ca.crt",
        "-CAkey",
        PKI / "ca.key",
        "-CAcreateserial",
        "-extfile",
        PKI / "names",
    ]
    _run("openssl", "x509", "-req", "-in", PKI / "web.csr", *signed, *days, "-out", PKI / "web.crt")


def archive(name: str, root: Path, command: Sequence[str]) -> None:
    """A folder as an image of one layer, in the format of `docker save`."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add(root, arcname=".", filter=lambda member: None if member.isdev() else member)
    content = layer.getvalue()
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    config = {
        "architecture": os.uname().machine.replace("x86_64", "amd64").replace("aarch64", "arm64"),
        "os": "linux",
        "config": {"Env": [f"PATH={path}"], "Cmd": list(command)},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(content).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    making = IMAGES / "making"
    with tarfile.open(making, "w") as tar:
        _add(tar, "config.json", json.dumps(config).encode())
        _add(tar, "layer.tar", content)
        _add(tar, "manifest.json", json.dumps(manifest).encode())
    making.rename(image_file(name))


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o644
    tar.addfile(member, io.BytesIO(data))


def _read(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    if file is None:
        raise BuildError(f"{name} of an image is no file")
    return file.read()


def image_file(name: str) -> Path:
    return IMAGES / f"{name.rpartition('/')[2].replace(':', '-')}.tar"


def applications() -> None:
    """The images that k8s/ names for its applications, and the pods' first process."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    root = IMAGES / "root"
    busybox = shutil.which("busybox")
    if busybox is None:
        raise BuildError(str(missing(engine.NEEDS, NEEDS)))
    for name, command in ((PAUSE, ("/bin/busybox", "sleep", "2147483647")), (BUSYBOX, ("sh",))):
        if image_file(name).exists():
            continue
        shutil.rmtree(root, ignore_errors=True)
        for folder in ("bin", "tmp", "etc"):
            (root / folder).mkdir(parents=True)
        (root / "tmp").chmod(0o1777)  # as in every image: applications are not root
        shutil.copy(busybox, root / "bin/busybox")
        for applet in _run(busybox, "--list").split():
            if applet != "busybox":
                (root / "bin" / applet).symlink_to("busybox")
        archive(name, root, command)
    if not image_file(CURL).exists():
        shutil.rmtree(root, ignore_errors=True)
        leave_out = [f"--dpkgopt=path-exclude=/usr/share/{each}/*" for each in ("man", "locale", "doc")]
        packages = "curl,ca-certificates,libc-bin,dash,coreutils,python3-minimal,libpython3-stdlib"
        _run("mmdebstrap", "--quiet", "--variant=extract", f"--include={packages}", *leave_out, "bookworm", root)
        # Unpacked and not configured: what a package's scripts would have made.
        for link, target in (("bin/sh", "dash"), ("usr/bin/python3", "python3.11")):
            (root / link).unlink(missing_ok=True)
            (root / link).symlink_to(target)
        _run("ldconfig", "-r", root)
        certificates = root / "etc/ssl/certs/ca-certificates.crt"
        certificates.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PKI / "ca.crt", certificates)
        archive(CURL, root, ("sh",))
    shutil.rmtree(root, ignore_errors=True)


def product() -> None:
    """The Dockerfile's image, by the tests' own Docker daemon."""
    with Engine() as running:
        made = running.images[engine.IMAGE]
        stamp = IMAGES / "product"
        if stamp.exists() and stamp.read_text() == made and image_file(PRODUCT).exists():
            return
        running.docker("tag", engine.IMAGE, PRODUCT)
        argv = [docker_command(), "save", "--output", str(image_file(PRODUCT)), PRODUCT]
        subprocess.run(argv, env=running.environment, check=True)
        stamp.write_text(made)


def older() -> None:
    """The product's image with the programs of OLDER_COMMIT in place of today's: one more layer. Without the history
    (a shallow clone) there is none, and the upgrade's tests say so."""
    commit = ["git", "-C", str(ROOT), "archive", OLDER_COMMIT, "init_wg", "watchdog"]
    stamp, wanted = IMAGES / "older", f"{OLDER_COMMIT} {(IMAGES / 'product').read_text()}"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    image_file(OLDER).unlink(missing_ok=True)
    listed = subprocess.run(commit, capture_output=True, check=False)
    if listed.returncode:
        return
    site = "opt/init-wg/lib/python3.11/site-packages"
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar, tarfile.open(fileobj=io.BytesIO(listed.stdout)) as source:
        for hidden in ("init_wg", "init_wg_watchdog"):
            tar.addfile(tarfile.TarInfo(f"{site}/{hidden}/.wh..wh..opq"))  # nothing of today's below this
        for member in source:
            member.name = f"{site}/{member.name}"
            tar.addfile(member, source.extractfile(member) if member.isfile() else None)
        # The image's command knows the package by the name that it has today.
        _add(tar, f"{site}/init_wg_watchdog/__init__.py", b"")
        _add(tar, f"{site}/init_wg_watchdog/__main__.py", b"from watchdog.__main__ import main\n\n__all__ = ['main']\n")
    content = layer.getvalue()
    making = IMAGES / "making"
    with tarfile.open(image_file(PRODUCT)) as product, tarfile.open(making, "w") as tar:
        (manifest,) = json.loads(_read(product, "manifest.json"))
        config = json.loads(_read(product, manifest["Config"]))
        for name in manifest["Layers"]:
            member = product.getmember(name)
            if member.issym() or member.islnk():  # Docker writes a layer once that is there twice
                raise BuildError(f"{image_file(PRODUCT)}: {name} is a link")
            tar.addfile(member, product.extractfile(member))
        config["rootfs"]["diff_ids"].append(f"sha256:{hashlib.sha256(content).hexdigest()}")
        config.pop("history", None)
        layers = [*manifest["Layers"], "older.tar"]
        _add(tar, "older.tar", content)
        _add(tar, "config.json", json.dumps(config).encode())
        made = [{"Config": "config.json", "RepoTags": [OLDER], "Layers": layers}]
        _add(tar, "manifest.json", json.dumps(made).encode())
    making.rename(image_file(OLDER))
    stamp.write_text(wanted)


def everything() -> None:
    """Whatever is not there yet. Raises BuildError."""
    with alone():
        for step in (programs, web, applications, product, older):
            began = time.monotonic()
            step()
            if (took := time.monotonic() - began) > 1:
                print(f"{step.__name__}: {took:.0f} s", flush=True)


if __name__ == "__main__":
    if lacking := missing(engine.NEEDS, NEEDS):
        sys.exit(f"the cluster's tests need {lacking}")
    everything()
