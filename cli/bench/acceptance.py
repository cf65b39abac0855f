"""`bench acceptance` and `bench shapes`: how often drafts agree with the target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cli.bench.options import PROMPTS
from cli.options import (
    PATH,
    POSITIVE,
    NumberList,
    bundle_argument,
    json_option,
    max_tokens_option,
    plot_option,
    threads_option,
)

LIMIT = click.option(
    "--limit", type=POSITIVE, metavar="N", show_default="all", help="Prompts of each category."
)
NUMBERS = NumberList(int, "numbers", "4,8", at_least=1)


class _NamedFolder(click.ParamType):  # type: ignore[type-arg]
    """A name and a folder."""

    name = "name=folder"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, Path]:
        name, equals, folder = value.partition("=")
        if not equals:
            self.fail(f"{value!r} is not NAME=FOLDER", param, ctx)
        return name, Path(folder)


@click.command()
@bundle_argument(required=False)
@PROMPTS
@click.option(
    "--drafter",
    default="",
    metavar="PROFILE|ngram",
    show_default="the bundle's first draft",
    help="Draft of the bundle, or prompt lookup.",
)
@max_tokens_option(64)
@LIMIT
@threads_option("Threads of each model.")
@click.option(
    "--temperature",
    type=float,
    show_default="0, then 0.7 with top-p 0.9",
    help="Sampling temperature; 0 is greedy.",
)
@click.option("--exits/--no-exits", default=True, show_default=True, help="Run the exit heads.")
@click.option(
    "--training",
    type=PATH,
    metavar="CORPUS",
    help="Fail if this training text shares eight consecutive words with a prompt.",
)
@plot_option()
@json_option()
def acceptance(bundle: Path | None, as_json: bool, **options: Any) -> None:
    """How often the draft proposes the target's token, and accepted tokens per round.

    Without BUNDLE the built-in pair is measured.
    """
    from bench.acceptance.run import AcceptanceSettings, run

    run(bundle, AcceptanceSettings(**options), as_json=as_json)


@click.command()
@click.option(
    "--work", type=PATH, required=True, metavar="FOLDER", help="Folder of drafts and bundles."
)
@click.option(
    "--corpus",
    type=PATH,
    metavar="FOLDER",
    show_default="the cache",
    help="Folder of text that the target has written.",
)
@click.option(
    "--tokens",
    type=POSITIVE,
    default=1_000_000,
    show_default=True,
    help="Tokens of the corpus to train on.",
)
@click.option(
    "--depths",
    type=NUMBERS,
    default="4,8,12,16,20",
    show_default=True,
    help="Numbers of layers of the drafts.",
)
@click.option(
    "--draft",
    "drafts",
    type=_NamedFolder(),
    metavar="NAME=FOLDER",
    multiple=True,
    help="Existing draft to compare with; may be repeated.",
)
@click.option(
    "--words",
    type=NUMBERS,
    default="",
    metavar="LIST",
    help="Also trim the vocabulary of each --draft to these sizes, as in 8192,16384.",
)
@click.option(
    "--steps", type=POSITIVE, default=30, show_default=True, help="Steps of training per draft."
)
@LIMIT
@threads_option("Threads of each model.")
@json_option()
def shapes(
    depths: tuple[int, ...], words: tuple[int, ...], drafts: tuple[tuple[str, Path], ...],
    as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Train drafts of several depths for the built-in target, and compare their speed."""
    from bench.acceptance.candidate_drafts import ShapesSettings
    from bench.acceptance.shapes import run

    settings = ShapesSettings(depths=depths, drafts=drafts, words=words, **options)
    run(settings, as_json=as_json)
