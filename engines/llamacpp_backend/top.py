"""The likeliest candidates of logits, without sorting a vocabulary."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from engines.base import TOP, Choices


def top_choices(logits: npt.NDArray[np.float32]) -> Choices:
    """Choices of logits [N, vocabulary]. A row with a NaN has NaN as its top logits."""
    ids = np.stack([_top(row) for row in logits])
    tops = np.take_along_axis(logits, ids, axis=1)
    tops[np.isnan(logits.max(axis=1))] = np.nan
    return Choices(ids[:, 0], ids, tops, logits)


def _top(row: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Ids of the `TOP` largest logits, largest first; the lower id first where two are equal.

    No logit among them is below the `TOP`-th largest maximum of any groups of ids: 40 µs for 49152
    ids, where `np.argpartition` takes 500.
    """
    groups = len(row) // TOP
    if groups <= TOP:
        return np.argsort(-row, kind="stable")[:TOP]
    maxima = row[: groups * TOP].reshape(TOP, groups).max(axis=0)
    candidates = np.flatnonzero(row >= np.partition(maxima, -TOP)[-TOP])
    return candidates[np.argsort(-row[candidates], kind="stable")[:TOP]]
