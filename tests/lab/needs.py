"""What a harness needs of this machine, and what is said where the machine lacks it. Standard library only.

Each harness declares its NEEDS; `demand` is for tests, `missing` for programs.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, NoReturn


class Needs(NamedTuple):
    """programs: each with the Debian package that has it. others: each says what is missing, or None."""

    programs: Mapping[str, str] = {}
    root: bool = False
    others: Sequence[Callable[[], str | None]] = ()


def tun() -> str | None:
    """For a WireGuard that is a process."""
    return None if os.path.exists("/dev/net/tun") else "/dev/net/tun"


def missing(*needs: Needs) -> str | None:
    """What this machine lacks of them, in words; None when nothing."""
    if any(each.root for each in needs) and os.geteuid():
        return "root"
    packages = {package for each in needs for program, package in each.programs.items() if not shutil.which(program)}
    if packages:
        return f"the Debian packages {', '.join(sorted(packages))}"
    return next((lacking for each in needs for other in each.others if (lacking := other())), None)


def demand(suite: str, *needs: Needs) -> None:
    """Skip, with the reason, the tests that ask where something is missing; under CI that is a failure."""
    if lacking := missing(*needs):
        give_up(f"{suite} needs {lacking}")


def give_up(reason: str) -> NoReturn:
    """Skip a test that this machine cannot run; under CI that is a failure."""
    import pytest  # demos and benchmarks run where it is not installed

    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
