"""`edgespec demo`: device and cloud as two processes write three answers; the target alone checks
them."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from bench.lab.builtin import builtin_bundle
from bench.lab.processes import cloud, cores, edge
from edge_runtime.piece_writer import ACCEPTED, WRITTEN
from edgespec.errors import EdgespecError
from edgespec.manifest import Bundle
from edgespec.progress import progress
from edgespec.sampling import Sampling
from edgespec.telemetry import AnswerStats, speed
from edgespec.text import Codec
from engines.alone import write_alone
from engines.onnxruntime_backend.engine import OrtSettings, load_target

PROMPTS = (
    "Explain in two sentences why the sky is blue.",
    "Write a short Python function that adds two numbers.",
    "What should a robot do before it opens a door?",
)


def demo(max_tokens: int) -> None:
    """Runs the demo. Raises `EdgespecError` if any answer differs from the target's own."""
    console = Console(highlight=False)
    bundle = builtin_bundle()
    device, server = cores()
    target, draft = bundle.manifest.target, bundle.draft(bundle.manifest.default_draft)
    console.print(
        f"Target: {target.origin.name}, {target.precisions.layers}. Draft: the same at "
        f"{draft.precisions.layers}. Device on core {device}, cloud on core {server}, by loopback."
    )
    console.print(f"[{ACCEPTED}]drafted and accepted[/]  [{WRITTEN}]written by the target[/]\n")
    colours = ["--show-drafts"] if console.is_terminal else []
    limit = ["--max-tokens", str(max_tokens)]
    drafted, plain = [], []
    with cloud(bundle.folder, "--no-hints") as endpoint:
        for prompt in PROMPTS:
            console.print(f"[bold]{prompt}[/]")
            sys.stdout.flush()
            options = [*limit, *colours]
            drafted.append(edge(bundle.folder, endpoint, prompt, options, show=True))
            plain.append(edge(bundle.folder, endpoint, prompt, [*limit, "--mode", "cloud"]))
            console.print()
    identical = _confirmed(bundle, max_tokens, [drafted, plain])
    console.print(_table(drafted, plain, identical))
    if not identical:
        raise EdgespecError(
            "an answer differs from the target's own; run 'edgespec doctor --exactness "
            f"{bundle.folder}' to see how this processor computes"
        )


def _confirmed(bundle: Bundle, max_tokens: int, runs: list[list[AnswerStats]]) -> bool:
    """Return True if every answer has the tokens that the target alone writes."""
    codec = Codec(bundle)
    engine = load_target(bundle, OrtSettings(threads=len(set(cores()))))
    identical = True
    with progress("the target alone", len(PROMPTS), unit="prompts") as advance:
        for number, prompt in enumerate(PROMPTS):
            ids = codec.encode(codec.render([{"role": "user", "content": prompt}]), chat=True)
            ends = bundle.manifest.text.end_ids
            tokens = write_alone(engine, ids, max_tokens, Sampling(), ends)
            identical &= all(run[number].token_ids == tokens for run in runs)
            advance(1)
    return identical


def _table(drafted: list[AnswerStats], plain: list[AnswerStats], identical: bool) -> Table:
    tokens = sum(run.tokens for run in drafted)
    table = Table("", "with drafting", "without")
    fast, slow = speed(drafted), speed(plain)
    table.add_row("tokens/s", f"{fast:.1f} ({fast / slow:.2f}x)", f"{slow:.1f}")
    rounds = sum(run.rounds for run in drafted)
    accepted = sum(run.accepted for run in drafted)
    table.add_row("accepted tokens a round", f"{accepted / rounds:.2f}", "")
    for name, field in (("bytes up a token", "bytes_up"), ("bytes down a token", "bytes_down")):
        drafting, without = (sum(getattr(run, field) for run in runs) for runs in (drafted, plain))
        table.add_row(name, f"{drafting / tokens:.1f}", f"{without / tokens:.1f}")
    verdict = "[green]yes[/]" if identical else "[red]no[/]"
    table.add_row("identical to the target alone", verdict, verdict)
    return table
