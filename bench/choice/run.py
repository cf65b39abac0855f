"""`edgespec choose`: measures what could draft for a target, ranks it and explains the choice."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.choice.candidates import Bounds, Space, check_profile, drafts, exported
from bench.choice.estimates import builtin_curve, read_curve
from bench.choice.ranking import Draft, Ranked, TargetTimes, ranked
from bench.choice.reasons import reasons, worth
from bench.choice.steps import Meter, described, measured, open_target
from bench.lab.report import print_json
from bench.lab.tables import Column, table
from bench.plan.run import check_rtts
from calibration.corpus import Sample
from calibration.decoder import load
from calibration.exit_heads.evidence import divide
from calibration.target import device, prepare
from edgespec.checkpoint import Checkpoint
from edgespec.errors import UsageError
from engines.machine.doctor import describe
from engines.step_times import BUSY_LOAD
from export.sources.open import open_checkpoint

MEASURED_TOKENS = 2_000
"""Answer tokens on which the agreement of copies is measured."""
NOTE = (
    "~ estimated (docs/pair.md). tokens/s: upper bound for one device (bench.plan.sketch). devices:"
    " of a busy cloud, relative to the target alone. Steps are those of this machine."
)
MAX_CONSOLE_COLUMNS = 1000
"""Characters of a table with many distances. No cell is cut off below."""
ANYTHING = Bounds()


@dataclass(frozen=True)
class ChoiceSettings:
    """Settings of a choice."""

    target: str
    """The user's name of the target."""
    profile: str
    rtts_ms: tuple[float, ...]
    bounds: Bounds = ANYTHING
    depths: tuple[int, ...] = ()
    shapes: Path | None = None
    """Output of `bench shapes --json`, for the agreement of shallower drafts."""
    target_ms: tuple[float, ...] = ()
    """Target's step of one token and its time for each further token; empty: measured here."""
    corpus: Path | None = None
    tokens: int = 20_000
    """Least size of the corpus."""
    threads: int = 0
    device: str = "auto"
    seed: int = 0

    def check(self) -> None:
        """Raises `UsageError` for settings that would fail after the measurements."""
        check_profile(self.profile)
        if not self.rtts_ms:
            raise UsageError("--rtt is a list of milliseconds, as in 0,10,50")
        check_rtts(self.rtts_ms)
        if self.target_ms and (len(self.target_ms) != 2 or self.target_ms[0] <= 0):
            raise UsageError(
                "--target-ms is the time of one token and that of each further one, as in 20,1.5"
            )


@dataclass(frozen=True)
class LeftOut:
    """A draft that exceeds the bounds."""

    draft: str
    profile: str
    reason: str


@dataclass(frozen=True)
class Choice:
    """Everything that was found; the JSON object."""

    target: str
    profile: str
    rtts_ms: Sequence[float]
    times: TargetTimes
    drafts: Sequence[Ranked]
    """Best first."""
    left_out: Sequence[LeftOut]
    chosen: str
    """Name of the best draft; empty if none is worth making."""
    reasons: Sequence[str]
    commands: Sequence[str]
    load_average: float
    """Load of the machine before the measurements."""


def run(settings: ChoiceSettings, *, as_json: bool) -> None:
    """Measures, prints the table, the reasons and the commands; with `as_json` a JSON object."""
    settings.check()
    choice = choose(settings)
    found = _table(choice)
    whole = Console(width=MAX_CONSOLE_COLUMNS).measure(found).maximum
    console = Console(width=max(Console().width, whole))
    console.print(found)
    for each in choice.left_out:
        console.print(f"left out: {each.draft} ({each.profile}), {each.reason}", highlight=False)
    for number, sentence in enumerate(choice.reasons, 1):
        console.print(f"{number}. {sentence}", highlight=False, markup=False, soft_wrap=True)
    for command in choice.commands:
        console.print(f"  {command}", highlight=False, markup=False, soft_wrap=True)
    if as_json:
        print_json({**vars(choice), "machine": describe()})


