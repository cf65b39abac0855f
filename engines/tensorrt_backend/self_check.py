"""Does an engine read a text one token at a time as it reads it at once?

A KV cache that is not written where the next step reads it gives no error and plausible numbers.
So before an engine answers anybody, a few tokens are read both ways, beside another slot that other
tokens are written into: logits must agree but for rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec.errors import EngineError
from engines.base import Engine, Row, final_choices

TOKENS = 12
TOLERANCE = 0.05
"""Of the distance from the lowest logit to the highest. Rounding to 16 bits costs below 0.01 of it;
a context that is lost costs tenths."""


def self_check(engine: Engine, name: str, advice: str) -> None:
    """Raises `EngineError` about `name` that ends in `advice`. Leaves no slot open."""
    ids = [(7 * number + 3) % engine.vocabulary for number in range(min(TOKENS, engine.context))]
    slots = [engine.open() for _ in range(min(2, engine.slots))]
    try:
        whole = _logits(engine, [Row(slots[-1], 0, ids, len(ids))])
        single = _one_by_one(engine, slots, ids)
    finally:
        for slot in slots:
            engine.close(slot)
    if np.isnan(whole).any() or not np.isfinite(whole).any():
        raise EngineError(f"{name} computes no numbers: its 16-bit floats overflow; {advice}")
    off = _off(whole, single)
    if not off <= TOLERANCE:
        raise EngineError(
            f"{name} gives other logits when it reads one token at a time than when it reads all "
            f"at once (by {100 * off:.0f} % of their range), so its KV cache is not written in "
            f"place; {advice}"
        )


def _one_by_one(engine: Engine, slots: Sequence[int], ids: Sequence[int]) -> npt.NDArray[Any]:
    """In the first slot, from the middle on beside the last one, which gets the text backwards."""
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
    """Of the first row, in fp32."""
    choices = final_choices(engine, rows)[0]
    assert choices is not None
    return np.asarray(choices.logits, np.float32)


def _off(whole: npt.NDArray[Any], single: npt.NDArray[Any]) -> float:
    """The largest difference, as a share of the range; of ids that a trimmed head lacks, whose
    logits are minus infinity, none."""
    there = np.isfinite(whole)
    if not np.array_equal(there, np.isfinite(single)):
        return 1.0
    return float(np.abs(whole - single)[there].max() / max(np.ptp(whole[there]), 1e-9))
