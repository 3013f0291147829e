"""Runs tests/kernel/inside/ in guests: the same programs, on a kernel that has WireGuard.

Two at once, as each is a single processor: one for what stands in an order in a lab of its own, one for the rest.
"""

import re
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.kernel import guest

INSIDE = Path(__file__).with_name("inside")
FILES = {file.name for file in INSIDE.glob("test_*.py")}
PARTS = {"pod": {"test_init_wg.py", "test_watchdog.py"}}
PARTS["rest"] = FILES - PARTS["pod"]


@pytest.fixture(scope="module")
def guests() -> Iterator[dict[str, Future[guest.Result]]]:
    def boot(names: set[str]) -> guest.Result:
        files = [f"tests/kernel/inside/{name}" for name in sorted(names)]
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--tb=short", "--durations=5", *files]
        # The watchdog starts its children with -P: they are to find the files that are tested.
        return guest.run(command, environment={"PYTHONPATH": str(guest.PROJECT)}, timeout=900)

    with ThreadPoolExecutor() as pool:
        yield {part: pool.submit(boot, names) for part, names in PARTS.items()}


@pytest.mark.parametrize("part", PARTS)
def test_inside_the_guest(
    guests: dict[str, Future[guest.Result]], part: str, capfd: pytest.CaptureFixture[str]
) -> None:
    result = guests[part].result()
    with capfd.disabled():
        sys.stdout.write(f"\n{result.output}")
    # The report is on the screen already: no need to repeat it.
    if result.status != 0:
        pytest.fail(f"pytest in the guest ended with status {result.status}", pytrace=False)
    summary = result.output.splitlines()[-1]
    assert re.search(r"\b[1-9]\d* passed", summary)
    took = re.search(r" in ([\d.]+)s", summary)
    assert took
    assert float(took[1]) < result.seconds, "the guest's clock is fast: no waiting time in there means anything"
    assert "skipped" not in summary, "this kernel has everything: no test may be skipped"
