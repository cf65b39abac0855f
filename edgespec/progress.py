"""Progress of long work: amount and time left, on stderr, and only on a terminal."""

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
        """Adds what was done since; `note` is shown beside the label until the next one."""


@contextmanager
def progress(label: str, total: int, *, unit: str = "bytes") -> Iterator[Advance]:
    """Shows a bar while the block runs; yields a function that takes the amount done since."""
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
