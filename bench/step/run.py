"""`edgespec bench step`: steps of a draft and of a target on this machine's CPU.

Measured are steps of one to eight tokens and a prompt, by precision and threads, through the
contract of the back ends (`engines/base.py`). A model is loaded, all its steps are measured in
blocks of consecutive steps, then llama.cpp on the same weights, and so on in turns, so that a
machine whose speed drifts slows both alike. Figures are medians over the turns.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from rich.console import Console

from bench.lab.plots import check_plot_file
from bench.lab.report import print_json
from bench.step.bandwidth import read_gb_s
from bench.step.figures import LlamaBuild, StepFigures
from bench.step.llama import LlamaPrograms
from bench.step.measurement import LlamaModel, MeasuredModel, Measurement
from bench.step.models import checkpoint_of, roles_of, step_bundle
from bench.step.settings import Precision, StepSettings
from bench.step.tables import step_tables
from edgespec.config import usable_cores
from edgespec.progress import progress
from engines.machine.doctor import describe
from engines.machine.profiles import precisions
from export.gguf_file import write_gguf
from export.sources.open import open_checkpoint


def run(settings: StepSettings, *, as_json: bool) -> None:
    """Measures, prints and plots.

    Raises `UsageError` if `llama_bench` is no program, and `EdgespecError` if the built-in weights
    are missing, the disk has no room or llama.cpp fails.
    """
    check_plot_file(settings.plot)
    figures = measure(settings)
    console = Console(highlight=False)
    for table in step_tables(figures):
        console.print(table)
    if settings.plot:
        from bench.step.plots import plot_steps

        plot_steps(settings.plot, figures)
    if as_json:
        print_json(figures.as_json())


def measure(settings: StepSettings) -> StepFigures:
    programs = LlamaPrograms(settings.llama_bench) if settings.llama_bench else None
    load_average, *_ = os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="edgespec-bench-") as temporary:
        folder = Path(temporary)
        checkpoint = checkpoint_of(settings.shape, folder)
        speeds = {threads: read_gb_s(threads) for threads in settings.thread_counts}
        measured: list[MeasuredModel] = []
        for precision in settings.precisions:
            model = _llama_model(programs, checkpoint, folder, precision) if programs else None
            measured += _measured(settings, checkpoint, folder, precision, model, speeds)
            if model:
                model.path.unlink()
    return StepFigures(
        shape=settings.shape,
        machine=describe(),
        load_average=round(load_average, 2),
        bandwidth_gb_s={threads: round(speed, 2) for threads, speed in speeds.items()},
        models=[each.model for each in measured],
        steps=[step for each in measured for step in each.steps],
        llama=_build(measured) if programs else None,
    )


def _measured(
    settings: StepSettings,
    checkpoint: Path,
    folder: Path,
    precision: Precision,
    llama: LlamaModel | None,
    speeds: dict[int, float],
) -> list[MeasuredModel]:
    """Exports one precision and measures it by threads and roles; its bundle is removed."""
    bundle = step_bundle(checkpoint, folder / f"bundle-{precision}", precision)
    roles = roles_of(precision)
    total = len(speeds) * len(roles) * settings.plan.turns
    with progress(f"steps {precision}", total, unit="turns") as advance:
        found = [
            Measurement(bundle, role, precision, threads, settings.plan).run(llama, speed, advance)
            for threads, speed in speeds.items()
            for role in roles
        ]
    shutil.rmtree(bundle.folder)
    return found


def _llama_model(
    programs: LlamaPrograms, checkpoint: Path, folder: Path, precision: Precision
) -> LlamaModel:
    """Writes llama.cpp's weights in a precision. Random weights become a GGUF file first, once."""
    source = checkpoint
    if checkpoint.is_dir():
        source = folder / "weights.gguf"
        if not source.exists():
            weights = open_checkpoint(str(checkpoint))
            context = weights.architecture.context
            write_gguf(source, weights, precisions("fp16"), context, "writing GGUF")
    path = folder / f"weights-{precision}.gguf"
    programs.quantise(source, path, precision, usable_cores())
    return LlamaModel(programs, path)


def _build(measured: list[MeasuredModel]) -> LlamaBuild:
    tests = {each.model.precision: each.llama for each in measured if each.llama}
    return LlamaBuild(
        next(iter(tests.values())).build,
        {name: round(test.model_size / 1e6, 1) for name, test in tests.items()},
    )
