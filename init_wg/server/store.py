"""The register on its volume: one file, replaced as a whole or not at all.

Whatever ends this process, and whenever, the old file or the new one is there. Anything unexpected on the volume is an
error: a wrong mount must not give the server, and so all its peers, a new identity.
"""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from init_wg.config.source import shown
from init_wg.errors import ConfigError, KernelError
from init_wg.model.serving import FILE
from init_wg.server.design import register as registers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from init_wg.server.design.register import Register

#: How an unfinished file is called: it is no register, and goes when the next one is written.
_UNFINISHED = ".server.json."
#: mkfs makes it on every volume of its own.
_NOBODYS = ("lost+found",)
_LARGEST = 64 * 1024 * 1024


@contextmanager
def locked(folder: str) -> Iterator[None]:
    """One at a time: the setup, the watchdog's runs and people. The folder itself is locked: a full or read-only
    volume has no room for a file of its own. Raises ConfigError and KernelError."""
    try:
        holder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            f"{shown(folder)}: no such folder: mount a volume there (SERVER_DATA); without one, the peers' keys would "
            "be lost with the container"
        ) from None
    except OSError as error:
        raise _refused(folder, error) from None
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        yield
    except BlockingIOError:
        raise KernelError(f"{shown(folder)}: cannot be locked: the volume's file system has no locks") from None
    finally:
        os.close(holder)


def exists(folder: str) -> bool:
    """Is there a register, whatever state it is in?"""
    return os.path.lexists(os.path.join(folder, FILE))


def load(folder: str) -> Register | None:
    """The register; None on an empty volume. Raises ConfigError when it is damaged, or missing among other files."""
    path = os.path.join(folder, FILE)
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_LARGEST)
    except FileNotFoundError:
        _refuse_others(folder)
        return None
    except UnicodeDecodeError:
        raise _damaged(path, "it is not text") from None
    except OSError as error:
        raise _refused(path, error) from None
    try:
        return registers.decode(text)
    except registers.DamagedError as error:
        raise _damaged(path, str(error)) from None


def save(folder: str, register: Register) -> None:
    """All of it or nothing. Raises KernelError; the old file is there then."""
    path, unfinished = os.path.join(folder, FILE), os.path.join(folder, f"{_UNFINISHED}{os.getpid()}")
    data = registers.encode(register).encode()
    try:
        with suppress(PermissionError):  # a volume may belong to somebody else; the file itself is 0600
            os.chmod(folder, 0o700)
        _clear(folder)
        try:
            _write(unfinished, data)
            os.rename(unfinished, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(unfinished)
            raise
        _flush(folder)
    except OSError as error:
        raise _refused(folder, error) from None


def _clear(folder: str) -> None:
    """Remove what a SIGKILL has left."""
    for name in os.listdir(folder):
        if name.startswith(_UNFINISHED):
            os.unlink(os.path.join(folder, name))


def _write(path: str, data: bytes) -> None:
    """On the disk before it gets its name: after a crash of the machine, the name may lead to the contents only."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        while data:
            data = data[os.write(file, data) :]
        os.fsync(file)
    finally:
        os.close(file)


def _flush(folder: str) -> None:
    """The new name is on the disk, too."""
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _refuse_others(folder: str) -> None:
    try:
        there = sorted(name for name in os.listdir(folder) if not name.startswith(".") and name not in _NOBODYS)
    except OSError as error:
        raise _refused(folder, error) from None
    if there:
        named = ", ".join(shown(name)[:40] for name in there[:3])
        raise ConfigError(
            f"{shown(folder)}: there is {named}, but no {FILE}: mount the right volume (SERVER_DATA), restore {FILE} "
            "from a copy, or give an empty folder for a new server with new keys"
        )


def _damaged(path: str, why: str) -> ConfigError:
    return ConfigError(
        f"{shown(path)}: damaged ({why}): restore it from a copy, because the keys of all peers are in it; nothing was "
        "changed"
    )


def _refused(path: str, error: OSError) -> KernelError:
    where = shown(path)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return KernelError(f"{where}: the volume is full: make room on it; the keys in it are unharmed")
    if error.errno == errno.EROFS:
        return KernelError(f"{where}: the volume is read-only: mount it writable, because there is something to keep")
    if error.errno in (errno.EACCES, errno.EPERM):
        return KernelError(f"{where}: no permission: give the folder and its files to root (chown -R 0:0)")
    return KernelError(f"{where}: {os.strerror(error.errno or 0)}: check the volume")
