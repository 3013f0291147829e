"""Every ruleset of a server, and every table of a machine, comes back from the kernel and nft byte for byte."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.lab import PROJECT

GOLDEN = PROJECT / "tests/unit/golden"
#: Loads a text in a network of its own, and prints what the program itself makes of nft's listing.
ROUND = """
import subprocess, sys
sys.path.insert(0, sys.argv[1])
from init_wg.kernel import nft
subprocess.run(["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "other"], check=True)
nft.load(open(sys.argv[2]).read())
print(nft.tables(nft.everything(), sys.argv[3]), end="")
"""


@pytest.mark.parametrize(
    "file",
    sorted((*GOLDEN.glob("server/*.nft"), *GOLDEN.glob("node/*.nft"))),
    ids=lambda file: f"{file.parent.stem}-{file.stem}",
)
def test_nft_returns_what_it_was_given(file: Path) -> None:
    table = "init_wg" if file.parent.stem == "server" else "init_wg_node"
    argv = ["unshare", "--net", sys.executable, "-c", ROUND, str(PROJECT), str(file), table]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == file.read_text()
