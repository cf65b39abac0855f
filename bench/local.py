"""`edgespec bench local`: step times, overhead, and speed with and without drafting.

Steps and methods take turns, so that a machine whose speed drifts slows them alike; figures are
medians. The overhead of loop and link is an upper bound: the round of a table-driven toy pair
between two real processes over TCP, whose steps take next to no time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from bench.demo import PROMPTS
from bench.lab.builtin import builtin_bundle
from bench.lab.energy import device_options, each_token, note
from bench.lab.processes import cloud, cores, edge, pinned
from bench.lab.report import jsonable, print_json
from bench.lab.tables import empty_table
from bench.lab.toy_cloud import toy_cloud, toy_hello
from edge_runtime.handshake import DeviceIdentity
from edge_runtime.loop import EdgeLoop
from edgespec.config import CloudSettings, EdgeSettings, Request, Tactics
from edgespec.energy_report import Energy, combined
from edgespec.errors import UsageError
from edgespec.manifest import Bundle
from edgespec.progress import progress
from edgespec.sampling import Sampling
from edgespec.telemetry import AnswerStats, speed
from edgespec.transport import DealerLink
from engines.backends import open_draft
from engines.drafters.model import ModelDrafter
from engines.machine.doctor import Machine, describe
from engines.onnxruntime_backend.engine import OrtSettings, load_target
from engines.step_times import RepeatedStep, medians_ms
from engines.toy import ToyEngine

STEP_TOKENS = (1, 2, 4, 8)
"""Tokens of each row of the measured target steps."""
STEP_ROWS = (1, 4, 16)
PAST_TOKENS = 64
"""Cached positions of every row."""
REPEAT_COUNT = 15
DRAFT_TOKENS = 4
"""Draft length of the toy pair."""
ANSWER_TOKENS = 64
TOY_TOKENS = 1500
"""Length of the toy pair's answer."""
TOY_CONTEXT_TOKENS = TOY_TOKENS + 100
DRAFTING, PLAIN = "drafting", "plain"


class StepTimes(msgspec.Struct, frozen=True):
    """Median times of a step."""

    draft_step_ms: float
    target_step_ms: dict[str, float]
    """Times by rows and tokens of each row, as in `4x2`."""

    def target_ms(self, rows: int, tokens: int) -> float:
        return self.target_step_ms[f"{rows}x{tokens}"]


class Overhead(msgspec.Struct, frozen=True):
    """Time of a round in which no model runs."""

    overhead_ms_per_round: float
    overhead_share_of_round: float
    """Share of the round of a real pair."""


class AnswerSpeeds(msgspec.Struct, frozen=True, kw_only=True):
    """Answers of a real pair with and without drafting."""

    energy: dict[str, Energy] | msgspec.UnsetType = msgspec.UNSET
    """Energy of the machine while answers were written; unset if it was not measured."""
    tokens_per_s_drafting: float
    tokens_per_s_plain: float
    speedup: float
    loop_share_drafting: float
    """Share of the time that the device's loop takes apart from drafting and waiting."""
    accepted_per_round: float
    identical: bool
    """True if all answers have the same tokens with and without drafting."""


@dataclass(frozen=True)
class LocalFigures:
    """Result of `bench local`."""

    steps: StepTimes
    overhead: Overhead
    speeds: AnswerSpeeds
    drafter: str
    threads: int
    machine: Machine

    def as_json(self) -> dict[str, object]:
        """All figures in one flat object."""
        return {
            **jsonable(self.steps),
            **jsonable(self.overhead),
            **jsonable(self.speeds),
            "drafter": self.drafter,
            "threads": self.threads,
            "machine": jsonable(self.machine),
        }


def run(
    bundle: Path | None, *, drafter: str, threads: int, as_json: bool, energy: Path | None = None
) -> None:
    """Measures and prints. `energy` is the root of the sensors, or None to measure no energy.

    Raises `UsageError` if `drafter` is not a draft of the bundle.
    """
    opened = Bundle.open(bundle) if bundle else builtin_bundle()
    drafter = drafter or opened.manifest.default_draft
    if not drafter:
        raise UsageError(f"{opened.folder} has no draft to measure; export it with --draft")
    steps = step_times(opened, drafter, threads)
    figures = LocalFigures(
        steps=steps,
        overhead=overhead(steps),
        speeds=answer_speeds(opened, drafter, energy),
        drafter=drafter,
        threads=threads,
        machine=describe(),
    )
    Console().print(_table(figures, opened))
    if figures.speeds.energy is not msgspec.UNSET:
        Console(highlight=False).print(note(figures.speeds.energy), markup=False)
    if as_json:
        print_json(figures.as_json())


