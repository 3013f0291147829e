"""The server's file that works, kept in memory: repairs go on while the one on disk is wrong.

In an anonymous memory file, which nobody without this process's own privileges can open, and which ends with it. It is
copied by the kernel, so that the key is never in this program's own memory.
"""

from __future__ import annotations

import os

from .loop import close_quietly

_LARGEST = 1 << 20
_OWN = "/proc/self/fd/"


def inherited(path: str) -> tuple[int, ...]:
    """The descriptors that a child must have in order to read `path`."""
    return (int(path.removeprefix(_OWN)),) if path.startswith(_OWN) else ()


class Remembered:
    """At most one file."""

    def __init__(self) -> None:
        self._fd = -1
        self._version = 0
        #: Whose file it is: the server's name.
        self.name = ""

    @property
    def path(self) -> str:
        """Where a child finds it that was started with `inherited(path)`; "" when there is none.

        Not by this process's own number: that it allows nobody to look into it includes its children.
        """
        return f"{_OWN}{self._fd}" if self._fd >= 0 else ""

    def take(self, path: str, version: int) -> None:
        """Copy this file, unless this version of it is here already. A file that leans on another is left out."""
        name = os.path.basename(path).removesuffix(".conf")
        if (version, name) == (self._version, self.name):
            return
        self.close()
        if os.path.exists(path.removesuffix(".conf") + ".address"):
            return
        try:
            copy = os.memfd_create(name, os.MFD_CLOEXEC)  # by which init_wg knows it
        except OSError:  # a name of more than 249 bytes
            return
        try:
            os.fchmod(copy, 0o600)
            with open(path, "rb", buffering=0) as file:
                os.sendfile(copy, file.fileno(), 0, _LARGEST)
        except OSError:
            close_quietly(copy)
            return
        self._fd, self._version, self.name = copy, version, name

    def close(self) -> None:
        """Forget it."""
        if self._fd >= 0:
            close_quietly(self._fd)
        self._fd, self._version, self.name = -1, 0, ""
