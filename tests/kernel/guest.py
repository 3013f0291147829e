"""A machine whose kernel has WireGuard: QEMU without KVM, Debian's cloud kernel, and the host's own files.

    .venv/bin/python -m tests.kernel.guest -- COMMAND...

boots it, runs COMMAND in it from the project's folder, prints its output and exits with its status (125: no
guest, or none that ended in order).

    host                                            guest
    .cache/kernel/  Debian's kernel, busybox
        │ initramfs, built for each boot: /init, the modules, the command
        └──────────────────────────────────────────> rootfs (process 1 stays here)
    /  ── virtiofsd ── virtiofs, read-only ────────> lower ┐
                                       tmpfs ──────> upper ┴─ overlay = the command's /
    console.log  <── first serial line ── kernel's messages, and the marked line with the exit status
    stdout       <── second serial line ── the command's output

The guest sees every file, program and virtual environment of the host; what it writes goes away with it.
It has no network but what it makes itself. virtiofsd holds a descriptor for each file looked at: a command that
walks the whole host may meet "Too many open files".
"""

import argparse
import compileall
import contextlib
import lzma
import os
import platform
import re
import secrets
import select
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
CACHE = PROJECT / ".cache" / "kernel"

PACKAGES = Path(__file__).with_name("packages.txt")
VIRTIOFSD = "/usr/lib/qemu/virtiofsd"

# Names a kernel image; which one changes with every security update.
KERNEL_PACKAGE = "linux-image-cloud-amd64"

# Loaded at boot, with all they depend on: a command cannot load any itself. The first row brings the files.
MODULES = """
virtio_pci virtiofs overlay virtio_rng crc32c_generic
wireguard veth dummy tun bridge sch_netem sch_ingress
nf_tables nft_ct nft_fib_inet nft_hash nft_limit nft_log nft_numgen nft_objref nft_quota nft_reject_inet
nft_socket nft_chain_nat nft_masq nft_nat nft_redir
nf_conntrack nf_conntrack_netlink nfnetlink_log
nft_compat xt_MASQUERADE xt_addrtype xt_comment xt_conntrack xt_mark xt_nat xt_tcpudp
""".split()  # noqa: SIM905 (a list that people edit)

# Process 1. It stays in the initramfs, where busybox is; the command gets the host's files as its root.
INIT = r"""#!/bin/busybox sh
export PATH=/bin
busybox mkdir -p /proc /sys /dev /lower /upper /root
busybox mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev

# "exit" is a kernel panic here, and so an error of the harness with these lines in it.
while read -r module; do
    insmod "/modules/$module" || { echo "cannot load $module"; exit 1; }
done </modules/order

mount -t virtiofs -o ro host /lower || exit 1
mount -t tmpfs -o mode=755 tmpfs /upper
mkdir /upper/files /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work overlay /root || exit 1

cd /root
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t devtmpfs dev dev
mkdir -p dev/pts dev/shm
ln -s /proc/self/fd dev/fd  # for "<(...)" in bash: wg-quick's
ln -s fd/0 dev/stdin
ln -s fd/1 dev/stdout
ln -s fd/2 dev/stderr
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t tmpfs -o mode=755 tmpfs run
mkdir -p run/lock run/netns run/tmp run/guest
chmod 1777 run/lock run/tmp
cp /command run/guest/command
[ -L var/run ] || { rm -rf var/run; ln -s /run var/run; }  # ip and wg use one name, daemons the other
hostname guest
ip link set lo up
stty -F /dev/ttyS1 raw  # bytes as they are: no \r before \n

# The overlay becomes / itself: in a mere chroot the kernel allows no user namespaces.
mount --move /root /
# A process namespace of its own ends what the command leaves running, which would hold the pipe open.
# The pipe keeps output from being a terminal: programs colour and wrap for one.
{ unshare -p -f chroot . /bin/sh /run/guest/command </dev/null 2>&1; echo $? >/status; } | cat >/dev/ttyS1

dmesg -n 1  # no kernel message in the middle of the marked line
echo "$(cat /marker) $(cat /status)" >/dev/console
reboot -f  # QEMU ends instead (-no-reboot)
"""

