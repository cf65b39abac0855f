"""Tables of simulated methods, and of what was measured beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from rich import box
from rich.table import Table

SKETCH_NOTE = (
    "cloud: tokens a second; all others: ratios to it. "
    "sketch: the best of streaming alone, on paper, without overheads or branches."
)
WIDTH = 60
"""Characters of a table, at least, so that captions and notes have room."""
COLUMNS = ("lockstep", "exits", "cloud-draft", "edgespec", "sketch")


class Compared(NamedTuple):
    """One method at one round-trip time; tokens a second."""

    rtt_ms: float
    method: str
    measured: float
    simulated: float

    @property
    def error(self) -> float:
        """Of the simulation, relative to what was measured."""
        return self.simulated / self.measured - 1


def plan_table(figures: dict[str, Any]) -> Table:
    """A row an RTT: the cloud's tokens a second, and the ratios of the others to it; a dash where
    the hardware has no such method."""
    table = plain_table(figures["name"], min_width=WIDTH)
    for header in ("RTT\nms", "cloud\ntokens/s", *COLUMNS):
        table.add_column(header, justify="right", no_wrap=True)
    for rtt in figures["rtts_ms"]:
        speeds, ratios = figures["tokens_per_s"][f"{rtt:g}"], figures["ratio_to_cloud"][f"{rtt:g}"]
        said = [f"{ratios[name]:.2f}" if name in ratios else "–" for name in COLUMNS]
        table.add_row(f"{rtt:g}", f"{speeds['cloud']:.1f}", *said)
    return table


def plan_notes(figures: dict[str, Any]) -> str:
    """Where the numbers come from."""
    said = f"{figures['recording']}, {figures['prompts']} answers: agreement"
    return f"{figures['source']}\n{said} {figures['agreement']:.2f}"


def compared_table(pair: str, cells: Sequence[Compared], tolerance: float) -> Table:
    """A row a cell; those beyond the tolerance (a share) are marked."""
    table = plain_table(
        f"{pair}: simulated and measured", f"!: differs by more than {tolerance:.0%}", WIDTH
    )
    for header in ("RTT\nms", "method", "measured\ntokens/s", "simulated\ntokens/s", "error\n%"):
        table.add_column(header, justify="left" if header == "method" else "right", no_wrap=True)
    table.add_column("")
    for number, cell in enumerate(cells):
        new = not number or cells[number - 1].rtt_ms != cell.rtt_ms
        table.add_row(
            f"{cell.rtt_ms:g}" if new else "",
            cell.method,
            f"{cell.measured:.1f}",
            f"{cell.simulated:.1f}",
            f"{100 * cell.error:+.1f}",
            "!" if abs(cell.error) > tolerance else "",
        )
    return table


def plain_table(title: str, caption: str = "", min_width: int | None = None) -> Table:
    return Table(
        title=title,
        caption=caption or None,
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
        title_justify="left",
        caption_justify="left",
        min_width=min_width,
    )
