"""Progress bar with amount and remaining time, on standard error if it is a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


class Advance(Protocol):
    def __call__(self, amount: int, note: str = "", /) -> None:
        """Adds the amount done since the last call; `note` is shown with the label."""


@contextmanager
def progress(label: str, total: int, *, unit: str = "bytes") -> Iterator[Advance]:
    """Shows a bar while the block runs. Yields the function that advances it."""
    console = Console(stderr=True)
    amount: list[ProgressColumn] = (
        [DownloadColumn(), TransferSpeedColumn()] if unit == "bytes" else [MofNCompleteColumn()]
    )
    columns: list[ProgressColumn] = [
        TextColumn("{task.description}"), BarColumn(), *amount, TimeRemainingColumn(),
    ]  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=total)

        def advance(done: int, note: str = "", /) -> None:
            bar.update(task, advance=done, description=f"{label} {note}" if note else None)

        yield advance
