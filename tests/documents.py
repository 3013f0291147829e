"""python -m tests.documents: writes docs/configuration.md from the table of settings (`make docs`)."""

from __future__ import annotations

from pathlib import Path

from init_wg.config.settings import TABLE

CONFIGURATION = Path(__file__).parents[1] / "docs/configuration.md"
READERS = {"setup": "`init-wg`", "watchdog": "watchdog", "both": "both"}
HEAD = """# Configuration

All settings come from the environment, and all are optional. Invalid values are rejected with exit
code 2; they never fall back to the default. An empty value counts as not set. `make docs` writes this
page from the table in `init_wg/config/settings.py`.

| name | default | read by | meaning |
|---|---|---|---|
"""
TAIL = """
## The WireGuard file

The file is a wg-quick file: Mullvad, Proton, IVPN, AirVPN, or your own. `PreUp`, `PostUp`, `PreDown`
and `PostDown` are never executed. `Table`, `FwMark` and `SaveConfig` are ignored, and the log says so.
`init-wg check FILE` validates a file anywhere, without privileges, and prints what it would set up.
"""


def configuration() -> str:
    """The page."""
    rows = []
    for each in TABLE:
        default = f"`{each.default}`" if each.default else "empty"
        rows.append(f"| `{each.name}` | {default} | {READERS[each.reader]} | {each.meaning} |")
    return HEAD + "\n".join(rows) + "\n" + TAIL


if __name__ == "__main__":
    CONFIGURATION.write_text(configuration())
