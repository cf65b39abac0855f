"""`edgespec bench local`: what a step costs here, and what everything that is not a step costs.

Configurations take turns, so that a machine whose speed drifts slows them alike; figures are
medians. The overhead of loop and wire is the round of a table-driven toy pair between two real
processes over TCP, whose own steps cost next to nothing: an upper bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.demo import PROMPTS
from bench.lab.builtin import builtin_bundle
from bench.lab.energy import device_options, each_token, note
from bench.lab.processes import cloud, cores, edge, pinned
from bench.lab.report import print_json
from bench.lab.toy_cloud import toy_cloud, toy_hello
from edge_runtime.handshake import DeviceIdentity
from edge_runtime.loop import EdgeLoop
from edgespec.config import CloudSettings, EdgeSettings, Request, Tactics
from edgespec.energy_report import combined
from edgespec.errors import UsageError
from edgespec.manifest import Bundle
from edgespec.progress import progress
from edgespec.sampling import Sampling
from edgespec.telemetry import speed
from edgespec.transport import DealerLink
from engines.drafters.model import ModelDrafter
from engines.machine.doctor import describe
from engines.onnxruntime_backend.engine import OrtSettings, load_draft, load_target
from engines.step_times import RepeatedStep, medians_ms
from engines.toy import ToyEngine

TOKENS = (1, 2, 4, 8)
ROWS = (1, 4, 16)
PAST = 64
"""Cached positions of every row."""
REPEATS = 15
DRAFT_LENGTH = 4
TOY_TOKENS = 1500
TOY_CONTEXT = TOY_TOKENS + 100


def run(
    bundle: Path | None, *, drafter: str, threads: int, as_json: bool, energy: Path | None = None
) -> None:
    """Measures and prints; energy by the sensors below that root, if one is given. Raises
    `UsageError` for a drafter that is no draft of the bundle."""
    opened = Bundle.open(bundle) if bundle else builtin_bundle()
    drafter = drafter or opened.manifest.default_draft
    if not drafter:
        raise UsageError(f"{opened.folder} has no draft to measure; export it with --draft")
    figures = step_times(opened, drafter, threads)
    figures |= overhead(figures)
    figures |= answers(opened, drafter, energy)
    machine = describe().as_dict()
    figures |= {"drafter": drafter, "threads": threads, "machine": machine}
    Console().print(_table(figures, opened))
    if energy:
        Console(highlight=False).print(note(figures["energy"]), markup=False)
    if as_json:
        print_json(figures)


def step_times(bundle: Bundle, drafter: str, threads: int) -> dict[str, Any]:
    """Milliseconds of a draft step, and of a target step for every (rows, tokens)."""
    target = load_target(bundle, OrtSettings(threads=threads, slots=len(TOKENS) * sum(ROWS)))
    draft = load_draft(bundle, drafter, OrtSettings(threads=threads, slots=1, min_tokens=1))
    steps = {
        f"{rows}x{tokens}": RepeatedStep(target, rows, tokens, PAST)
        for rows in ROWS
        for tokens in TOKENS
    }
    steps["draft"] = RepeatedStep(draft, 1, 1, PAST)
    with progress("steps", REPEATS + 1, unit="turns") as advance:
        times = medians_ms(steps, REPEATS, advance)
    medians = {name: round(taken, 3) for name, taken in times.items()}
    return {"draft_step_ms": medians.pop("draft"), "target_step_ms": medians}


def _toy() -> ToyEngine:
    return ToyEngine(context=TOY_CONTEXT, layers=1)


def overhead(steps: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds of a round in which no model runs, and its share of a real round."""
    cloud_settings = CloudSettings(bind="tcp://127.0.0.1:*")
    with toy_cloud(TOY_CONTEXT, cloud_settings) as toy, pinned(cores()[0]):
        settings = EdgeSettings(
            connect=toy.endpoint, tactics=Tactics("none"), draft_length=DRAFT_LENGTH
        )
        link = DealerLink(toy.endpoint)
        identity = DeviceIdentity(toy_hello("bench"))
        loop = EdgeLoop.connect(link, ModelDrafter(_toy(), "toy"), identity, settings)
        request = Request((1, 2, 3), TOY_TOKENS, Sampling())
        answer = loop.start(request)
        for _ in loop.write(answer):
            pass
        link.close()
    stats = answer.stats
    empty = (stats.seconds - stats.first_token_seconds) / stats.rounds * 1e3
    full = DRAFT_LENGTH * steps["draft_step_ms"] + steps["target_step_ms"]["1x4"]
    return {
        "overhead_ms_per_round": round(empty, 4),
        "overhead_share_of_round": round(empty / (empty + full), 5),
    }