def choose(settings: ChoiceSettings) -> Choice:
    """Measures and ranks. Raises `UsageError` if no draft fits into the bounds."""
    load_average, *_ = os.getloadavg()
    checkpoint = open_checkpoint(settings.target)
    with tempfile.TemporaryDirectory(prefix="edgespec-choose-") as work:
        space = _space(settings, checkpoint, Path(work))
        space.layers()  # report errors before any work
        samples = _held_out(checkpoint, settings)
        bundle = exported(space)
        if settings.target_ms:
            target, times = None, described(*settings.target_ms)
        else:
            target = open_target(bundle, settings.threads)
            times = measured(target)
        meter = Meter(samples, target, times, settings.threads)
        found = list(drafts(space, bundle, meter))
    return conclude(settings, times, found, load_average)


def conclude(
    settings: ChoiceSettings,
    times: TargetTimes,
    found: Sequence[tuple[Draft, str]],
    load_average: float,
) -> Choice:
    """Ranks the drafts that exceed nothing, and explains the choice."""
    fitting = [draft for draft, excess in found if not excess]
    left_out = [LeftOut(d.name, d.profile, excess) for d, excess in found if excess]
    if not fitting:
        least = min((draft for draft, _ in found), key=lambda draft: draft.disk_bytes)
        raise UsageError(
            f"no draft of {settings.target} fits into the bounds; the smallest, {least.name} at "
            f"{least.profile}, takes {least.disk_bytes / 1e6:.0f} MB of disk and "
            f"{least.memory_bytes / 1e6:.0f} MB of memory"
        )
    best, *_ = order = ranked(fitting, times, settings.rtts_ms)
    return Choice(
        target=settings.target,
        profile=settings.profile,
        rtts_ms=settings.rtts_ms,
        times=times,
        drafts=order,
        left_out=left_out,
        chosen=best.draft.name if worth(best) else "",
        reasons=reasons(order, times, settings.rtts_ms),
        commands=best.draft.commands if worth(best) else (),
        load_average=round(load_average, 2),
    )


def _space(settings: ChoiceSettings, checkpoint: Checkpoint, work: Path) -> Space:
    shapes = settings.shapes
    curve = read_curve(shapes, settings.profile) if shapes else builtin_curve()
    return Space(
        settings.target, checkpoint, settings.profile, settings.depths, curve, settings.bounds, work
    )


def _held_out(checkpoint: Checkpoint, settings: ChoiceSettings) -> list[Sample]:
    """Answers of the target, which writes them if the corpus lacks them."""
    where = device(settings.device)
    corpus = prepare(
        checkpoint, load(checkpoint), settings.corpus, None, settings.tokens, settings.seed, where
    )
    context = checkpoint.architecture.context
    _, held_out = divide(corpus, settings.tokens, MEASURED_TOKENS, context)
    return held_out


def _table(choice: Choice) -> Table:
    columns = (
        Column("draft", "draft.name", left=True),
        Column("profile", "draft.profile", left=True),
        Column("disk MB", "draft.disk_bytes", ".0f", scale=1e-6),
        Column("memory MB", "draft.memory_bytes", ".0f", scale=1e-6),
        Column("agreement", "draft.shown_agreement"),
        Column("step ms", "draft.step_ms", ".2f"),
        Column("of target", "step_ratio", ".2f"),
        *(_speed(place, rtt) for place, rtt in enumerate(choice.rtts_ms)),
        Column("cloud ms/token", "cloud_ms", ".2f", best="lowest"),
        Column("devices", "devices", ".2f", best="highest"),
    )
    alone = 1e3 / choice.times.step_ms
    title = f"drafts by expected tokens/s (target alone: {alone:.1f}), best first"
    busy = choice.load_average > BUSY_LOAD
    note = f" The machine was busy (load {choice.load_average:.1f}): measure again." if busy else ""
    return table(title, columns, choice.drafts, caption=NOTE + note)


def _speed(place: int, rtt: float) -> Column:
    return Column(f"{rtt:g} ms", lambda row: row.tokens_per_s[place], ".1f", best="highest")
