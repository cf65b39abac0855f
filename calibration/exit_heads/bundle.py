"""Measuring a bundle's engines on this machine: agreement and the costs of a round."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing

from calibration.corpus import Sample
from calibration.decoder import Decoder
from calibration.exit_heads.confidence import Evidence
from calibration.exit_heads.evidence import answered, of_engine, originals
from calibration.exit_heads.recommend import Costs, head_share
from edgespec.config import usable_cores
from edgespec.manifest import Bundle
from edgespec.progress import progress
from engines.backends import open_draft
from engines.base import Engine
from engines.onnxruntime_backend.engine import OrtSettings, load_target
from engines.step_times import RepeatedStep, shortest_ms

_COMPARED_TOKENS = 2_000
"""Answer positions on which a quantised target is compared with its original."""
_CACHED_TOKENS = 128
"""Cached positions of a timed step; fewer for a shorter context."""
_TIMED_STEPS = 12


def draft_evidence(bundle: Bundle, name: str, samples: Sequence[Sample]) -> Evidence:
    """Run the draft of a profile over held-out answers."""
    engine = open_draft(bundle, name, 0, 1)
    with progress(f"measuring draft {name}", len(samples), unit="samples") as advance:
        return of_engine(engine, samples, advance)


def target_agreement(bundle: Bundle, decoder: Decoder, samples: Sequence[Sample]) -> float | None:
    """Compare the bundle's target with its float32 original, `decoder`.

    Return the fraction of positions with the same arg-max; None for a float32 target.
    """
    chosen = bundle.manifest.target.precisions
    if chosen.layers == chosen.head == chosen.embedding == "fp32":
        return None
    few: list[Sample] = []
    while len(few) < len(samples) and sum(map(answered, few)) < _COMPARED_TOKENS:
        few.append(samples[len(few)])
    engine = load_target(bundle, OrtSettings(threads=usable_cores(), slots=1))
    with progress("comparing the target", 2 * len(few), unit="samples") as advance:
        original = originals(decoder, few, advance)
        stored = of_engine(engine, few, advance)
    return float((stored.tokens == original).mean())


def costs(bundle: Bundle, length: int) -> Costs:
    """Measure rounds of `length` draft tokens, with the bundle's first draft if it has one."""
    target = bundle.manifest.target
    layers = target.architecture.layers
    engine = load_target(bundle, OrtSettings(threads=usable_cores(), slots=1))
    verify_ms, draft_ms = step_time_ms(engine, length + 1), math.inf
    if name := bundle.manifest.default_draft:
        draft_ms = length * step_time_ms(open_draft(bundle, name, 0, 1), 1)
    share = head_share(target.architecture, target.precisions)
    return Costs(layers, verify_ms * (1 - share) / layers, verify_ms * share, draft_ms)


def step_time_ms(engine: Engine, tokens: int) -> float:
    """Time a step of `tokens` tokens in one slot, with choices after each token.

    Return the least of several times, because other load on the machine only adds time.
    """
    with closing(RepeatedStep(engine, 1, tokens, _CACHED_TOKENS)) as step:
        return shortest_ms(step, _TIMED_STEPS)
