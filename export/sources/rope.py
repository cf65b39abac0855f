"""Rotary frequencies from a config, as transformers computes them.

Supported types: `default`; `linear` (frequencies divided by a factor); `llama3` (low frequencies
divided, high ones kept, a ramp between); `yarn` (Peng et al., arXiv 2309.00071: a ramp over
dimensions, and cosines and sines multiplied by the attention factor); `longrope` with the same
factors for every length (each frequency divided by its own factor). Two spellings are read:
`rope_theta` with `rope_scaling`, and `rope_parameters` of transformers 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec.checkpoint import Rope
from edgespec.errors import CheckpointError, UnsupportedModel

_DEFAULT_THETA = 10_000.0
"""`rope_theta` of the Llama, Mistral and Qwen classes where a config has none."""

_Floats = npt.NDArray[np.float32]


def rope_from_config(config: Mapping[str, Any], head_dim: int) -> Rope:
    """Compute the rotary embedding that a `config.json` declares.

    Raises:
        UnsupportedModel: the type is unknown, or its frequencies depend on the length of the text.
        CheckpointError: two spellings contradict each other, or a number is missing or impossible.
    """
    parameters = _parameters(config)
    kind = parameters.get("rope_type") or "default"
    if kind not in _TYPES:
        raise UnsupportedModel(
            f"the rotary embedding of type {kind!r} is not supported; "
            f"{', '.join(_TYPES)} are, so take a checkpoint that uses one of these"
        )
    for source in (parameters, config):
        if source.get("partial_rotary_factor") not in (None, 1, 1.0):
            raise UnsupportedModel(
                f"only part of each head is rotated (partial_rotary_factor "
                f"{source['partial_rotary_factor']}); models that rotate all of it are supported"
            )
    if head_dim <= 0 or head_dim % 2:
        raise UnsupportedModel(f"head_dim is {head_dim}; rotary positions need an even number")
    frequencies, attention_factor = _TYPES[kind](parameters, head_dim)
    keys = ("rope_theta", *_NUMBERS[kind])
    declared = {key: parameters[key] for key in keys if parameters.get(key) is not None}
    return Rope(frequencies, attention_factor, {"rope_type": kind, **declared})


def _parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """Merge both spellings into one mapping with `rope_type`, `rope_theta` and the numbers."""
    old = _normalised(config.get("rope_scaling"), "rope_scaling")
    new = _normalised(config.get("rope_parameters"), "rope_parameters")
    stated = [
        _number(part, "rope_theta")
        for part in (config, old, new)
        if part.get("rope_theta") is not None
    ]
    for part in (old, new):
        part.pop("rope_theta", None)
    if any(theta != stated[0] for theta in stated) or (old and new and old != new):
        raise CheckpointError(
            "the config states the rotary embedding twice and differently (rope_theta and "
            "rope_scaling against rope_parameters); keep the one that the model was trained with"
        )
    merged = {**old, **new, "rope_theta": stated[0] if stated else _DEFAULT_THETA}
    outer = config.get("original_max_position_embeddings")
    inner = merged.get("original_max_position_embeddings")
    context = config.get("max_position_embeddings")
    merged["original_max_position_embeddings"] = outer or inner or context
    if merged.get("rope_type") == "yarn" and merged.get("factor") is None:
        trained = _number(merged, "original_max_position_embeddings")
        merged["factor"] = _number(config, "max_position_embeddings") / trained
    return merged


def _normalised(value: Any, key: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or any(isinstance(v, Mapping) for v in value.values()):
        raise UnsupportedModel(
            f"{key} in the config differs from layer to layer; "
            "models with one rotary embedding for all layers are supported"
        )
    result = dict(value)
    kinds = {str(kind) for name in ("rope_type", "type") if (kind := result.pop(name, None))}
    if len(kinds) > 1:
        raise CheckpointError(f"{key} in the config has a rope_type and a type that differ")
    if kinds - {"default"} or result.keys() - {"rope_theta"}:
        result["rope_type"] = kinds.pop() if kinds else "default"
    return result


def _number(parameters: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = parameters.get(key, default)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise CheckpointError(
            f"the rotary embedding in the config needs {key} as a positive number, not {value!r}"
        )
    return value


def _plain(parameters: Mapping[str, Any], head_dim: int) -> _Floats:
    """Frequencies before scaling, [head_dim / 2]."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    waves = np.power(np.float32(_number(parameters, "rope_theta")), exponents)
    return np.asarray(1 / waves, np.float32)


