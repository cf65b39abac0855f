"""Rotary frequencies back into the words of a Hugging Face config.

A decoder carries its inverse frequencies, whatever they came from. Four kinds of `rope_parameters`
are tried, as transformers computes them: `default`, `linear`, `llama3` (a ramp over frequencies)
and `yarn` (a ramp over dimensions; Peng et al., arXiv 2309.00071). What is written reproduces the
frequencies; it need not be the spelling that they were once made from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec.checkpoint import Rope
from edgespec.errors import UnsupportedModel

_TOLERANCE = 1e-6
"""Relative; the sources are float32."""
_Floats = npt.NDArray[np.float64]


def rope_parameters(rope: Rope, context: int) -> dict[str, Any]:
    """`rope_parameters` of a config whose model is made for `context` positions.

    Raises `UnsupportedModel` where no kind reproduces the frequencies.
    """
    waves = np.asarray(rope.inverse_frequencies, np.float64)
    found = None if rope.attention_factor != 1.0 else _power_law(waves)
    found = found or _ramp(waves, rope.attention_factor, context)
    if found is None:
        raise UnsupportedModel(
            "the rotary frequencies of this model are of no kind that a Hugging Face config has "
            "(default, linear, llama3, yarn), so it cannot be written as a folder"
        )
    return found


def _plain(theta: float, count: int) -> _Floats:
    return np.asarray(theta ** (-np.arange(count) / count), np.float64)


def _rounded(value: float) -> Iterator[float]:
    """`value` to ever more digits: what a config says is mostly a round number."""
    return (float(f"{value:.{digits}g}") for digits in range(1, 12))


def _same(made: _Floats, waves: _Floats) -> bool:
    return bool(np.allclose(made, waves, rtol=_TOLERANCE, atol=0))


def _power_law(waves: _Floats) -> dict[str, Any] | None:
    count, factor = len(waves), float(1 / waves[0])
    theta = float((waves[-1] * factor) ** (-count / (count - 1))) if count > 1 else 10_000.0
    for nice in _rounded(theta):
        plain = _plain(nice, count)
        if _same(plain, waves):
            return {"rope_type": "default", "rope_theta": nice}
        for shrink in _rounded(factor):
            if shrink > 1 and _same(plain / shrink, waves):
                return {"rope_type": "linear", "rope_theta": nice, "factor": shrink}
    return None


def _ramp(waves: _Floats, attention: float, context: int) -> dict[str, Any] | None:
    """Kinds that leave short waves alone and stretch long ones by a factor."""
    count = len(waves)
    if count < 3:
        return None
    for theta in _rounded(float(waves[1] ** -count)):
        if theta <= 1:
            continue
        plain = _plain(theta, count)
        ratio = waves / plain
        factor = next((f for f in _rounded(1 / ratio[-1]) if abs(f * ratio[-1] - 1) < 1e-6), 1.0)
        kept = np.ones(count) if factor == 1 else (ratio - 1 / factor) / (1 - 1 / factor)
        inside = (kept > 1e-4) & (kept < 1 - 1e-4)
        found = None
        if attention == 1.0:
            found = _llama3(theta, factor, plain, kept, inside, waves)
        found = found or _yarn(theta, factor, attention, kept, inside, waves, context)
        if found is not None:
            return found
    return None


def _llama3(
    theta: float,
    factor: float,
    plain: _Floats,
    kept: _Floats,
    inside: npt.NDArray[np.bool_],
    waves: _Floats,
) -> dict[str, Any] | None:
    """`kept` rises with the frequency; its two numbers fix three, so the lower turn is 1."""
    if inside.sum() < 2:
        return None
    slope, offset = np.polyfit(plain[inside], kept[inside], 1)
    if slope <= 0 or offset >= 0:
        return None
    high = next((h for h in _rounded(1 - 1 / offset) if abs(h / (1 - 1 / offset) - 1) < 1e-4), 0.0)
    trained = round(2 * math.pi * slope * (high - 1))
    ramp = np.clip((trained * plain / (2 * math.pi) - 1) / (high - 1), 0, 1)
    if trained < 1 or not _same(((1 - ramp) / factor + ramp) * plain, waves):
        return None
    return {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": high,
        "original_max_position_embeddings": trained,
    }


def _yarn(
    theta: float,
    factor: float,
    attention: float,
    kept: _Floats,
    inside: npt.NDArray[np.bool_],
    waves: _Floats,
    context: int,
) -> dict[str, Any] | None:
    """`kept` falls with the dimension, from `low` to `high`; the turns are read off from these."""
    count = len(waves)
    low, high = 0.0, float(count)
    if factor != 1:
        if inside.sum() < 2:
            return None
        slope, offset = np.polyfit(np.arange(count)[inside], 1 - kept[inside], 1)
        if slope <= 0:
            return None
        low, high = (
            round(at, 3) if abs(at - round(at, 3)) < 1e-3 else at
            for at in (-offset / slope, (1 - offset) / slope)
        )
    ramp = np.clip((np.arange(count) - low) / (high - low), 0, 1)
    if not _same((ramp / factor + 1 - ramp) * _plain(theta, count), waves):
        return None
    trained = max(round(context / factor), 1)
    fast, slow = (trained / (2 * math.pi * theta ** (at / count)) for at in (low, high))
    return {
        "rope_type": "yarn",
        "rope_theta": theta,
        "factor": factor,
        "attention_factor": attention,
        "beta_fast": fast,
        "beta_slow": slow,
        "truncate": False,
        "original_max_position_embeddings": trained,
    }
