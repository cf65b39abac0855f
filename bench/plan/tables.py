"""Tables of simulated speeds, and of simulated speeds compared with measured ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich.table import Table

from bench.lab.methods import CLOUD, METHODS
from bench.lab.tables import MIN_WIDTH_COLUMNS, Column, table
from bench.plan.figures import ProfilePlan, SpeedRow

SKETCH = "sketch"
SKETCH_NOTE = (
    "cloud: tokens a second; all others: ratios to it. "
    "sketch: the best of streaming alone, on paper, without overheads or branches."
)
COMPARED_METHODS = (*(name for name in METHODS if name != CLOUD), SKETCH)
"""Methods that are shown relative to the cloud alone."""


class ComparedSpeed(NamedTuple):
    """Speeds of one method at one round-trip time, in tokens/s."""

    rtt_ms: float
    method: str
    measured: float
    simulated: float

    @property
    def error(self) -> float:
        """Error of the simulation, relative to the measured speed."""
        return self.simulated / self.measured - 1


def plan_table(plan: ProfilePlan) -> Table:
    """One row for each round-trip time: the cloud's tokens/s, and the ratios of the other methods
    to it. A dash stands for a method that the hardware does not support."""
    columns = [
        Column("RTT\nms", "rtt_ms", "g"),
        Column("cloud\ntokens/s", lambda row: row.tokens_per_s[CLOUD], ".1f"),
        *(Column(name, _ratio(name), ".2f") for name in COMPARED_METHODS),
    ]
    return table(plan.name, columns, plan.rows, min_width=MIN_WIDTH_COLUMNS)


def _ratio(method: str) -> Callable[[SpeedRow], float | None]:
    return lambda row: row.ratio_to_cloud.get(method)


def compared_table(pair: str, speeds: Sequence[ComparedSpeed], tolerance: float) -> Table:
    """One row for each speed. An exclamation mark stands for a relative error above `tolerance`."""
    columns = [
        Column("RTT\nms", "rtt_ms", "g", once=True),
        Column("method", "method", left=True),
        Column("measured\ntokens/s", "measured", ".1f"),
        Column("simulated\ntokens/s", "simulated", ".1f"),
        Column("error\n%", "error", "+.1f", scale=100),
        Column("", lambda row: "!" if abs(row.error) > tolerance else ""),
    ]
    return table(
        f"{pair}: simulated and measured",
        columns,
        speeds,
        caption=f"!: differs by more than {tolerance:.0%}",
        min_width=MIN_WIDTH_COLUMNS,
    )
