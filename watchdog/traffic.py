"""How much passed through the tunnel lately, for the picture on the status page. Pure."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

#: Seconds that one value stands for; values that are kept: ten minutes.
INTERVAL, KEPT = 10.0, 60


class Traffic:
    """The rates of the last ten minutes, oldest first, in bytes per second.

    `received` and `sent` are sequences of whole numbers, equally long.
    """

    def __init__(self) -> None:
        self._received: list[int] = []
        self._sent: list[int] = []
        self._began: float | None = None
        self._before = (0, 0)

    @property
    def received(self) -> Sequence[int]:
        """From the peers."""
        return self._received

    @property
    def sent(self) -> Sequence[int]:
        """To the peers."""
        return self._sent

    def counted(self, now: float, received: int, sent: int) -> None:
        """The device's counters, in bytes, at this second of the monotonic clock. A new device begins at 0 again."""
        if self._began is None:
            self._began, self._before = now, (received, sent)
            return
        seconds = now - self._began
        if seconds < INTERVAL:
            return
        for values, count, before in ((self._received, received, self._before[0]), (self._sent, sent, self._before[1])):
            values.append(int((count - before if count >= before else count) / seconds))
            del values[:-KEPT]
        self._began, self._before = now, (received, sent)