BOOT_OPTIONS = [
    "console=ttyS0",
    "quiet",
    "panic=-1",  # a panic reboots at once, and so ends QEMU: a failure in a second, not by time-out
    "oops=panic",
    "random.trust_cpu=on",  # the pool is full at once, with +rdrand below
    "notsc",  # its frequency is measured while booting: on a busy host a clock came out that ran ten times as fast
    "clocksource=hpet",
    "cryptomgr.notests=1",  # this and the next: for speed
    "mitigations=off",
    "nokaslr",
    "no_timer_check",
]


class GuestError(Exception):
    """No guest, or no orderly end of it. Says why, and what the command and the kernel said last."""


@dataclass(frozen=True)
class Result:
    status: int
    output: str
    seconds: float


def run(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    timeout: float = 120,
    memory: int = 1024,
    echo: Callable[[bytes], object] | None = None,
) -> Result:
    """Boot a guest, run `command` in the project's folder, and end the guest.

    `environment` is added to a small fixed one; `memory` is in MiB and also holds all files written; `echo`
    gets the output as it comes. Raises GuestError when there is no exit status within `timeout` seconds.
    """
    require_packages()
    kernel = prepare()
    compile_sources()
    marker = f"exit-status-{secrets.token_hex(8)}"
    output = bytearray()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="guest-") as folder:
        scratch = Path(folder)
        files = {"command": script(command, environment or {}), "marker": marker}
        (scratch / "initramfs").write_bytes(initramfs(kernel, files))
        with file_server(scratch), machine(scratch, kernel, memory) as qemu:
            for chunk in read_until(qemu, started + timeout):
                output += chunk
                if echo:
                    echo(chunk)
            ended = qemu.poll() is not None
        console = scratch / "console.log"
        found = re.search(rf"{marker} (\d+)", console.read_text(errors="replace")) if console.exists() else None
        if not found:
            why = "ended without an exit status" if ended else f"no end after {timeout:g} s"
            raise GuestError(f"{why}\n{last_words(output, scratch)}")
        return Result(int(found[1]), output.decode(errors="replace"), time.monotonic() - started)


def compile_sources() -> None:
    """The guest writes no byte code, and to compile at each start would take it seconds."""
    for folder in ("init_wg", "watchdog", "tests/lab", "tests/kernel/inside"):
        compileall.compile_dir(PROJECT / folder, quiet=2)


