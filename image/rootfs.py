"""Gathers what the image needs, and nothing else, into a folder that becomes the image's root.

    python3 rootfs.py ROOT VENV      (runs in the Dockerfile's build stage, as root; standard library only)

From Debian: the programs below with the libraries they ask for, and Python without the modules named below. From the
virtual environment: our packages, and of the others those that something imports, each of them whole. Everything is
compiled; the byte code is trusted, whatever the time stamps are, and of others' modules it is all there is (7 MB less).
No shell, no pip, no compiler, no package manager; what a scanner reads to know the packages
(/var/lib/dpkg/status.d) and every licence are there.
"""

from __future__ import annotations

import compileall
import os
import py_compile
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import Distribution, distributions
from modulefinder import ModuleFinder
from pathlib import Path

OURS = ("init_wg", "init_wg_watchdog")
#: Ours, to be read; wgconfig's, since its licence asks for it.
WITH_SOURCE = (*OURS, "wgconfig")
PROGRAMS = ("/usr/sbin/nft", "/usr/sbin/dnsmasq", "/usr/bin/wireguard-go", os.path.realpath(sys.executable))
#: The commands, and the modules whose main() they are.
COMMANDS = {
    "init-wg": "init_wg.__main__",
    "init-wg-watchdog": "init_wg_watchdog.__main__",
    "init-wg-health": "init_wg_watchdog.healthcheck",
}
#: nft spells protocols by name only where it finds their names. wireguard-go is no package of Debian's here.
DATA = ("/etc/protocols", "/usr/share/doc/wireguard-go/copyright")

# Of the standard library, what no program without a terminal, a window or a compiler uses. All else stays: a module
# that only a rare failure imports must be there when it fails.
LEFT_OUT = [
    "aifc.py", "_aix_support.py", "antigravity.py", "asynchat.py", "asyncio/proactor_events.py",
    "asyncio/windows_*.py", "asyncore.py", "bdb.py", "_bootsubprocess.py", "cgi.py", "cgitb.py", "chunk.py", "cmd.py",
    "code.py", "codeop.py", "colorsys.py", "config-3.11*", "cProfile.py", "crypt.py", "ctypes/macholib",
    "ctypes/test", "curses", "dbm", "difflib.py", "dist-packages", "distutils", "_distutils_system_mod.py",
    "doctest.py", "encodings/big5*", "encodings/cp1[01]*", "encodings/cp[0235789]*", "encodings/euc_*",
    "encodings/gb*", "encodings/hz.py", "encodings/iso2022_*", "encodings/johab.py", "encodings/mac_*",
    "encodings/shift_*", "ensurepip", "EXTERNALLY-MANAGED", "filecmp.py", "fileinput.py", "fractions.py", "ftplib.py",
    "graphlib.py",
    "__hello__.py", "html", "http/server.py", "idlelib", "imaplib.py", "imghdr.py", "imp.py", "lib2to3",
    "logging/config.py", "mailbox.py", "mailcap.py", "modulefinder.py", "msilib", "multiprocessing/managers.py",
    "nntplib.py", "optparse.py", "_osx_support.py", "pdb.py", "__phello__", "pickletools.py", "pipes.py",
    "plistlib.py", "poplib.py", "profile.py", "pstats.py", "pty.py", "__pycache__", "pyclbr.py", "_pydecimal.py",
    "pydoc.py", "pydoc_data", "_pyio.py", "rlcompleter.py", "sched.py", "shelve.py", "site-packages",
    "sitecustomize.py", "smtpd.py", "smtplib.py", "sndhdr.py", "socketserver.py", "sqlite3", "statistics.py",
    "sunau.py", "symtable.py", "_sysconfigdata*.py", "tabnanny.py", "tarfile.py", "telnetlib.py", "test", "this.py",
    "timeit.py", "tkinter", "tomllib", "trace.py", "tty.py", "turtle.py", "turtledemo", "unittest", "uu.py", "venv",
    "wave.py", "webbrowser.py", "wsgiref", "xdrlib.py", "xml/dom", "xml/etree", "xml/parsers", "xmlrpc", "zipapp.py",
    "zoneinfo",
]  # fmt: skip
LEFT_OUT_EXTENSIONS = [
    "audioop", "_codecs_*", "_crypt", "_ctypes_test", "_curses*", "_dbm", "_elementtree", "_gdbm",
    "_lsprof", "_multibytecodec", "nis", "ossaudiodev", "readline", "_sqlite3", "_test*", "_tkinter", "_xx*",
    "xxlimited*", "_zoneinfo",
]  # fmt: skip
#: Of other packages, what needs something that is not here (QUIC, pyOpenSSL, an event loop, a browser, Windows),
#: serves zones, or is read by type checkers only. Reading and writing messages, of every type, imports none of it.
LEFT_OUT_OF_OTHERS = [
    "dns/_async*.py", "dns/_trio_backend.py", "dns/async*.py", "dns/btree*.py", "dns/dnssecalgs/*", "dns/e164.py",
    "dns/namedict.py", "dns/quic/_*", "dns/versioned.py", "dns/win32util.py", "dns/zone*.py",
    "urllib3/contrib/emscripten/*", "urllib3/contrib/pyopenssl.py", "*.pyi",
]  # fmt: skip


