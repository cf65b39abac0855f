"""`edgespec bench link`: what each way of answering is worth, by the distance to the cloud.

One cloud process on its core; the device, with its own draft, in this process on another core;
between them an emulated link. All methods answer each prompt in turn, at every round-trip time, so
that a machine whose speed drifts slows them alike. Every answer must be the same, token for token.
"""

from __future__ import annotations

import gc
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from bench.acceptance.run import encode
from bench.lab.builtin import builtin_bundle, self_bundle
from bench.lab.energy import note
from bench.lab.methods import ABLATION, CLOUD, EDGESPEC, KNOWN, METHODS, RTTS_MS, USELESS, Method
from bench.lab.plots import require_matplotlib
from bench.lab.processes import cloud, cores, pinned
from bench.lab.prompts import first_of_each, read_prompts
from bench.lab.useless import UselessDrafter
from bench.link.emulator import EmulatedLink, LinkShape, accuracy, emulated_link
from bench.link.tables import link_table
from edge_runtime.drafters import open_drafter
from edge_runtime.handshake import DeviceIdentity
from edge_runtime.loop import EdgeLoop, Observer
from edgespec.config import EdgeSettings, Request
from edgespec.energy_report import Energy, combined
from edgespec.errors import EdgespecError, UsageError
from edgespec.manifest import Bundle
from edgespec.progress import progress
from edgespec.sampling import Sampling
from edgespec.telemetry import AnswerStats, speed
from edgespec.text import Codec
from edgespec.trace import Span, Trace, read_trace
from edgespec.transport import DealerLink
from engines.drafters.base import Drafter
from engines.drafters.none import NoDrafter
from engines.machine.doctor import describe
from engines.machine.energy.meter import EnergyMeter
from engines.machine.energy.sensors import find

NO_SHAPE = LinkShape()


@dataclass(frozen=True)
class LinkSettings:
    rtts_ms: tuple[float, ...] = RTTS_MS
    shape: LinkShape = NO_SHAPE
    """Jitter, bandwidth and stalls; the round-trip time is replaced."""
    methods: tuple[str, ...] = ()
    """Names; empty: the baselines and edgespec."""
    ablation: bool = False
    useless: bool = False
    draft: str = ""
    """`self`: the built-in target drafts for itself at int8. Empty: the built-in draft."""
    draft_length: int = 4
    """Tokens drafted in a round of lockstep and exits."""
    prompts: Path | None = None
    limit: int = 2
    """Prompts of each category."""
    max_tokens: int = 64
    temperature: float = 0.0
    plot: Path | None = None
    """Folder for plots and the trace."""
    energy: Path | None = None
    """Root of the file tree that this machine's energy is read from; None: not measured."""

    @property
    def chosen(self) -> dict[str, Method]:
        """Raises `UsageError` for a name that there is not."""
        for name in self.methods:
            if name not in KNOWN:
                raise UsageError(f"there is no method {name!r}; choose from: {', '.join(KNOWN)}")
        if self.methods:
            names = dict.fromkeys((CLOUD, *self.methods))
            return {name: KNOWN[name] for name in names}
        more = (ABLATION if self.ablation else {}) | (USELESS if self.useless else {})
        return METHODS | more


@dataclass
class _Cell:
    """What one method did at one round-trip time."""

    answers: list[AnswerStats] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    busy: float = 0.0
    """Seconds of processor time of the device."""
    drafts: list[float] = field(default_factory=list)
    """Seconds of draft steps over one path; longer where both sides compute at once and share a
    memory."""
    energy: list[Energy] = field(default_factory=list)
    """Of this machine, device and cloud together, while an answer was written."""


def run(bundle: Path | None, settings: LinkSettings, *, as_json: bool) -> None:
    """Measures, prints and plots. Raises `EdgespecError` if an answer differs from the others."""
    require_matplotlib(settings.plot)
    methods = settings.chosen
    for rtt in settings.rtts_ms:
        replace(settings.shape, rtt_ms=rtt).check()
    if bundle and settings.draft:
        raise UsageError("--draft self is about the built-in target; leave out BUNDLE")
    opened = Bundle.open(bundle) if bundle else _builtin(settings.draft)
    profile = opened.manifest.default_draft
    if not profile:
        raise UsageError(f"{opened.folder} has no draft to measure; export it with --draft")
    requests = _requests(opened, settings)
    with tempfile.TemporaryDirectory() as scratch:
        traces = Path(scratch) / "cloud.jsonl", Path(scratch) / "device.jsonl"
        options = ("--draft", profile, "--trace", str(traces[0]))
        # The cloud takes its core before this process is left with the other one.
        with cloud(opened.folder, *options) as endpoint, pinned(cores()[0]):
            accurate = {
                f"{rtt:g}": accuracy(LinkShape(rtt_ms=rtt), probes=20)._asdict()
                for rtt in settings.rtts_ms
            }
            with emulated_link(endpoint, cores()[0]) as link:
                device = LinkedDevice(opened, link, settings, Trace(traces[1], "device"))
                cells = _measure(device, methods, requests, settings)
                times = device.times()
                device.close()
        spans = [span for path in traces for span in read_trace(path)]
    figures = _figures(cells, methods, settings) | {
        "pair": f"{opened.manifest.target.origin.name} with {profile} {settings.draft}".strip(),
        "machine": describe().as_dict(),
        "link_accuracy": accurate,
        "times": times,
        "prompts": len(requests),
        "draft_length": settings.draft_length,
        "temperature": settings.temperature,
        "link": asdict(settings.shape),
    }
    _report(figures, spans, settings, as_json=as_json)