def _default(parameters: Mapping[str, Any], head_dim: int) -> tuple[_Floats, float]:
    return _plain(parameters, head_dim), 1.0


def _linear(parameters: Mapping[str, Any], head_dim: int) -> tuple[_Floats, float]:
    return _plain(parameters, head_dim) / np.float32(_number(parameters, "factor")), 1.0


def _llama3(parameters: Mapping[str, Any], head_dim: int) -> tuple[_Floats, float]:
    plain = _plain(parameters, head_dim)
    factor = _number(parameters, "factor")
    low = _number(parameters, "low_freq_factor")
    high = _number(parameters, "high_freq_factor")
    if high <= low:
        raise CheckpointError(
            "the rotary embedding in the config needs high_freq_factor above low_freq_factor"
        )
    turns = _number(parameters, "original_max_position_embeddings") * plain / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return np.asarray((1 - kept) * plain / factor + kept * plain, np.float32), 1.0


def _yarn(parameters: Mapping[str, Any], head_dim: int) -> tuple[_Floats, float]:
    plain = _plain(parameters, head_dim)
    trained = _number(parameters, "original_max_position_embeddings")
    factor, theta = _number(parameters, "factor"), _number(parameters, "rope_theta")
    if theta <= 1:
        raise CheckpointError(f"the config has rope_theta {theta}; it must be above 1")

    def dimension(turns: float) -> float:
        """Dimension whose wave completes `turns` turns over the trained context."""
        return head_dim * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = dimension(_number(parameters, "beta_fast", 32))
    high = dimension(_number(parameters, "beta_slow", 1))
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    stretched = np.clip((np.arange(head_dim // 2) - low) / (high - low), 0, 1)
    frequencies = stretched * plain / factor + (1 - stretched) * plain
    return np.asarray(frequencies, np.float32), _yarn_attention(parameters, factor)


def _yarn_attention(parameters: Mapping[str, Any], factor: float) -> float:
    if parameters.get("attention_factor") is not None:
        return float(_number(parameters, "attention_factor"))

    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    mscale, over = parameters.get("mscale"), parameters.get("mscale_all_dim")
    if mscale and over:
        return magnitude(_number(parameters, "mscale")) / magnitude(
            _number(parameters, "mscale_all_dim")
        )
    return magnitude(1.0)


def _longrope(parameters: Mapping[str, Any], head_dim: int) -> tuple[_Floats, float]:
    """Supported where short and long texts have the same factors and the scale is declared."""
    factors = parameters.get("short_factor")
    if not factors or factors != parameters.get("long_factor"):
        raise UnsupportedModel(
            "the rotary embedding of type 'longrope' is supported only with a short_factor and a "
            "long_factor that are the same; take a checkpoint whose frequencies do not depend on "
            "the length of the text"
        )
    if (
        not isinstance(factors, list)
        or len(factors) != head_dim // 2
        or not all(isinstance(factor, int | float) and 0 < factor < math.inf for factor in factors)
    ):
        raise CheckpointError(
            "the rotary embedding in the config needs short_factor and long_factor as lists of "
            f"{head_dim // 2} positive numbers"
        )
    frequencies = np.divide(_plain(parameters, head_dim), np.array(factors, np.float32))
    return frequencies, float(_number(parameters, "attention_factor"))


_TYPES: Mapping[str, Callable[[Mapping[str, Any], int], tuple[_Floats, float]]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
_NUMBERS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
    ),
    "yarn": (
        "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow",
        "mscale", "mscale_all_dim", "truncate",
    ),
    "longrope": (
        "short_factor", "long_factor", "original_max_position_embeddings", "attention_factor",
    ),
}  # fmt: skip
"""Names of the numbers that each type has in addition to `rope_theta`."""
