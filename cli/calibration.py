"""Commands that train and measure a pair: `distill`, `calibrate` and `quantise`.

They join calibration with export, which do not import each other.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from cli.options import (
    LAYERS,
    PATH,
    POSITIVE,
    FiniteRange,
    out_option,
    seed_option,
    sign_option,
    signer,
)
from edgespec.errors import UsageError

INTERRUPTED = 130
"""Exit code after Ctrl-C."""
CORPUS = click.option(
    "--corpus",
    type=PATH,
    metavar="FOLDER",
    show_default="the cache",
    help="Folder of text that the target has written.",
)
DEVICE = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Processor that torch computes on.",
)
SEED = seed_option("Seed of everything random.")
OBJECTIVE = click.option(
    "--objective",
    type=click.Choice(["mixed", "accepted", "sampled", "argmax", "divergence"]),
    default="mixed",
    show_default=True,
    help="Quantity that training optimises; 'mixed' serves greedy and sampled text.",
)


ALL = "all"
"""Value of `--depth` for a draft of full depth."""
SHALLOW = ("layers", "vocabulary", "batch_tokens", "rate")
"""Options of `distill` that a draft of full depth does not have."""


class _Depth(click.IntRange):
    """A number of layers, or `all`."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        return ALL if value == ALL else super().convert(value, param, ctx)


def _stopped(sentence: str) -> NoReturn:
    click.echo(sentence, err=True)
    sys.exit(INTERRUPTED)


@click.command()
@click.argument("target")
@out_option("Folder of the draft.")
@click.option(
    "--depth",
    type=_Depth(min=0),
    default=0,
    metavar="LAYERS|all",
    show_default="0.6 of the target's",
    help="Layers of the draft; 'all': the target itself at int4, as 'quantise' packs it.",
)
@click.option(
    "--layers",
    type=LAYERS,
    show_default="measured",
    help="Layers of the target to start from, as in 0,1,4.",
)
@click.option(
    "--vocabulary",
    type=click.IntRange(min=0),
    default=0,
    show_default="all",
    help="Tokens that the draft can produce, the most frequent ones.",
)
@click.option(
    "--prompts",
    type=PATH,
    show_default="written by the target",
    help="File or folder of prompts or text.",
)
@CORPUS
@click.option(
    "--tokens",
    type=POSITIVE,
    default=1_000_000,
    show_default=True,
    help="Tokens of text that the target writes for training.",
)
@click.option(
    "--hours",
    type=FiniteRange(0, min_open=True),
    default=2.0,
    show_default=True,
    help="Longest time of training.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=0),
    default=0,
    show_default="as --hours allows",
    help="Most steps of training.",
)
@click.option(
    "--batch-tokens",
    type=click.IntRange(64),
    default=4096,
    show_default=True,
    help="Tokens in one step of training.",
)
@click.option(
    "--rate",
    type=FiniteRange(0, min_open=True),
    default=5e-4,
    show_default=True,
    help="Learning rate.",
)
@OBJECTIVE
@DEVICE
@SEED
def distill(target: str, out: Path, **options: Any) -> None:
    """Train a draft for TARGET (a Hugging Face folder or hub id, or a GGUF file).

    'edgespec choose TARGET' finds out which draft is worth making. After an interruption the same
    command continues.
    """
    from calibration.distillation import full_depth
    from calibration.distillation.distill import DistillSettings, run
    from calibration.distillation.training import Schedule
    from export.sources.open import open_checkpoint

    make: Callable[..., object] = run
    if options["depth"] == ALL:
        _check_full_depth()
        make, options["depth"] = full_depth.run, 0
    names = ("hours", "steps", "batch_tokens", "rate", "objective")
    schedule = Schedule(**{name: options.pop(name) for name in names})
    options["layers"] = options["layers"] or ()
    settings = DistillSettings(out=out, schedule=schedule, **options)
    try:
        make(open_checkpoint(target), settings)
    except KeyboardInterrupt:
        _stopped(f"stopped; the same command continues in {out}")


