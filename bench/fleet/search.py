"""The largest fleet that is served as promised: doubling, then halving what is left. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

SHARE = 0.95
"""Of the devices, that must get the rate they were promised."""
FIRST_TOKEN = 5.0
"""Seconds that a device waits for its answers to begin, on average, if it is served."""
START = 8
"""Devices of the first measurement."""
FINE = 16
"""Neighbours are at most one device apart, or 1 / FINE of the smaller."""


@dataclass
class Search:
    """What is known about one method. A fleet that fails speaks for every larger one."""

    most: int
    """Devices, beyond which nobody looks."""
    measured: dict[int, bool] = field(default_factory=dict)
    """Whether so many were served."""

    def tell(self, devices: int, held: bool) -> None:
        self.measured[devices] = self.measured.get(devices, True) and held

    @property
    def fails(self) -> int | None:
        """The smallest fleet that was not served; None: none was too large."""
        return min((devices for devices, held in self.measured.items() if not held), default=None)

    @property
    def holds(self) -> int:
        """The largest below that which was served; 0: none was."""
        limit = self.fails or self.most + 1
        return max((n for n, held in self.measured.items() if held and n < limit), default=0)

    @property
    def confirmed(self) -> bool:
        """Whether a fleet hardly larger was measured, and not served."""
        return self.fails is not None and self.fails - self.holds <= max(1, self.holds // FINE)

    def next(self) -> int | None:
        """How many devices to measure now; None: nothing is left to be found out."""
        if self.confirmed or self.holds >= self.most:
            return None
        if self.fails is None:
            return min(self.most, 2 * self.holds or START)
        return (self.holds + self.fails) // 2


def explore(
    names: Sequence[str], most: int, measure: Callable[[str, int], bool], more: Callable[[], bool]
) -> dict[str, Search]:
    """Each method's capacity. Methods take turns, the first another one each time, so that a
    machine whose speed drifts treats them alike.

    `measure` tells whether so many devices were served; `more` whether there is time for that.
    """
    searches = {name: Search(most) for name in names}
    turn = 0
    while True:
        waiting = [name for name in names if searches[name].next() is not None]
        if not waiting:
            return searches
        for name in rotated(waiting, turn):
            devices = searches[name].next()
            if devices is None or not more():
                return searches
            searches[name].tell(devices, measure(name, devices))
        turn += 1


def rotated(names: Sequence[str], turn: int) -> list[str]:
    """The same names, from another one on each turn."""
    start = turn % len(names)
    return [*names[start:], *names[:start]]
