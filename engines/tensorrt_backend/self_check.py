"""Self-check of an engine: logits of a prefill against those of single-token steps.

A KV cache that is not written where the next step reads it causes no error, and plausible numbers.
Therefore an engine computes a few tokens both ways before its first answer, while another slot of
the batch gets other tokens. The logits must agree except for rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec.errors import EngineError
from engines.base import Engine, Row, final_choices

CHECK_TOKENS = 12
MAX_DIFFERENCE_RATIO = 0.05
"""Largest difference of a logit, as a fraction of the range of all logits. Rounding to 16 bits
stays below 0.01; a lost context costs several tenths."""


def self_check(engine: Engine, name: str, advice: str) -> None:
    """Checks an engine and leaves no slot open.

    Raises `EngineError`, which begins with `name` and ends with `advice`, if the check fails.
    """
    count = min(CHECK_TOKENS, engine.context)
    ids = [(7 * number + 3) % engine.vocabulary for number in range(count)]
    slots = [engine.open() for _ in range(min(2, engine.slots))]
    try:
        prefill = _logits(engine, [Row(slots[-1], 0, ids, len(ids))])
        single = _one_by_one(engine, slots, ids)
    finally:
        for slot in slots:
            engine.close(slot)
    if np.isnan(prefill).any() or not np.isfinite(prefill).any():
        raise EngineError(f"{name} computes no numbers: its 16-bit floats overflow; {advice}")
    difference = _difference_ratio(prefill, single)
    if not difference <= MAX_DIFFERENCE_RATIO:
        raise EngineError(
            f"{name} gives other logits when it reads one token at a time than when it reads all "
            f"at once (by {100 * difference:.0f} % of their range), so its KV cache is not written "
            f"in place; {advice}"
        )


def _one_by_one(engine: Engine, slots: Sequence[int], ids: Sequence[int]) -> npt.NDArray[Any]:
    """Computes `ids` in the first slot; from the middle on, the last slot gets them backwards."""
    first, last = slots[0], slots[-1]
    engine.truncate(first, 0)
    parts = []
    for start, token in enumerate(ids):
        rows = [Row(first, start, [token])]
        if last != first and start >= len(ids) // 2:
            rows.append(Row(last, start, [ids[-1 - start]]))
        parts.append(_logits(engine, rows))
    return np.concatenate(parts)


def _logits(engine: Engine, rows: Sequence[Row]) -> npt.NDArray[Any]:
    """Returns the logits of the first row in fp32."""
    choices = final_choices(engine, rows)[0]
    assert choices is not None
    return np.asarray(choices.logits, np.float32)


def _difference_ratio(prefill: npt.NDArray[Any], single: npt.NDArray[Any]) -> float:
    """Returns the largest difference as a fraction of the logits' range.

    Ignores ids that a trimmed head lacks; their logits are minus infinity.
    """
    finite = np.isfinite(prefill)
    if not np.array_equal(finite, np.isfinite(single)):
        return 1.0
    logit_range = max(np.ptp(prefill[finite]), 1e-9)
    return float(np.abs(prefill - single)[finite].max() / logit_range)
