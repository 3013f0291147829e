"""python -m tests.bench [NAME ...]: how fast it is, against what people would use otherwise. Root; Linux.

Interleaved runs, medians, ratios within the rounds. Goals are compared with, never enforced.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys

from tests.bench import measures, names, resident, serving
from tests.lab.lab import NEEDS, LabError
from tests.lab.needs import Needs, missing

TOOLS = Needs({"iperf3": "iperf3", "wrk": "wrk"})
BENCHMARKS = {**measures.BENCHMARKS, "names": (names.names, 15), **resident.RESIDENT, **serving.SERVING}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="Benchmarks; without a name, all of them.",
        epilog="; ".join(f"{name}: {measure.__doc__}" for name, (measure, _) in BENCHMARKS.items()),
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--runs", type=int, help="rounds of each benchmark")
    given = parser.parse_args()
    if unknown := [name for name in given.names if name not in BENCHMARKS]:
        parser.error(f"there is no {unknown[0]}; there is: {', '.join(BENCHMARKS)}")
    if lacking := missing(NEEDS, TOOLS):
        print(f"the benchmarks need {lacking}", file=sys.stderr)
        return 3
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    print(f"Linux {platform.release()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    try:
        for name, (measure, runs) in BENCHMARKS.items():
            if name in given.names or not given.names:
                measure(given.runs or runs)
    except KeyboardInterrupt:
        return 130
    except (LabError, RuntimeError) as error:
        print(f"the benchmark failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