def _builtin(draft: str) -> Bundle:
    return self_bundle() if draft else builtin_bundle()


def _requests(bundle: Bundle, settings: LinkSettings) -> list[Request]:
    sampling = Sampling(settings.temperature, 0.9 if settings.temperature else 1.0)
    sampling.check()
    prompts = first_of_each(read_prompts(settings.prompts), settings.limit)
    return [
        Request(tuple(ids), settings.max_tokens, msgspec.structs.replace(sampling, seed=number))
        for number, ids in enumerate(encode(bundle, Codec(bundle), prompts, settings.max_tokens))
    ]


class LinkedDevice:
    """The device's side of all methods: one link, one draft, a loop for each method."""

    def __init__(
        self, bundle: Bundle, link: EmulatedLink, settings: LinkSettings, trace: Trace
    ) -> None:
        self._bundle = bundle
        self._link = link
        self._settings = settings
        self._trace = trace
        self._dealer = DealerLink(link.endpoint)
        self._drafter = open_drafter(bundle, "", 1)
        self._loops: dict[str, EdgeLoop] = {}

    def at(self, shape: LinkShape, methods: dict[str, Method]) -> dict[str, EdgeLoop]:
        """Loops over a link of that shape, which know nothing of it yet."""
        self._link.shape(shape)
        self._loops = {name: self._loop(method) for name, method in methods.items()}
        return self._loops

    def _loop(self, method: Method) -> EdgeLoop:
        settings = EdgeSettings(
            mode=method.mode, tactics=method.tactics, draft_length=self._settings.draft_length
        )
        drafter: Drafter = self._drafter if method.drafts_on_device else NoDrafter()
        return EdgeLoop.connect(
            self._dealer,
            UselessDrafter(drafter) if method.useless else drafter,
            DeviceIdentity.of(self._bundle, "bench"),
            settings,
            Observer(trace=self._trace),
        )

    def times(self) -> dict[str, Any]:
        """Step times in milliseconds, as the cloud measured its own and the device its own."""
        loop = (
            self._loops[EDGESPEC] if EDGESPEC in self._loops else next(iter(self._loops.values()))
        )
        welcome, timings = loop.welcome, loop.modes.measurements.timings
        return {
            "target_ms": welcome.step_ms,
            "token_ms": welcome.token_ms,
            "cloud_draft_ms": welcome.draft_ms,
            "hint_ms": welcome.hint_ms,
            "draft_ms": 1e3 * timings.draft,
            "batch": list(timings.together),
        }

    def close(self) -> None:
        self._dealer.close()
        self._trace.close()


def answer(loop: EdgeLoop, request: Request) -> tuple[AnswerStats, list[float]]:
    """One answer, and the seconds between its tokens."""
    gc.collect()
    written = loop.start(request)
    times = [time.monotonic() for _ in loop.write(written)]
    return written.stats, [b - a for a, b in pairwise(times)]


def _measure(
    device: LinkedDevice,
    methods: dict[str, Method],
    requests: Sequence[Request],
    settings: LinkSettings,
) -> dict[tuple[float, str], _Cell]:
    cells = {(rtt, name): _Cell() for rtt in settings.rtts_ms for name in methods}
    sensors = find(settings.energy) if settings.energy else None
    total = len(cells) * len(requests)
    with progress("answers", total, unit="answers") as advance:
        for rtt in settings.rtts_ms:
            loops = device.at(replace(settings.shape, rtt_ms=rtt), methods)
            for number, request in enumerate(requests):
                names = list(loops)
                turn = number % len(names)
                texts = set()
                for name in names[turn:] + names[:turn]:
                    cell, before = cells[rtt, name], time.process_time()
                    meter = EnergyMeter(sensors) if sensors else None
                    with meter or nullcontext():
                        stats, gaps = answer(loops[name], request)
                    if meter:
                        cell.energy.append(meter.energy(stats.tokens))
                    cell.busy += time.process_time() - before
                    cell.drafts += loops[name].modes.measurements.draft_steps(1)
                    cell.answers.append(stats)
                    cell.gaps += gaps
                    texts.add(tuple(stats.token_ids))
                    advance(1, f"{rtt:g} ms, {name}")
                if len(texts) > 1:
                    raise EdgespecError(
                        f"prompt {number + 1} has {len(texts)} different answers at {rtt:g} ms; "
                        "run 'edgespec doctor --exactness' to see how this processor computes"
                    )
    return cells


