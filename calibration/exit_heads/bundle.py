"""What a bundle's own engines do on this machine: how often they agree, and what a round costs."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from calibration.corpus import Sample
from calibration.decoder import Decoder
from calibration.exit_heads.confidence import Evidence
from calibration.exit_heads.evidence import answered, of_engine, originals
from calibration.exit_heads.recommend import Costs, head_share
from edgespec.config import usable_cores
from edgespec.manifest import Bundle
from edgespec.progress import progress
from engines.base import Engine, Row, final_choices
from engines.onnxruntime_backend.engine import OrtSettings, device_settings, load_draft, load_target
from engines.staged import StagedEngine

_COMPARED = 2_000
"""Answer positions on which a quantised target is compared with its original."""
_PAST = 128
"""Cached positions of a step that is timed; fewer where the context is shorter."""
_REPEATS = 12


def draft_evidence(bundle: Bundle, name: str, samples: Sequence[Sample]) -> Evidence:
    """The draft for a profile over held-out answers."""
    engine = _draft(bundle, name)
    with progress(f"measuring draft {name}", len(samples), unit="samples") as advance:
        return of_engine(engine, samples, advance)


def target_agreement(bundle: Bundle, decoder: Decoder, samples: Sequence[Sample]) -> float | None:
    """How often the target as the bundle stores it names the token that its float32 original,
    `decoder`, names; None for a target that is float32 itself."""
    chosen = bundle.manifest.target.precisions
    if chosen.layers == chosen.head == chosen.embedding == "fp32":
        return None
    few: list[Sample] = []
    while len(few) < len(samples) and sum(map(answered, few)) < _COMPARED:
        few.append(samples[len(few)])
    engine = load_target(bundle, OrtSettings(threads=usable_cores(), slots=1))
    with progress("comparing the target", 2 * len(few), unit="samples") as advance:
        wanted = originals(decoder, few, advance)
        said = of_engine(engine, few, advance)
    return float((said.tokens == wanted).mean())


def costs(bundle: Bundle, length: int) -> Costs:
    """Of rounds of `length` draft tokens, with the bundle's first draft if it has any."""
    target = bundle.manifest.target
    layers = target.architecture.layers
    engine = load_target(bundle, OrtSettings(threads=usable_cores(), slots=1))
    verify, need = step_time(engine, length + 1), math.inf
    if name := bundle.manifest.default_draft:
        need = length * step_time(_draft(bundle, name), 1)
    share = head_share(target.architecture, target.precisions)
    return Costs(layers, verify * (1 - share) / layers, verify * share, need)


def step_time(engine: Engine, tokens: int) -> float:
    """Milliseconds of a step of `tokens` tokens in one slot, choices after each: the least of
    several, since whatever else the machine does only adds to it."""
    past = min(_PAST, engine.context - tokens)
    ids = [number % engine.vocabulary for number in range(past + tokens)]
    slot = engine.open()
    final_choices(engine, [Row(slot, 0, ids[:past], 0)])
    taken = []
    for _ in range(_REPEATS):
        before = time.perf_counter()
        final_choices(engine, [Row(slot, past, ids[past:], tokens)])
        taken.append(time.perf_counter() - before)
    engine.close(slot)
    return min(taken) * 1e3


def _draft(bundle: Bundle, name: str) -> StagedEngine:
    """A draft as a device runs it."""
    return load_draft(bundle, name, device_settings(name))