def script(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """The command as a shell script, for process 1 of the namespace it runs in."""
    variables = {
        "HOME": "/root",
        "INIT_WG_GUEST": "1",  # the tests in inside/ are collected only here
        "LANG": "C.UTF-8",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # importing those that no test here uses takes 8 s
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",  # a report that can be watched
        "TMPDIR": "/run/tmp",  # /tmp has the host's own files in it
        **environment,
    }
    lines = [
        "mount -t proc proc /proc",  # of this process namespace
        *(f"export {name}={shlex.quote(value)}" for name, value in variables.items()),
        f"cd {shlex.quote(str(PROJECT))} || exit",
        shlex.join(command),  # no exec: this shell stays, and reaps what the command leaves behind
        "exit $?",
    ]
    return "\n".join(lines) + "\n"


# --- The processes -------------------------------------------------------------------------------------


@contextlib.contextmanager
def process(
    arguments: Sequence[str], log: Path, *, output: int = subprocess.DEVNULL, files: Sequence[int] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """A program that ends with this block, and with this process even when that is killed."""
    with (
        log.open("wb") as stderr,
        subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=stderr,
            pass_fds=files,
        ) as child,
    ):
        try:
            yield child
        finally:
            child.kill()


@contextlib.contextmanager
def file_server(scratch: Path) -> Iterator[None]:
    """Serves / on files.sock; the guest mounts it read-only, so nothing on the host changes while it runs."""
    with socket.socket(socket.AF_UNIX) as listener:
        # Made here, QEMU can connect at once, and virtiofsd leaves no lock file in /run.
        listener.bind(str(scratch / "files.sock"))
        listener.listen(1)
        options = "source=/,cache=always,sandbox=chroot,log_level=warn"
        command = [VIRTIOFSD, "-o", options, f"--fd={listener.fileno()}"]
        with process(command, scratch / "virtiofsd.log", files=[listener.fileno()]):
            listener.close()  # so that QEMU is refused, not left waiting, when virtiofsd dies
            yield


@contextlib.contextmanager
def machine(scratch: Path, kernel: Path, memory: int) -> Iterator[subprocess.Popen[bytes]]:
    arguments = [
        *("qemu-system-x86_64", "-accel", "tcg", "-M", "pc", "-cpu", "qemu64,+rdrand", "-smp", "1", "-m", str(memory)),
        *("-display", "none", "-nodefaults", "-no-user-config", "-no-reboot"),
        # virtiofsd reads and writes the guest's memory directly.
        *("-object", f"memory-backend-memfd,id=mem,size={memory}M,share=on", "-numa", "node,memdev=mem"),
        *("-chardev", f"socket,id=files,path={scratch / 'files.sock'}"),
        *("-device", "vhost-user-fs-pci,chardev=files,tag=host,queue-size=1024"),
        *("-device", "virtio-rng-pci"),
        *("-serial", f"file:{scratch / 'console.log'}", "-serial", "stdio"),
        *("-kernel", str(only(kernel, "boot/vmlinuz-*")), "-initrd", str(scratch / "initramfs")),
        *("-append", " ".join(BOOT_OPTIONS)),
    ]
    with process(arguments, scratch / "qemu.log", output=subprocess.PIPE) as qemu:
        yield qemu


def read_until(qemu: subprocess.Popen[bytes], deadline: float) -> Iterator[bytes]:
    """The command's output as it comes, until QEMU ends or the time is up."""
    assert qemu.stdout
    while select.select([qemu.stdout], [], [], max(0, deadline - time.monotonic()))[0]:
        chunk = os.read(qemu.stdout.fileno(), 65536)
        if not chunk:
            qemu.wait()
            return
        yield chunk


def last_words(output: bytearray, scratch: Path) -> str:
    said = {"output": output.decode(errors="replace")}
    for name in ("virtiofsd", "qemu", "console"):
        log = scratch / f"{name}.log"
        said[name] = log.read_text(errors="replace") if log.exists() else ""
    # A kernel that panics says why first, and then some sixty lines of where, more or fewer each time.
    return "\n".join(f"  {name}: {line}" for name, text in said.items() for line in text.splitlines()[-120:])


# --- The kernel and the initramfs ----------------------------------------------------------------------


def require_packages() -> None:
    if platform.machine() != "x86_64":
        raise GuestError("needs x86_64: the guest runs this machine's own programs")
    if not shutil.which("dpkg-query"):
        raise GuestError("needs Debian: dpkg and apt")
    wanted = [line for line in PACKAGES.read_text().splitlines() if line and not line.startswith("#")]
    query = ["dpkg-query", "--show", "--showformat", "${Package} ${db:Status-Status}\n", *wanted]
    known = subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines()
    missing = [name for name in wanted if f"{name} installed" not in known]
    if missing:
        raise GuestError(f"missing Debian packages: apt-get install {' '.join(missing)}")
    if os.geteuid() != 0:
        raise GuestError("needs root: virtiofsd reads this machine's files with their owners and modes")


def prepare() -> Path:
    """The folder with Debian's kernel, modules and busybox, unpacked; downloaded once, never installed.

    Removing .cache/kernel gets the newest ones.
    """
    unpacked = CACHE / "unpacked"
    if unpacked.exists():
        return unpacked
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="new-") as folder:
        try:
            download(Path(folder))
        except GuestError:  # perhaps only because the lists of packages are absent or old
            tool(["apt-get", "update", "-q"], CACHE)
            download(Path(folder))
        for package in Path(folder).glob("*.deb"):
            tool(["dpkg-deb", "-x", str(package), "unpacked"], Path(folder))
        try:
            (Path(folder) / "unpacked").rename(unpacked)
        except OSError:
            if not unpacked.exists():  # else another process was first
                raise
    return unpacked


def download(folder: Path) -> None:
    depends = tool(["apt-cache", "depends", "--important", KERNEL_PACKAGE], folder)
    kernel = re.search(r"Depends: (linux-image-\S+)", depends)
    if not kernel:
        raise GuestError(f"apt knows no {KERNEL_PACKAGE}: apt-get update")
    # _apt, which downloads otherwise, may not write here.
    tool(["apt-get", "download", "-o", "APT::Sandbox::User=root", kernel[1], "busybox-static"], folder)