def _figures(
    cells: dict[tuple[float, str], _Cell], methods: dict[str, Method], settings: LinkSettings
) -> dict[str, Any]:
    table: list[dict[str, Any]] = []
    speeds: dict[str, dict[str, float]] = {}
    for (rtt, name), cell in cells.items():
        rate = speed(cell.answers)
        speeds.setdefault(f"{rtt:g}", {})[name] = round(rate, 2)
        table.append(
            {"rtt_ms": rtt, "method": name, "tokens_per_s": rate}
            | {"ratio_to_cloud": rate / speed(cells[rtt, CLOUD].answers)}
            | _details(cell)
        )
    return {
        "rtts_ms": list(settings.rtts_ms),
        "methods": list(methods),
        "cells": table,
        "tokens_per_s": speeds,
        "worst_ratio_to_cloud": _worst(speeds, EDGESPEC),
        "worst_ratio_useless": _worst(speeds, *USELESS),
    }


def _worst(speeds: dict[str, dict[str, float]], name: str) -> float | None:
    ratios = [at[name] / at[CLOUD] for at in speeds.values() if name in at]
    return round(min(ratios), 4) if ratios else None


def _details(cell: _Cell) -> dict[str, Any]:
    tokens = sum(stats.tokens for stats in cell.answers)
    verdicts = sum(sum(stats.hits.values()) for stats in cell.answers)
    gaps = sorted(cell.gaps) or [0.0]

    def each(name: str) -> float:
        return float(sum(getattr(stats, name) for stats in cell.answers)) / max(tokens, 1)

    hits = {
        kind: sum(stats.hits.get(kind, 0) for stats in cell.answers) / verdicts
        for kind in ("full", "branch", "hint")
        if verdicts
    }
    return {
        "first_token_ms": 1e3 * statistics.mean(s.first_token_seconds for s in cell.answers),
        "p50_ms": 1e3 * gaps[len(gaps) // 2],
        "p99_ms": 1e3 * gaps[min(len(gaps) - 1, int(0.99 * len(gaps)))],
        "steps_per_token": each("rounds"),
        "verified_per_token": each("verified"),
        "accepted_per_token": each("accepted"),
        "thrown_away_per_token": each("verified") - each("confirmed"),
        "bytes_up_per_token": each("bytes_up"),
        "bytes_down_per_token": each("bytes_down"),
        "device_busy": cell.busy / sum(s.seconds for s in cell.answers),
        "loop_share": sum(s.loop_seconds for s in cell.answers)
        / sum(s.seconds for s in cell.answers),
        "draft_ms": 1e3 * statistics.mean(cell.drafts) if cell.drafts else 0.0,
        "hits": hits,
    } | ({"energy": combined(cell.energy).figures()} if cell.energy else {})


def _report(
    figures: dict[str, Any], spans: list[Span], settings: LinkSettings, *, as_json: bool
) -> None:
    console = Console(width=max(Console().width, 130), highlight=False)
    console.print(link_table(figures))
    measured = {
        f"{cell['method']} at {cell['rtt_ms']:g} ms": cell["energy"]
        for cell in figures["cells"]
        if "energy" in cell
    }
    if measured:
        console.print(note(measured), markup=False)
    adds = [f"{a['median_ms']:.2f} at {rtt}" for rtt, a in figures["link_accuracy"].items()]
    console.print(
        f"The link itself adds, in ms (median) at an RTT of so many ms: {', '.join(adds)}"
    )
    if as_json:
        print(json.dumps(figures), flush=True)
    if settings.plot:
        from bench.link.plots import plot_ablation, plot_link
        from bench.link.timeline import chrome_trace, plot_timeline

        settings.plot.mkdir(parents=True, exist_ok=True)
        plot_link(settings.plot / "link.png", figures)
        if settings.ablation:
            plot_ablation(settings.plot / "ablation.png", figures)
        chrome_trace(settings.plot / "trace.json", spans)
        title = f"{figures['methods'][-1]}, RTT {settings.rtts_ms[-1]:g} ms"
        plot_timeline(settings.plot / "timeline.png", spans, title=title)
