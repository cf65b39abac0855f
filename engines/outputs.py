"""Arrays for the results of steps, used again as soon as nobody refers to them.

New memory for the logits of one token, and its binding, cost 0.1 ms a step.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

KEPT_TOKENS = 4
"""Most selected tokens whose arrays are kept; more than a draft's step selects."""

Arrays = list[npt.NDArray[Any]]


class Outputs:
    """Output arrays of one step."""

    def __init__(self, arrays: Arrays) -> None:
        self._arrays = arrays

    @property
    def free(self) -> bool:
        """True if nobody else refers to an array, or to a view of one."""
        return all(count == _UNSHARED for count in _references(self._arrays))

    def arrays(self) -> Arrays:
        return self._arrays.copy()


class OutputMemory:
    """Output arrays of one model for any number of selected tokens."""

    def __init__(self, make: Callable[[int], Arrays]) -> None:
        """`make` makes arrays, which must own their memory, for a number of tokens."""
        self._make = make
        self._kept: dict[int, Outputs] = {}
        """Arrays by number of tokens."""

    def take(self, tokens: int) -> Outputs:
        """Returns arrays that nobody refers to: those of an earlier step, or new ones."""
        kept = self._kept.get(tokens)
        if kept is not None and kept.free:
            return kept
        made = Outputs(self._make(tokens))
        if tokens <= KEPT_TOKENS:
            self._kept[tokens] = made
        return made


def _references(arrays: Sequence[npt.NDArray[Any]]) -> list[int]:
    return [sys.getrefcount(array) for array in arrays]


_UNSHARED = _references([np.empty(0)])[0]
"""References to an array that only one list holds."""
