"""`edgespec bench chaos`: faults at random on real processes, and answers that must stay exact.

Two worlds run at once, one on plain loopback and one with CURVE keys and a list of devices. Each is
a cloud with a toy target, a link that misbehaves, and devices with the real client. Faults come one
after another. Every answer is compared with the target alone.
"""

from __future__ import annotations

import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.chaos.figures import ChaosFigures, Ledger
from bench.chaos.settings import ChaosSettings
from bench.chaos.world import World
from bench.lab.report import print_json
from edgespec.errors import EdgespecError
from edgespec.progress import progress

WORLDS = {"plain": False, "keys": True}
"""Names of the worlds, and whether they have keys."""
LEAST_WIDTH_COLUMNS = 100


def run(settings: ChaosSettings, *, as_json: bool) -> None:
    """Measure and print. Raises `EdgespecError` if a token was wrong or an answer was lost."""
    settings.check()
    figures = measure(settings)
    console = Console(width=max(Console().width, LEAST_WIDTH_COLUMNS), highlight=False)
    console.print(chaos_table(figures))
    for sentence in figures.trouble:
        console.print(sentence, markup=False)
    if as_json:
        print_json(figures)
    if figures.failed:
        raise EdgespecError(
            f"{figures.wrong_tokens} wrong tokens, {figures.lost_answers} lost answers, "
            f"{figures.crashes} crashes with --seed {settings.seed}"
        )


def measure(settings: ChaosSettings) -> ChaosFigures:
    """Figures of one run. Raises `EdgespecError` if a process cannot be started."""
    ledger, began = Ledger(), time.monotonic()
    errors: list[Exception] = []

    def live(world: World, end: float) -> None:
        try:
            world.torment(end)
            world.finish()
        except Exception as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    with tempfile.TemporaryDirectory(prefix="edgespec-chaos-") as folder, ExitStack() as stack:
        worlds = []
        for name, keys in WORLDS.items():
            place = Path(folder) / name
            place.mkdir()
            worlds.append(stack.enter_context(World(name, place, settings, ledger, keys=keys)))
        end = time.monotonic() + 60 * settings.minutes
        threads = [threading.Thread(target=live, args=(world, end)) for world in worlds]
        for thread in threads:
            thread.start()
        with progress("chaos", round(60 * settings.minutes), unit="s") as advance:
            while any(thread.is_alive() for thread in threads):
                time.sleep(1.0)
                counts = ledger.counts
                advance(
                    1,
                    f"{ledger.faults.total()} faults, {counts['answers']} answers, "
                    f"{counts['wrong']} wrong, {counts['lost']} lost",
                )
        clouds = {world.name: world.use for world in worlds}
    if errors:
        raise errors[0]
    return ledger.figures((time.monotonic() - began) / 60, settings.seed, clouds)


def chaos_table(figures: ChaosFigures) -> Table:
    table = Table(title=f"{figures.minutes:g} minutes of faults, seed {figures.seed}")
    table.add_column("what")
    table.add_column("figure", justify="right")
    for kind, count in figures.faults.items():
        table.add_row(f"fault: {kind}", f"{count}")
    table.add_section()
    rows = {
        "answers": figures.answers,
        "tokens": figures.tokens,
        "wrong tokens": figures.wrong_tokens,
        "lost answers": figures.lost_answers,
        "crashes": figures.crashes,
        "answers that ended without a cloud": figures.unverified_answers,
        "answers of killed devices": figures.abandoned_answers,
        "resumed": figures.resumed,
        "measured recoveries from a cut link": figures.recovery_count,
    }
    for name, count in rows.items():
        table.add_row(name, f"{count}")
    table.add_row(
        "recovery, p50 and p99 (s)", f"{figures.recovery_p50_s:g}, {figures.recovery_p99_s:g}"
    )
    for name, use in figures.clouds.items():
        table.add_row(
            f"cloud '{name}': memory at first, peak, final (MB)",
            f"{use.first_mb:.0f}, {use.peak_mb:.0f}, {use.final_mb:.0f}",
        )
        table.add_row(
            f"cloud '{name}': file descriptors at first, peak, final",
            f"{use.first_files}, {use.peak_files}, {use.final_files}",
        )
    return table
