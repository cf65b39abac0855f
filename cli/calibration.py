"""The commands that make a pair; `cli.main` finds them here. They alone join calibration with
export, inside their bodies."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import click

from cli.main import FOLDER, POSITIVE, layer_list


class _Finite(click.FloatRange):
    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):  # NaN passes every range
            self.fail("not a finite number", param, ctx)
        return number


DEVICES = click.Choice(["auto", "cpu", "cuda"])


@click.command()
@click.argument("target")
@click.option("--out", type=FOLDER, required=True, help="Folder of the draft.")
@click.option(
    "--depth",
    type=click.IntRange(min=0),
    default=0,
    help="Layers of the draft. [default: 0.6 of the target's]",
)
@click.option(
    "--layers", help="Layers of the target to start from, as in 0,1,4. [default: measured]"
)
@click.option(
    "--vocabulary",
    type=click.IntRange(min=0),
    default=0,
    help="Output words of the draft. [default: all]",
)
@click.option(
    "--prompts",
    type=FOLDER,
    help="File or folder of prompts or text. [default: the target asks itself]",
)
@click.option("--corpus", type=FOLDER, help="Where the target's text is kept. [default: the cache]")
@click.option(
    "--tokens",
    type=POSITIVE,
    default=1_000_000,
    show_default=True,
    help="Of text that the target writes.",
)
@click.option(
    "--hours",
    type=_Finite(0, min_open=True),
    default=2.0,
    show_default=True,
    help="Of training, at most.",
)
@click.option("--steps", type=click.IntRange(min=0), default=0, help="Of training, at most.")
@click.option("--batch-tokens", type=click.IntRange(64), default=4096, show_default=True)
@click.option(
    "--rate", type=_Finite(0, min_open=True), default=5e-4, show_default=True, help="Learning rate."
)
@click.option(
    "--objective",
    type=click.Choice(["accepted", "argmax", "divergence"]),
    default="accepted",
    show_default=True,
)
@click.option("--device", type=DEVICES, default="auto", show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def distill(target: str, out: Path, **options: Any) -> None:
    """Train a draft for TARGET (a Hugging Face folder or hub id, or a GGUF file).

    The same command again goes on where a killed one was.
    """
    from calibration.distillation.distill import DistillSettings, run
    from calibration.distillation.training import Schedule
    from export.sources.open import open_checkpoint

    names = ("hours", "steps", "batch_tokens", "rate", "objective")
    schedule = Schedule(**{name: options.pop(name) for name in names})
    options["layers"] = layer_list(options["layers"], "--layers")
    settings = DistillSettings(out=out, schedule=schedule, **options)
    try:
        run(open_checkpoint(target), settings)
    except KeyboardInterrupt:
        click.echo(f"stopped; the same command goes on where {out} is", err=True)
        sys.exit(130)


@click.command()
@click.argument("target")
@click.option("--bundle", type=FOLDER, required=True, help="What TARGET was exported to.")
@click.option("--corpus", type=FOLDER, help="Where the target's text is kept. [default: the cache]")
@click.option(
    "--tokens",
    type=POSITIVE,
    default=200_000,
    show_default=True,
    help="Of the target's text to train on; what is missing is written first.",
)
@click.option("--out", type=FOLDER, help="Folder of the results. [default: beside BUNDLE]")
@click.option("--device", type=DEVICES, default="auto", show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def calibrate(target: str, bundle: Path, **options: Any) -> None:
    """Train exit heads for TARGET, calibrate the confidences in BUNDLE, and recommend the split.

    The same command again goes on where a killed one was.
    """
    from calibration.exit_heads.command import CalibrateSettings, run
    from calibration.exit_heads.report import show
    from edgespec.manifest import Bundle
    from export.install import install
    from export.sources.open import open_checkpoint

    opened = Bundle.open(bundle)
    try:
        found = run(open_checkpoint(target), opened, CalibrateSettings(target, **options))
    except KeyboardInterrupt:
        click.echo("stopped; the same command goes on from here", err=True)
        sys.exit(130)
    report = found.report
    show(report)
    heads = found.heads if opened.manifest.target.exits else None
    install(opened, heads, report.drafts, report.agreement)
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
@click.option("--out", type=FOLDER, required=True, help="Folder of the packed model.")
@click.option("--bits", type=click.Choice(["4", "8"]), default="4", show_default=True)
@click.option(
    "--int8-share",
    type=_Finite(0, 1),
    default=0.1,
    show_default=True,
    help="Of the weights, those that suffer most from int4.",
)
@click.option(
    "--target", help="The target that MODEL drafts for; their common embedding is left out."
)
@click.option("--corpus", type=FOLDER, help="Where the target's text is kept. [default: the cache]")
@click.option(
    "--tokens", type=POSITIVE, default=65_536, show_default=True, help="Of text to quantise on."
)
@click.option(
    "--recovery",
    type=click.IntRange(min=0),
    default=60,
    show_default=True,
    help="Steps of training scales and norms afterwards.",
)
@click.option("--device", type=DEVICES, default="auto", show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def quantise(model: str, target: str | None, bits: str, **options: Any) -> None:
    """Pack MODEL (a Hugging Face folder or hub id, or a GGUF file) to int4 and int8."""
    from calibration.quantisation.quantise import QuantiseSettings, run
    from export.sources.open import open_checkpoint

    base = open_checkpoint(target) if target else None
    settings = QuantiseSettings(bits=4 if bits == "4" else 8, **options)
    run(open_checkpoint(model, base=base), base, settings)
