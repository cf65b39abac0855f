"""`edgespec distill --depth all`: a draft of full depth, which is the target itself, quantised.

The corpus is that of a shallower draft, and the work is that of `edgespec quantise TARGET --target
TARGET`. A killed run continues as `quantise` does.
"""

from __future__ import annotations

import click

from calibration.decoder import load
from calibration.distillation.distill import DistillSettings
from calibration.prompts import read_prompts
from calibration.quantisation.packed import refuse_to_replace
from calibration.quantisation.quantise import Quantised, QuantiseSettings
from calibration.quantisation.quantise import run as quantise
from calibration.target import device, prepare
from edgespec.checkpoint import Checkpoint

_UNLIMITED_STEPS = 1_000_000
"""Steps that no run reaches, for a run that its hours alone limit."""


def run(target: Checkpoint, settings: DistillSettings) -> Quantised:
    """Write the int4 copy, and print what an int8 copy needs and the next command on stderr.

    The layers, the vocabulary, the batch size and the rate of `settings` are not used. Raises one
    of edgespec's errors.
    """
    refuse_to_replace(settings.out)
    if settings.prompts:
        read_prompts(settings.prompts)  # report errors before any work
    click.echo(
        "a copy at int8 needs no training and no file: edgespec export TARGET --draft self "
        "--profile cpu-int8; this makes a copy at int4, which takes less memory",
        err=True,
    )
    corpus = prepare(
        target,
        load(target),
        settings.corpus,
        settings.prompts,
        settings.tokens,
        settings.seed,
        device(settings.device),
    )
    copy = QuantiseSettings(
        settings.out,
        corpus=corpus.folder,
        recovery=settings.schedule.steps or _UNLIMITED_STEPS,
        hours=settings.schedule.hours,
        objective=settings.schedule.objective,
        device=settings.device,
        seed=settings.seed,
    )
    result = quantise(target, target, copy)
    click.echo(f"next: edgespec export TARGET --draft {settings.out} --profile cpu-int4", err=True)
    return result