def _check_full_depth() -> None:
    """Raises `UsageError` for an option that only a shallower draft has."""
    context = click.get_current_context()
    for name in SHALLOW:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise UsageError(
                f"--{name.replace('_', '-')} is for a draft of fewer layers than the target; leave "
                "it out, or pass a number as --depth"
            )


@click.command()
@click.argument("target")
@click.option("--bundle", type=PATH, required=True, help="Bundle that TARGET was exported to.")
@CORPUS
@click.option(
    "--tokens",
    type=POSITIVE,
    default=200_000,
    show_default=True,
    help="Tokens of the target's text to train on; missing text is written first.",
)
@click.option(
    "-o", "--out", type=PATH, show_default="next to BUNDLE", help="Folder of the results."
)
@click.option(
    "--drafts-only", is_flag=True, help="Fit the confidences of the drafts; train no exit heads."
)
@DEVICE
@SEED
@sign_option
def calibrate(
    target: str, bundle: Path, secret: Path | None, drafts_only: bool, **options: Any
) -> None:
    """Train exit heads for TARGET, calibrate confidences and recommend a split.

    The results are installed in the bundle. After an interruption the same command continues.
    """
    from rich.console import Console

    from calibration.exit_heads.command import CalibrateSettings, run
    from calibration.exit_heads.drafts import calibrate_drafts
    from calibration.exit_heads.report import drafts_table, show
    from edgespec.manifest import Bundle
    from export.install import install
    from export.sources.open import open_checkpoint

    signed = signer(secret)
    opened, settings = Bundle.open(bundle), CalibrateSettings(target, **options)
    if drafts_only:
        drafts = calibrate_drafts(open_checkpoint(target), opened, settings)
        Console().print(drafts_table(drafts))
        install(opened, None, drafts, None)
        signed(bundle)
        return
    try:
        found = run(open_checkpoint(target), opened, settings)
    except KeyboardInterrupt:
        _stopped("stopped; the same command continues from here")
    report = found.report
    show(report)
    heads = found.heads if opened.manifest.target.exits else None
    install(opened, heads, report.drafts, report.agreement)
    signed(bundle)
    if not found.pictures:
        click.echo(
            "no plots: they need matplotlib, which edgespec's extra 'plots' brings; in a "
            "checkout: pip install '.[plots]'",
            err=True,
        )
    has = "the figures" if heads is None else "the exit heads and figures"
    click.echo(f"{found.heads.parent}: exit heads and report; {bundle} has {has}", err=True)


@click.command()
@click.argument("model")
@out_option("Folder of the packed model.")
@click.option(
    "--bits",
    type=click.Choice(["4", "8"]),
    default="4",
    show_default=True,
    help="Bits of a packed weight.",
)
@click.option(
    "--int8-share",
    type=FiniteRange(0, 1),
    default=0.1,
    show_default=True,
    help="Share of the weights, the most sensitive ones, that stay at 8 bits.",
)
@click.option(
    "--target",
    metavar="MODEL",
    help="Target that MODEL drafts for; their common embedding is left out.",
)
@CORPUS
@click.option(
    "--tokens",
    type=POSITIVE,
    default=65_536,
    show_default=True,
    help="Tokens of text to quantise on.",
)
@click.option(
    "--recovery",
    type=click.IntRange(min=0),
    default=60,
    show_default=True,
    help="Most steps of training afterwards; 0 for none.",
)
@click.option(
    "--hours",
    type=FiniteRange(0, min_open=True),
    default=1e6,
    show_default="as --recovery allows",
    help="Longest time of training afterwards.",
)
@OBJECTIVE
@DEVICE
@SEED
def quantise(model: str, target: str | None, bits: str, **options: Any) -> None:
    """Pack MODEL (a Hugging Face folder or hub id, or a GGUF file) to int4 and int8.

    With the target itself as MODEL, the result is a draft of full depth. After an interruption the
    same command continues.
    """
    from calibration.quantisation.quantise import QuantiseSettings, run
    from export.sources.open import open_checkpoint

    base = open_checkpoint(target) if target else None
    settings = QuantiseSettings(bits=4 if bits == "4" else 8, **options)
    try:
        run(open_checkpoint(model, base=base), base, settings)
    except KeyboardInterrupt:
        _stopped(f"stopped; the same command continues in {settings.out}")