def answers(bundle: Bundle, drafter: str, energy: Path | None = None) -> dict[str, Any]:
    """Tokens a second of real processes, each on one core, with and without drafting in turns; the
    energy of both together, while an answer is written."""
    ways: dict[str, Sequence[str]] = {
        "drafting": ("--drafter", drafter),
        "plain": ("--mode", "cloud"),
    }
    runs: dict[str, list[Any]] = {name: [] for name in ways}
    with (
        cloud(bundle.folder, "--no-hints") as endpoint,
        progress("answers", 2 * len(PROMPTS), unit="answers") as advance,
    ):
        for prompt in PROMPTS:
            for name, options in ways.items():
                limited = [*options, "--max-tokens", "64", *device_options(energy)]
                runs[name].append(edge(bundle.folder, endpoint, prompt, limited))
                advance(1)
    fast, slow = speed(runs["drafting"]), speed(runs["plain"])
    rounds = sum(stats.rounds for stats in runs["drafting"])
    taken = {name: combined([s.energy for s in run if s.energy]) for name, run in runs.items()}
    measured = {"energy": taken} if energy else {}
    return measured | {
        "tokens_per_s_drafting": round(fast, 2),
        "tokens_per_s_plain": round(slow, 2),
        "speedup": round(fast / slow, 3),
        "loop_share_drafting": round(
            sum(s.loop_seconds for s in runs["drafting"])
            / sum(s.seconds for s in runs["drafting"]),
            5,
        ),
        "accepted_per_round": round(sum(s.accepted for s in runs["drafting"]) / rounds, 3),
        "identical": all(
            a.token_ids == b.token_ids for a, b in zip(runs["drafting"], runs["plain"], strict=True)
        ),
    }


def _table(figures: dict[str, Any], bundle: Bundle) -> Table:
    target = bundle.manifest.target
    table = Table(
        "", *(f"{n} token{'s' * (n > 1)}" for n in TOKENS),
        title=f"{target.origin.name}, {target.precisions.layers}, {figures['threads']} thread(s)",
        caption="milliseconds a step, median",
    )  # fmt: skip
    for rows in ROWS:
        cells = [f"{figures['target_step_ms'][f'{rows}x{tokens}']:.2f}" for tokens in TOKENS]
        table.add_row(f"target, {rows} row{'s' * (rows > 1)}", *cells)
    table.add_row(f"draft {figures['drafter']}", f"{figures['draft_step_ms']:.2f}")
    table.add_row("loop and wire, a round", f"{figures['overhead_ms_per_round']:.3f}")
    table.add_row("… share of a round", f"{figures['overhead_share_of_round']:.2%}")
    table.add_row("loop, policy and packets, streaming", f"{figures['loop_share_drafting']:.2%}")
    table.add_section()
    table.add_row("tokens/s, drafting", f"{figures['tokens_per_s_drafting']:.1f}")
    table.add_row("tokens/s, plain", f"{figures['tokens_per_s_plain']:.1f}")
    table.add_row("ratio", f"{figures['speedup']:.2f}")
    for name, figure in figures.get("energy", {}).items():
        table.add_row(f"J a token, {name}", each_token(figure))
    return table