def main(root: Path, venv: Path) -> None:
    skeleton(root)
    copied = [copy(root, Path(path)) for path in (*PROGRAMS, *DATA)]
    copied += standard_library(root)
    environment(root, venv)
    copied += libraries(root)
    debian_packages(root, copied)
    compile_all(root, venv)
    try_out(root, venv)


def skeleton(root: Path) -> None:
    """The folders and the few files that every program takes for granted."""
    for folder in ("etc/wireguard", "run", "usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "usr/local/bin", "var/lib"):
        (root / folder).mkdir(parents=True)
    for folder in ("tmp", "var/tmp"):
        (root / folder).mkdir()
        (root / folder).chmod(0o1777)
    (root / "root").mkdir(mode=0o700)
    (root / "etc/wireguard").chmod(0o700)
    for name, target in {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}.items():
        (root / name).symlink_to(target)
    (root / "var/run").symlink_to("../run")
    (root / "etc/passwd").write_text(
        "root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\n"
    )
    (root / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    (root / "etc/nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\nprotocols: files\n")


def copy(root: Path, source: Path) -> Path:
    """One file, to where it is; links are followed. Returns the source."""
    real = source.resolve()
    target = root / source.parent.resolve().relative_to("/") / source.name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(real, target)
    return real


def standard_library(root: Path) -> list[Path]:
    """Python's own modules. Returns what was copied."""
    source = Path(sysconfig.get_path("stdlib"))
    target = root / source.relative_to("/")
    extensions = [f"{pattern}.cpython-*" for pattern in LEFT_OUT_EXTENSIONS]

    def ignore(folder: str, names: list[str]) -> set[str]:
        inside = Path(folder).relative_to(source)
        patterns = [Path(pattern) for pattern in LEFT_OUT if Path(pattern).parent == inside or pattern == "__pycache__"]
        by_name = shutil.ignore_patterns(*(p.name for p in patterns), *(extensions if inside.name else ()))
        return set(by_name(folder, names))

    shutil.copytree(source, target, ignore=ignore)
    return [source / path.relative_to(target) for path in target.rglob("*") if path.is_file()]


#: pyroute2 is asked for single modules by name (rtnetlink_write.messages), and these import a tenth of it.
ASK_PYROUTE2 = """
import pathlib, re, sys
from init_wg.kernel import rtnetlink_write
ours = "".join(source.read_text() for source in pathlib.Path(rtnetlink_write.__file__).parent.glob("*.py"))
for name in sorted(set(re.findall(r'messages\\("([\\w.]+)"\\)', ours))):
    rtnetlink_write.messages(name)
assert "pyroute2.netlink.rtnl.rtmsg" in sys.modules
for name, module in sys.modules.items():
    if name.partition(".")[0] == "pyroute2":
        print(module.__spec__.origin)
"""


def environment(root: Path, venv: Path) -> None:
    """The virtual environment: its Python, our packages, what they import, and the commands."""
    packages = site_packages(venv)
    target = root / packages.relative_to("/")
    target.mkdir(parents=True)
    wanted = imported(packages) | {"pyroute2"}
    asked = subprocess.run([venv / "bin/python", "-I", "-c", ASK_PYROUTE2], capture_output=True, text=True, check=True)
    from_pyroute2 = set(asked.stdout.split())
    for distribution in distributions(path=[str(packages)]):
        if any(part in wanted for part in top_level(distribution)):
            for file in distribution.files or ():
                path = packages / str(file)
                needless = file.suffix == ".pyc" or (file.parts[0] == "pyroute2" and str(path) not in from_pyroute2)
                # Compiled twice, for speed at guessing what a text is encoded in.
                needless |= distribution.name == "charset-normalizer" and file.suffix == ".so"
                needless |= any(file.match(pattern) for pattern in LEFT_OUT_OF_OTHERS)
                if path.is_file() and ".." not in file.parts and not needless:
                    destination = target / str(file)
                    destination.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(path, destination)
    # The folder's own name: `python -m watchdog` is what it is called in the checkout. Nobody else has it in here.
    (target / "watchdog").symlink_to("init_wg_watchdog")
    shutil.rmtree(target / "__pycache__", ignore_errors=True)
    shutil.copy2(venv / "pyvenv.cfg", root / venv.relative_to("/"))
    (root / venv.relative_to("/") / "bin").mkdir()
    (root / venv.relative_to("/") / "bin/python").symlink_to(os.path.realpath(sys.executable))
    for name, module in COMMANDS.items():
        # -I: neither the environment nor the current folder decides what is imported.
        script = root / "usr/local/bin" / name
        script.write_text(f"#!{venv}/bin/python -I\nimport sys\n\nfrom {module} import main\n\nsys.exit(main())\n")
        script.chmod(0o755)


def site_packages(venv: Path) -> Path:
    """Where a virtual environment has its packages."""
    return next(venv.glob("lib/python3*/site-packages"))


def imported(packages: Path) -> set[str]:
    """Top-level names that our packages import, wherever in their code, and what these import in turn."""
    finder = ModuleFinder(path=[str(packages), *(path for path in sys.path if path and path != sys.path[0])])
    for package in OURS:
        for file in sorted((packages / package).rglob("*.py")):
            finder.import_hook(module_name(file, packages))
    return {name.partition(".")[0] for name in finder.modules}


def module_name(file: Path, packages: Path) -> str:
    """What a file below a folder of packages is imported as."""
    return ".".join(file.relative_to(packages).with_suffix("").parts).removesuffix(".__init__")


def top_level(distribution: Distribution) -> set[str]:
    """The names that a distribution is imported by."""
    return {file.parts[0].removesuffix(".py") for file in distribution.files or () if file.suffix == ".py"}


def libraries(root: Path) -> list[Path]:
    """The shared libraries of everything copied so far. Returns their sources."""
    found: dict[str, None] = {}
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                if file.read(4) != b"\x7fELF":
                    continue
            listed = subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout
            if "not found" in listed:
                sys.exit(f"{path}: {listed}")
            found.update(dict.fromkeys(re.findall(r"(/\S+) \(0x", listed)))
    return [copy(root, Path(name)) for name in found]


def debian_packages(root: Path, copied: list[Path]) -> None:
    """Say which Debian packages the files are from, with their licences, as scanners expect it."""
    # dpkg knows files by the names they had before /lib, /bin and /sbin moved into /usr.
    names = {str(path) for path in copied} | {str(path).removeprefix("/usr") for path in copied}
    answer = subprocess.run(["dpkg-query", "-S", *sorted(names)], capture_output=True, text=True, check=False).stdout
    packages = sorted({line.partition(": ")[0].partition(":")[0] for line in answer.splitlines()})
    status = root / "var/lib/dpkg/status.d"
    status.mkdir(parents=True)
    for package in packages:
        shown = subprocess.run(["dpkg-query", "-s", package], capture_output=True, text=True, check=True).stdout
        (status / package).write_text(shown)
        licence = Path(f"/usr/share/doc/{package}/copyright")
        if licence.exists():
            target = root / licence.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(licence, target)


def compile_all(root: Path, venv: Path) -> None:
    """Byte code for every module, and sources of WITH_SOURCE. Unchecked: no file times are compared at any start."""
    packages = site_packages(root / venv.relative_to("/"))
    folders = [
        root / "usr/lib/python3.11",
        *(each for each in packages.iterdir() if each.is_dir() and not each.is_symlink()),
    ]
    for folder in folders:
        sourceless = folder.name not in WITH_SOURCE
        fine = compileall.compile_dir(
            folder,
            quiet=1,
            stripdir=str(root),
            legacy=sourceless,  # where Python looks when there is no source
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )
        if not fine:
            sys.exit(f"{folder}: not everything compiles")
        if sourceless:
            for source in folder.rglob("*.py"):
                source.unlink()


def try_out(root: Path, venv: Path) -> None:
    """In the new root: every module of ours is imported, and whatever any of them imports later."""
    packages = site_packages(root / venv.relative_to("/"))
    names = [module_name(file, packages) for package in OURS for file in (packages / package).rglob("*.py")]
    names = ["watchdog.__main__", *sorted(names), "dns.message", "dns.rdtypes.IN.A", "requests", "segno", "wgconfig"]
    code = "\n".join(f"import {name}" for name in names)
    for script in (ASK_PYROUTE2, code):
        subprocess.run(["chroot", root, venv / "bin/python", "-I", "-c", script], stdout=subprocess.DEVNULL, check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
