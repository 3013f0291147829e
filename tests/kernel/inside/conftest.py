"""What is here runs inside the guest only: ../test_kernel.py boots one and runs all of it. For a part:

.venv/bin/python -m tests.kernel.guest -- .venv/bin/python -m pytest tests/kernel/inside -k NAME
"""

import os
from collections.abc import Iterator

import pytest

from tests.kernel.inside.shell import sh

collect_ignore_glob = [] if os.environ.get("INIT_WG_GUEST") == "1" else ["test_*.py"]


@pytest.fixture
def pair() -> Iterator[tuple[str, str]]:
    """Two network namespaces with a cable between them.

    left: cable 192.0.2.1, 2001:db8::1 ─────── right: cable 192.0.2.2, 2001:db8::2
    """
    names = ("left", "right")
    for name in names:
        sh(f"ip netns add {name}; ip -n {name} link set lo up")
    sh("ip link add cable netns left type veth peer name cable netns right")
    for number, name in enumerate(names, 1):
        sh(f"ip -n {name} address add 192.0.2.{number}/24 dev cable")
        sh(f"ip -n {name} address add 2001:db8::{number}/64 dev cable nodad")
        sh(f"ip -n {name} link set cable up")
    yield names
    sh("ip -n left link delete cable")  # now, and not when the kernel finds the time for a whole namespace
    sh("ip netns delete left; ip netns delete right")
