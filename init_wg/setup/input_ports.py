"""VPN_INPUT_PORTS_FILE: the ports that a provider forwards to the pod, where they are only known at run time.

A client of the provider (NAT-PMP, say) writes them there, one for each line; the watchdog sees it.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from init_wg import log
from init_wg.design.firewall import killswitch
from init_wg.model import ports

if TYPE_CHECKING:
    from init_wg.config.settings import Settings

LARGEST = 4096  # bytes; a port has six


def extended(settings: Settings, ruleset: str) -> Settings:
    """With the file's ports beside those of VPN_INPUT_PORTS. Where the file is wrong, the ports that the ruleset has
    open stay so: they are what it said when it was right."""
    path = settings.input_ports_file
    if not path:
        return settings
    try:
        found = ports.merge([*settings.input_ports, *_read(path)])
    except (OSError, ValueError) as error:
        log.warning(f"VPN_INPUT_PORTS_FILE: {error}; the ports that are open stay as they are")
        found = ports.merge([*settings.input_ports, *killswitch.input_ports(ruleset, settings.interface)])
    return settings._replace(input_ports=found)


def _read(path: str) -> list[str]:
    """What it lists; none where there is no file, or nothing in it. Raises OSError, and ValueError with a sentence."""
    shown = log.printable(path)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # before open(), which would wait at a FIFO
            raise ValueError(f"{shown}: not a regular file: write the ports into one")
        with open(path, "rb") as file:
            data = file.read(LARGEST + 1)
    except (FileNotFoundError, NotADirectoryError):
        return []
    if len(data) > LARGEST:
        raise ValueError(f"{shown}: larger than 4 KiB: write ports into it, one for each line")
    words: list[str] = []
    for number, line in enumerate(data.decode("ascii", "replace").splitlines(), 1):
        content = line.partition("#")[0]
        try:
            words += ports.parse(content)
        except ValueError:
            raise ValueError(f"{shown}:{number}: not a port: write 1 to 65535, or a range like 50000-50100") from None
    return words
