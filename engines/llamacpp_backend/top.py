"""The likeliest candidates of logits, without sorting a vocabulary."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from engines.base import TOP, Choices

Ids = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]


def top_choices(logits: Logits) -> Choices:
    """Choices of logits [N, vocabulary]. A row with a NaN has NaN as its top logits."""
    found = [_top(row) for row in logits]
    ids, tops = (np.array(column) for column in zip(*found, strict=True))
    return Choices(ids[:, 0], ids, tops, logits)


def _top(row: Logits) -> tuple[Ids, Logits]:
    """Ids of the `TOP` largest logits, largest first, and the logits; the lower id first where two
    are equal.

    None of them is below the `TOP`-th largest maximum of any groups of ids: 25 µs for 49152 ids,
    where `np.argpartition` takes 500.
    """
    if math.isnan(row.max()):
        ids = np.arange(min(TOP, len(row)))
        return ids, np.full(len(ids), np.nan, np.float32)
    groups = len(row) // TOP
    if groups <= TOP:
        candidates = np.arange(len(row))
    else:
        maxima = row[: groups * TOP].reshape(TOP, groups).max(axis=0)
        maxima.partition(groups - TOP)
        candidates = (row >= maxima[groups - TOP]).nonzero()[0]
    ids = candidates[(-row[candidates]).argsort(kind="stable")[:TOP]]
    return ids, row[ids]