def tool(arguments: Sequence[str], folder: Path) -> str:
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise GuestError(f"{shlex.join(arguments)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def initramfs(kernel: Path, files: Mapping[str, str]) -> bytes:
    """/init, busybox, the modules in their order, and `files`: a cpio archive of the kernel's "newc" kind."""
    modules = load_order(only(kernel, "lib/modules/*"), MODULES)
    busybox = only(kernel, "bin/busybox").read_bytes()
    return b"".join(
        [
            *(entry(name, 0o040755) for name in ("bin", "dev", "modules")),
            entry("dev/console", 0o020600, device=(5, 1)),  # process 1 has no output without it
            entry("init", 0o100755, INIT.encode()),
            entry("bin/busybox", 0o100755, busybox),
            *(entry(f"bin/{name}", 0o120777, b"busybox") for name in busybox_names()),
            *(entry(f"modules/{name}", 0o100644, content) for name, content in modules.items()),
            entry("modules/order", 0o100644, "".join(f"{name}\n" for name in modules).encode()),
            *(entry(name, 0o100644, content.encode()) for name, content in files.items()),
            entry("TRAILER!!!", 0),
        ]
    )


def busybox_names() -> list[str]:
    return "cat chmod chroot cp dmesg hostname insmod ip ln mkdir mount reboot rm sh stty unshare".split()  # noqa: SIM905


def entry(name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    path = name.encode() + b"\0"
    # inode, mode, uid, gid, links, mtime, size, where it is (2), which device it is (2), size of path, sum
    fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(path), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return pad(header + path) + pad(content)


def pad(part: bytes) -> bytes:
    return part + bytes(-len(part) % 4)


def load_order(folder: Path, wanted: Sequence[str]) -> dict[str, bytes]:
    """Modules by name, each after those it needs: they say so themselves, the package has no modules.dep."""
    paths = {module_name(path): path for path in folder.rglob("*.ko*")}
    built_in = {module_name(Path(line)) for line in (folder / "modules.builtin").read_text().splitlines()}
    ordered: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in ordered or name in built_in:
            return
        if name not in paths:
            raise GuestError(f"{folder.name} has no module {name}")
        raw = paths[name].read_bytes()
        content = lzma.decompress(raw) if paths[name].suffix == ".xz" else raw
        needed, before, after = relations(content)
        for other in needed:
            add(other)
        for other in before & paths.keys():  # wishes: the rest are aliases, or not built
            add(other)
        ordered[name] = content
        for other in after & paths.keys():
            add(other)

    for name in wanted:
        add(name)
    return ordered


def module_name(path: Path) -> str:
    return path.name.partition(".")[0].replace("-", "_")


def relations(module: bytes) -> tuple[set[str], set[str], set[str]]:
    """What a module needs, and what it wishes to be loaded before and after it."""
    needed: set[str] = set()
    wishes: dict[str, set[str]] = {"pre:": set(), "post:": set()}
    for line in section(module, b".modinfo").decode().split("\0"):
        key, _, value = line.replace("-", "_").partition("=")
        if key == "depends":
            needed.update(filter(None, value.split(",")))
        elif key == "softdep":
            kind = "pre:"
            for word in value.split():
                if word in wishes:
                    kind = word
                else:
                    wishes[kind].add(word)
    return needed, wishes["pre:"], wishes["post:"]


def section(elf: bytes, wanted: bytes) -> bytes:
    """One section of a 64-bit little-endian ELF file."""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    # sh_name, (sh_type, sh_flags, sh_addr), sh_offset, sh_size
    headers = [struct.unpack_from("<I20xQQ", elf, table + size * number) for number in range(count)]
    for name, offset, length in headers:
        start = headers[names][1] + name
        if elf[start : elf.index(b"\0", start)] == wanted:
            return elf[offset : offset + length]
    raise GuestError(f"not a kernel module: no {wanted.decode()}")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.kernel.guest", description="Run a command on a kernel with WireGuard."
    )
    parser.add_argument("--timeout", type=float, default=120, help="seconds for all of it (120)")
    parser.add_argument("--memory", type=int, default=1024, help="MiB (1024)")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()

    def echo(chunk: bytes) -> None:
        sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()

    # Both end through the blocks that clean up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    signal.signal(signal.SIGINT, lambda *_: sys.exit(128 + signal.SIGINT))
    try:
        return run(options.command, timeout=options.timeout, memory=options.memory, echo=echo).status
    except GuestError as error:
        print(f"guest: {error}", file=sys.stderr)
        return 125


if __name__ == "__main__":
    sys.exit(main())