def step_times(bundle: Bundle, drafter: str, threads: int) -> StepTimes:
    """Step times of the draft, and of the target for all `STEP_ROWS` and `STEP_TOKENS`."""
    slots = len(STEP_TOKENS) * sum(STEP_ROWS)
    target = load_target(bundle, OrtSettings(threads=threads, slots=slots))
    draft = open_draft(bundle, drafter, threads, 1)
    steps = {
        f"{rows}x{tokens}": RepeatedStep(target, rows, tokens, PAST_TOKENS)
        for rows in STEP_ROWS
        for tokens in STEP_TOKENS
    }
    steps["draft"] = RepeatedStep(draft, 1, 1, PAST_TOKENS)
    with progress("steps", REPEAT_COUNT + 1, unit="turns") as advance:
        times = medians_ms(steps, REPEAT_COUNT, advance)
    medians = {name: round(taken, 3) for name, taken in times.items()}
    return StepTimes(medians.pop("draft"), medians)


def overhead(steps: StepTimes) -> Overhead:
    """Round of the toy pair, and its share of a round with `steps`."""
    cloud_settings = CloudSettings(bind="tcp://127.0.0.1:*")
    with toy_cloud(TOY_CONTEXT_TOKENS, cloud_settings) as toy, pinned(cores()[0]):
        settings = EdgeSettings(
            connect=toy.endpoint, tactics=Tactics("none"), draft_length=DRAFT_TOKENS
        )
        link = DealerLink(toy.endpoint)
        drafter = ModelDrafter(ToyEngine(context=TOY_CONTEXT_TOKENS, layers=1), "toy")
        loop = EdgeLoop.connect(link, drafter, DeviceIdentity(toy_hello("bench")), settings)
        answer = loop.start(Request((1, 2, 3), TOY_TOKENS, Sampling()))
        for _ in loop.write(answer):
            pass
        link.close()
    stats = answer.stats
    empty_ms = (stats.seconds - stats.first_token_seconds) / stats.rounds * 1e3
    steps_ms = DRAFT_TOKENS * steps.draft_step_ms + steps.target_ms(1, DRAFT_TOKENS)
    return Overhead(round(empty_ms, 4), round(empty_ms / (empty_ms + steps_ms), 5))


def answer_speeds(bundle: Bundle, drafter: str, energy: Path | None = None) -> AnswerSpeeds:
    """Speed of device and cloud as real processes, each on one core, with and without drafting in
    turns, and the energy of both together while an answer is written."""
    methods = {DRAFTING: ("--drafter", drafter), PLAIN: ("--mode", "cloud")}
    runs: dict[str, list[AnswerStats]] = {name: [] for name in methods}
    with (
        cloud(bundle.folder, "--no-hints") as endpoint,
        progress("answers", len(methods) * len(PROMPTS), unit="answers") as advance,
    ):
        for prompt in PROMPTS:
            for name, options in methods.items():
                limited = [*options, "--max-tokens", str(ANSWER_TOKENS), *device_options(energy)]
                runs[name].append(edge(bundle.folder, endpoint, prompt, limited))
                advance(1)
    drafting, plain = runs[DRAFTING], runs[PLAIN]
    fast, slow = speed(drafting), speed(plain)
    used = {name: combined([s.energy for s in stats if s.energy]) for name, stats in runs.items()}
    loop_seconds = sum(stats.loop_seconds for stats in drafting)
    accepted = sum(stats.accepted for stats in drafting)
    return AnswerSpeeds(
        energy=used if energy else msgspec.UNSET,
        tokens_per_s_drafting=round(fast, 2),
        tokens_per_s_plain=round(slow, 2),
        speedup=round(fast / slow, 3),
        loop_share_drafting=round(loop_seconds / sum(stats.seconds for stats in drafting), 5),
        accepted_per_round=round(accepted / sum(stats.rounds for stats in drafting), 3),
        identical=all(a.token_ids == b.token_ids for a, b in zip(drafting, plain, strict=True)),
    )


def _table(figures: LocalFigures, bundle: Bundle) -> Table:
    target, steps, speeds = bundle.manifest.target, figures.steps, figures.speeds
    name = f"{target.origin.name}, {target.precisions.layers}"
    table = empty_table(f"{name}, {figures.threads} thread(s)", "milliseconds a step, median")
    for header in ("", *(f"{n} token{'s' * (n > 1)}" for n in STEP_TOKENS)):
        table.add_column(header)
    for rows in STEP_ROWS:
        cells = [f"{steps.target_ms(rows, tokens):.2f}" for tokens in STEP_TOKENS]
        table.add_row(f"target, {rows} row{'s' * (rows > 1)}", *cells)
    table.add_row(f"draft {figures.drafter}", f"{steps.draft_step_ms:.2f}")
    table.add_row("loop and link, a round", f"{figures.overhead.overhead_ms_per_round:.3f}")
    table.add_row("… share of a round", f"{figures.overhead.overhead_share_of_round:.2%}")
    table.add_row("loop, policy and packets, streaming", f"{speeds.loop_share_drafting:.2%}")
    table.add_section()
    table.add_row("tokens/s, drafting", f"{speeds.tokens_per_s_drafting:.1f}")
    table.add_row("tokens/s, plain", f"{speeds.tokens_per_s_plain:.1f}")
    table.add_row("ratio", f"{speeds.speedup:.2f}")
    for name, energy in (speeds.energy or {}).items():
        table.add_row(f"J a token, {name}", each_token(energy))
    return table
