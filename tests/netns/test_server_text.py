"""Every ruleset of a server goes into the kernel, and comes back from nft byte for byte."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.lab import PROJECT

GOLDEN = PROJECT / "tests/unit/golden/server"
#: Loads a text in a network of its own, and prints what the program itself makes of nft's listing.
ROUND = """
import subprocess, sys
sys.path.insert(0, sys.argv[1])
from init_wg.kernel import nft
subprocess.run(["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "other"], check=True)
nft.load(open(sys.argv[2]).read())
print(nft.listing(), end="")
"""


@pytest.mark.parametrize("file", sorted(GOLDEN.glob("*.nft")), ids=lambda file: file.stem)
def test_nft_returns_what_it_was_given(file: Path) -> None:
    argv = ["unshare", "--net", sys.executable, "-c", ROUND, str(PROJECT), str(file)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == file.read_text()
