"""Tokens of one call of llama.cpp, in memory that is filled again for each call."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

BATCH_TOKENS = 256
"""Tokens of one call; a longer batch takes several."""


class Token(NamedTuple):
    id: int
    position: int
    slot: int
    wanted: bool
    """True if its logits are read."""


class Batch:
    """A `llama_batch` of up to `BATCH_TOKENS` tokens, each in one sequence."""

    def __init__(self, api: Any) -> None:
        self._ids = (ctypes.c_int32 * BATCH_TOKENS)()
        self._positions = (ctypes.c_int32 * BATCH_TOKENS)()
        self._slots = (ctypes.c_int32 * BATCH_TOKENS)()
        self._wanted = (ctypes.c_int8 * BATCH_TOKENS)()
        slot = ctypes.POINTER(ctypes.c_int32)
        size = ctypes.sizeof(ctypes.c_int32)
        self._batch = api.llama_batch(
            token=self._ids,
            pos=self._positions,
            n_seq_id=(ctypes.c_int32 * BATCH_TOKENS)(*[1] * BATCH_TOKENS),
            seq_id=(slot * BATCH_TOKENS)(
                *(
                    ctypes.cast(ctypes.byref(self._slots, place * size), slot)
                    for place in range(BATCH_TOKENS)
                )
            ),
            logits=self._wanted,
        )

    def filled(self, tokens: Sequence[Token]) -> Any:
        """Returns the batch with these tokens."""
        count = self._batch.n_tokens = len(tokens)
        columns: tuple[Any, ...] = (self._ids, self._positions, self._slots, self._wanted)
        for column, values in zip(columns, zip(*tokens, strict=True), strict=True):
            column[:count] = values
        return self._batch
