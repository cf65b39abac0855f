"""The commands that measure and show; `edgespec.cli` finds them here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgespec.cli import FOLDER, POSITIVE
from edgespec.errors import UsageError

THREADS = click.IntRange(1, 1024)


@click.command()
@click.option("--max-tokens", type=POSITIVE, default=64, show_default=True, help="Per answer.")
def demo(max_tokens: int) -> None:
    """Export the built-in pair, run device and cloud on this machine, and prove the answers."""
    from bench.demo import demo

    demo(max_tokens)


@click.group()
def bench() -> None:
    """Measure. Each prints a table; with --json the last line is one JSON object."""


@bench.command("local")
@click.argument("bundle", type=FOLDER, required=False)
@click.option("--drafter", default="", metavar="PROFILE", help="[default: the bundle's draft]")
@click.option("--threads", type=THREADS, default=1, show_default=True, help="Of each side.")
@click.option("--json", "as_json", is_flag=True)
def bench_local(bundle: Path | None, drafter: str, threads: int, as_json: bool) -> None:
    """Step times, overhead of loop and wire, and speed with and without drafting, at no distance.

    BUNDLE is the demo's unless given.
    """
    from bench.local import run

    run(bundle, drafter=drafter, threads=threads, as_json=as_json)


@bench.command("export")
@click.option("--json", "as_json", is_flag=True)
def bench_export(as_json: bool) -> None:
    """Peak memory and time of exporting a 1.1 B-parameter fp16 Llama of random weights."""
    from bench.export_memory import run

    run(as_json=as_json)


@bench.command("acceptance")
@click.argument("bundle", type=FOLDER, required=False)
@click.option(
    "--prompts",
    type=FOLDER,
    metavar="FILE",
    help='JSON lines with "prompt" and "category". [default: the built-in held-out set]',
)
@click.option(
    "--drafter", default="", metavar="PROFILE|ngram", help="[default: the bundle's draft]"
)
@click.option("--max-tokens", type=POSITIVE, default=64, show_default=True, help="Per answer.")
@click.option("--limit", type=POSITIVE, metavar="N", help="The first N prompts of each category.")
@click.option("--threads", type=THREADS, default=1, show_default=True, help="Of either model.")
@click.option(
    "--temperature",
    type=float,
    help="Measure at this one; 0 is greedy. [default: greedy, then 0.7 with top-p 0.9]",
)
@click.option("--exits/--no-exits", default=True, show_default=True, help="Run the exit heads.")
@click.option(
    "--training",
    type=FOLDER,
    metavar="CORPUS",
    help="Stop if this training text shares eight words in a row with a prompt.",
)
@click.option("--plot", type=FOLDER, metavar="FILE", help="Draw the figures too, as in a.png.")
@click.option("--json", "as_json", is_flag=True)
def bench_acceptance(bundle: Path | None, as_json: bool, **options: Any) -> None:
    """How often the draft names the target's token, and what that is worth a round.

    BUNDLE is the demo's unless given.
    """
    from bench.acceptance import AcceptanceSettings, run

    run(bundle, AcceptanceSettings(**options), as_json=as_json)


@bench.command("shapes")
@click.option("--work", type=FOLDER, required=True, help="Where drafts and bundles are kept.")
@click.option("--corpus", type=FOLDER, help="The target's text. [default: the cache]")
@click.option("--tokens", type=POSITIVE, default=1_000_000, show_default=True, help="Of it.")
@click.option("--depths", default="4,8,12,16,20", show_default=True, help="Layers of the drafts.")
@click.option(
    "--draft", "drafts", multiple=True, metavar="NAME=FOLDER", help="A draft that is there already."
)
@click.option("--words", default="", help="Also trim each --draft to so many, as in 8192,16384.")
@click.option("--steps", type=POSITIVE, default=30, show_default=True, help="Of training, each.")
@click.option("--limit", type=POSITIVE, metavar="N", help="The first N prompts of each category.")
@click.option("--threads", type=THREADS, default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def bench_shapes(
    depths: str, drafts: tuple[str, ...], words: str, as_json: bool, **options: Any
) -> None:
    """Train drafts of several depths for the built-in target, and say which promises most."""
    from bench.shapes import ShapesSettings, run

    try:
        wanted = tuple(int(depth) for depth in depths.split(",") if depth)
        sizes = tuple(int(size) for size in words.split(",") if size)
        named = tuple((name, Path(path)) for name, path in (d.split("=", 1) for d in drafts))
    except ValueError:
        raise UsageError(
            "--depths and --words are lists as in 4,8 and --draft is NAME=FOLDER"
        ) from None
    settings = ShapesSettings(depths=wanted, drafts=named, words=sizes, **options)
    run(settings, as_json=as_json)
