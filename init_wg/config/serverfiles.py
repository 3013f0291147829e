"""Where WG_CONFIG's files are: one file, every *.conf of a folder, or those of a folder that match a pattern.

The setup and the watchdog both ask here, so that they mean the same files. Standard library only, and little of it.
"""

import os


def split(path: str) -> tuple[str, str]:
    """The folder and the pattern for names in it; ("", "") for a path that is meant as it is written.

    Only the last part may have a *, which stands for any characters. A file of that very name is itself.
    """
    folder, _, last = path.rpartition("/")
    if "*" not in last or os.path.lexists(path):
        return "", ""
    return folder or ("/" if path.startswith("/") else "."), last


def listing(path: str) -> tuple[str, list[str]]:
    """The folder and, in name order, the names in it that are servers' files.

    Raises NotADirectoryError when the path is a file, and OSError or ValueError (a NUL in it) when it cannot be listed.
    """
    folder, pattern = split(path)
    folder = folder or path
    # A Kubernetes Secret is a folder of symlinks into "..data", hence no names with a dot in front.
    names = [name for name in os.listdir(folder) if name.endswith(".conf") and not name.startswith(".")]
    return folder, sorted(name for name in names if not pattern or matches(name, pattern))


def file_of(path: str, server: str) -> str:
    """The file of the server of this name."""
    folder, pattern = split(path)
    if pattern or os.path.isdir(path):
        return f"{folder or path}/{server}.conf"
    return path


def matches(name: str, pattern: str) -> bool:
    """Is the name the pattern, in which each * stands for any characters, or none? fnmatch would import `re`."""
    first, *rest = pattern.split("*")
    if not rest:
        return name == pattern
    last = rest.pop()
    if not name.startswith(first) or not name.endswith(last) or len(name) < len(first) + len(last):
        return False
    middle = name[len(first) : len(name) - len(last)]
    for part in rest:
        _, found, middle = middle.partition(part) if part else ("", "*", middle)
        if not found:
            return False
    return True
