"""Boots one guest and runs tests/kernel/inside/ in it: the same programs, on a kernel that has WireGuard."""

import re
import sys

import pytest

from tests.kernel import guest


def test_inside_the_guest(capfd: pytest.CaptureFixture[str]) -> None:
    def echo(chunk: bytes) -> None:
        with capfd.disabled():  # a report to watch: it takes a while
            sys.stdout.write(chunk.decode(errors="replace"))
            sys.stdout.flush()

    result = guest.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/kernel/inside"],
        timeout=600,
        echo=echo,
    )
    # The report is on the screen already: no need to repeat it.
    if result.status != 0:
        pytest.fail(f"pytest in the guest ended with status {result.status}", pytrace=False)
    summary = result.output.splitlines()[-1]
    assert re.search(r"\b[1-9]\d* passed", summary)
    assert "skipped" not in summary, "this kernel has everything: no test may be skipped"
