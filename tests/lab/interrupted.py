"""init_wg, killed by SIGKILL right after its n-th step: INIT_WG_STOP_AFTER=n python -m tests.lab.interrupted up

Step 0 is the lockdown. The product itself has no such switch: here its one place that carries out steps is
wrapped. With fewer steps than n it ends as usual, so a caller counts up until the exit status is not SIGKILL's.
"""

from __future__ import annotations

import os
import signal
import sys

from init_wg import __main__
from init_wg.config.settings import Settings
from init_wg.design.steps import Step
from init_wg.kernel.netlink import Socket
from init_wg.setup import apply, lockdown

left = int(os.environ["INIT_WG_STOP_AFTER"])


def count_down() -> None:
    """One step is done."""
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1


def main() -> None:
    """As python -m init_wg."""
    seal, run = lockdown.seal, apply.run

    def counted_seal() -> bool:
        sealed = seal()
        count_down()
        return sealed

    def counted_run(kernel: Socket, settings: Settings, step: Step) -> None:
        run(kernel, settings, step)
        count_down()

    lockdown.seal = counted_seal
    apply.run = counted_run
    sys.argv[0] = "init-wg"
    __main__.main()


if __name__ == "__main__":
    main()
