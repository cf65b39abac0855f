"""The search for the largest fleet that is served: doubling, then halving what is left. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench.lab.turns import rotated

SERVED_RATIO = 0.95
"""Share of the devices that must get their target rate for a fleet to count as served."""
MAX_FIRST_TOKEN_S = 5.0
"""Mean time to the first token of a device's answers beyond which it is not served."""
START_COUNT = 8
"""Devices of the first trial."""
FINE = 16
"""Neighbouring fleets differ by at most one device, or by 1 / FINE of the smaller fleet."""


@dataclass
class Search:
    """Results of one method so far. If a fleet is not served, no larger fleet counts as served."""

    most: int
    """Devices of the largest fleet that is tried."""
    measured: dict[int, bool] = field(default_factory=dict)
    """True if a fleet was served, by its number of devices."""

    def tell(self, devices: int, held: bool) -> None:
        """Add a result; a fleet that was tried twice must be served both times."""
        self.measured[devices] = self.measured.get(devices, True) and held

    @property
    def fails(self) -> int | None:
        """The smallest fleet that was not served; None: all were."""
        return min((devices for devices, held in self.measured.items() if not held), default=None)

    @property
    def holds(self) -> int:
        """The largest fleet below `fails` that was served; 0: none was."""
        limit = self.fails or self.most + 1
        return max((n for n, held in self.measured.items() if held and n < limit), default=0)

    @property
    def confirmed(self) -> bool:
        """True if the fleets of `holds` and `fails` are neighbours."""
        return self.fails is not None and self.fails - self.holds <= max(1, self.holds // FINE)

    def next(self) -> int | None:
        """Devices of the next trial; None: the search has ended."""
        if self.confirmed or self.holds >= self.most:
            return None
        if self.fails is None:
            return min(self.most, 2 * self.holds or START_COUNT)
        return (self.holds + self.fails) // 2


def explore(
    names: Sequence[str], most: int, measure: Callable[[str, int], bool], more: Callable[[], bool]
) -> dict[str, Search]:
    """Search each method's capacity, methods in turns.

    `measure` returns whether that many devices were served, and `more` whether there is time for
    another trial.
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
