"""`edgespec bench link`: the speed of each way of answering, by the round-trip time to the cloud.

One cloud process runs on its core. The device, with its own draft, runs in this process on another
core. Between them is an emulated link. All methods answer each prompt in turn, at every round-trip
time, so that a machine whose speed drifts slows them alike. Every answer must be the same, token
for token.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import msgspec
from rich.console import Console

from bench.acceptance.run import encode
from bench.lab.builtin import builtin_bundle
from bench.lab.energy import note
from bench.lab.methods import EDGESPEC, USELESS
from bench.lab.plots import require_matplotlib
from bench.lab.processes import cloud, cores, pinned
from bench.lab.prompts import first_of_each, read_prompts
from bench.lab.report import print_json
from bench.lab.turns import rotated
from bench.link.device import LinkedDevice, answer
from bench.link.emulator import Accuracy, accuracy, emulated_link
from bench.link.figures import (
    LinkFigures,
    MethodRun,
    StepTimes,
    cells_of,
    speeds_of,
    worst_ratio,
)
from bench.link.plots import plot_ablation, plot_link
from bench.link.settings import LinkSettings
from bench.link.shape import LinkShape
from bench.link.tables import link_table
from bench.link.timeline import chrome_trace, plot_timeline
from edge_runtime.loop import EdgeLoop
from edgespec.config import Request
from edgespec.energy_report import Energy
from edgespec.errors import EdgespecError, UsageError
from edgespec.manifest import Bundle
from edgespec.progress import Advance, progress
from edgespec.sampling import Sampling
from edgespec.text import Codec
from edgespec.trace import Span, Trace, read_trace
from engines.machine.doctor import describe
from engines.machine.energy.meter import EnergyMeter
from engines.machine.energy.sensors import Sensors, find

ACCURACY_PROBES_COUNT = 20
TOP_P = 0.9
"""Used where the temperature is above 0."""
LEAST_WIDTH_COLUMNS = 130

Runs = dict[tuple[float, str], MethodRun]
"""Measurements by round-trip time in milliseconds and method."""


def run(bundle: Path | None, settings: LinkSettings, *, as_json: bool) -> None:
    """Measure, print and plot. Raises `EdgespecError` if an answer differs from the others."""
    require_matplotlib(settings.plot)
    settings.check()
    opened = Bundle.open(bundle) if bundle else builtin_bundle()
    profile = settings.draft or opened.manifest.default_draft
    if not profile:
        raise UsageError(f"{opened.folder} has no draft to measure; export it with --draft")
    opened.draft(profile)
    requests = _requests(opened, settings)
    with tempfile.TemporaryDirectory() as scratch:
        traces = Path(scratch) / "cloud.jsonl", Path(scratch) / "device.jsonl"
        options = ("--draft", profile, "--trace", str(traces[0]))
        # The cloud takes its core before this process is left with the other one.
        with cloud(opened.folder, *options) as endpoint, pinned(cores()[0]):
            link_accuracy = _link_accuracy(settings.rtts_ms)
            with emulated_link(endpoint, cores()[0]) as link:
                trace = Trace(traces[1], "device")
                device = LinkedDevice(opened, profile, link, settings.draft_length, trace)
                runs = _measure(device, requests, settings)
                times = device.times()
                device.close()
        spans = [span for path in traces for span in read_trace(path)]
    pair = f"{opened.manifest.target.origin.name} with {profile}"
    figures = _figures(runs, pair, link_accuracy, times, len(requests), settings)
    _report(figures, spans, settings, as_json=as_json)


def _requests(bundle: Bundle, settings: LinkSettings) -> list[Request]:
    sampling = Sampling(settings.temperature, TOP_P if settings.temperature else 1.0)
    sampling.check()
    prompts = first_of_each(read_prompts(settings.prompts), settings.limit)
    return [
        Request(tuple(ids), settings.max_tokens, msgspec.structs.replace(sampling, seed=number))
        for number, ids in enumerate(encode(bundle, Codec(bundle), prompts, settings.max_tokens))
    ]


def _link_accuracy(rtts_ms: Sequence[float]) -> dict[str, Accuracy]:
    """Time that the emulated link itself adds, by round-trip time in milliseconds."""
    return {
        f"{rtt:g}": accuracy(LinkShape(rtt_ms=rtt), probes=ACCURACY_PROBES_COUNT) for rtt in rtts_ms
    }


def _measure(device: LinkedDevice, requests: Sequence[Request], settings: LinkSettings) -> Runs:
    methods = settings.chosen
    runs = {(rtt, name): MethodRun() for rtt in settings.rtts_ms for name in methods}
    sensors = find(settings.energy) if settings.energy else None
    with progress("answers", len(runs) * len(requests), unit="answers") as advance:
        for rtt in settings.rtts_ms:
            loops = device.at(settings.shape_at(rtt), methods)
            here = {name: runs[rtt, name] for name in methods}
            for number, request in enumerate(requests):
                texts = _answer_in_turns(loops, here, request, number, sensors, advance)
                if len(texts) > 1:
                    raise EdgespecError(
                        f"prompt {number + 1} has {len(texts)} different answers at {rtt:g} ms; "
                        "run 'edgespec doctor --exactness' to see how this processor computes"
                    )
    return runs


def _answer_in_turns(
    loops: Mapping[str, EdgeLoop],
    runs: Mapping[str, MethodRun],
    request: Request,
    number: int,
    sensors: Sensors | None,
    advance: Advance,
) -> set[tuple[int, ...]]:
    """Let every method answer once, beginning with another one for each `number`.

    Adds to `runs` and returns the different answers.
    """
    texts = set()
    for name in rotated(list(loops), number):
        run, before = runs[name], time.process_time()
        meter = EnergyMeter(sensors) if sensors else None
        with meter or nullcontext():
            stats, gaps = answer(loops[name], request)
        if meter:
            run.energy.append(meter.energy(stats.tokens))
        run.cpu_s += time.process_time() - before
        run.draft_steps_s += loops[name].modes.measurements.draft_steps(1)
        run.answers.append(stats)
        run.gaps_s += gaps
        texts.add(tuple(stats.token_ids))
        advance(1, name)
    return texts


def _figures(
    runs: Runs,
    pair: str,
    link_accuracy: dict[str, Accuracy],
    times: StepTimes,
    prompts: int,
    settings: LinkSettings,
) -> LinkFigures:
    cells = cells_of(runs)
    speeds = speeds_of(cells)
    return LinkFigures(
        rtts_ms=list(settings.rtts_ms),
        methods=list(settings.chosen),
        cells=cells,
        tokens_per_s=speeds,
        worst_ratio_to_cloud=worst_ratio(speeds, EDGESPEC),
        worst_ratio_useless=worst_ratio(speeds, *USELESS),
        pair=pair,
        machine=describe(),
        link_accuracy=link_accuracy,
        times=times,
        prompts=prompts,
        draft_length=settings.draft_length,
        temperature=settings.temperature,
        link=settings.shape,
    )


def _report(
    figures: LinkFigures, spans: Sequence[Span], settings: LinkSettings, *, as_json: bool
) -> None:
    console = Console(width=max(Console().width, LEAST_WIDTH_COLUMNS), highlight=False)
    console.print(link_table(figures))
    measured = {
        f"{cell.method} at {cell.rtt_ms:g} ms": cell.energy
        for cell in figures.cells
        if isinstance(cell.energy, Energy)
    }
    if measured:
        console.print(note(measured), markup=False)
    adds = [f"{added.median_ms:.2f} at {rtt}" for rtt, added in figures.link_accuracy.items()]
    console.print(
        f"The link itself adds, in ms (median) at an RTT of so many ms: {', '.join(adds)}"
    )
    if as_json:
        print_json(figures)
    if settings.plot:
        _plot(settings.plot, figures, spans, ablation=settings.ablation)


def _plot(folder: Path, figures: LinkFigures, spans: Sequence[Span], *, ablation: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    plot_link(folder / "link.png", figures)
    if ablation:
        plot_ablation(folder / "ablation.png", figures)
    chrome_trace(folder / "trace.json", spans)
    title = f"{figures.methods[-1]}, RTT {figures.rtts_ms[-1]:g} ms"
    plot_timeline(folder / "timeline.png", spans, title=title)
