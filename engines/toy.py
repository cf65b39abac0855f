"""A table as a model, for tests: the logits after a token are a fixed random row of the table.

The last `order` cached tokens select the row. They are read from the slot's cache, so that a wrong
rollback gives a wrong text. Exit heads see the row with noise, and are right often but not always.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from engines.base import TOP, Choices, Row, SegmentDone, check_rows
from engines.cache.pools import CacheTensor
from engines.cache.slots import SlotCache, SlotEngine

TABLE_ROWS = 997


class ToyEngine(SlotEngine):
    def __init__(
        self,
        vocabulary: int = 50,
        context: int = 512,
        *,
        seed: int = 0,
        order: int = 2,
        layers: int = 3,
        slots: int = 1024,
        noise: float = 0.0,
    ) -> None:
        """`noise` is added to the table's logits: a draft has its target's seed and some noise."""
        self.vocabulary = vocabulary
        self.context = context
        self.min_tokens = 1
        self._layers = layers
        self._order = order
        generator = np.random.default_rng(seed)
        self._table = generator.standard_normal((TABLE_ROWS, vocabulary)) * 2
        blurring = np.random.default_rng(seed + 1)
        self._blur = blurring.standard_normal((layers, TABLE_ROWS, vocabulary))
        self._noise = noise
        super().__init__(SlotCache([CacheTensor("tokens", 1, 1, np.int64)], slots))

    def run(self, rows: Sequence[Row]) -> Iterator[SegmentDone]:
        check_rows(self, rows)
        for row in rows:
            end = row.start + len(row.tokens)
            self._cache.reserve(row.slot, end)
            pool, index = self._cache.location(row.slot)
            pool.arrays["tokens"][index, 0, row.start : end, 0] = row.tokens
            pool.arrays["tokens"][index, 0, end:, 0] = -1
            self._cache.length[row.slot] = end
        with self._cache.pinned():
            for layer in range(1, self._layers + 1):
                final = layer == self._layers
                choices = [
                    self._choices(row, layer) if row.asks(final=final) else None for row in rows
                ]
                yield SegmentDone(layer, final, choices)

    def _choices(self, row: Row, layer: int) -> Choices:
        end = row.start + len(row.tokens)
        pool, index = self._cache.location(row.slot)
        cached = pool.arrays["tokens"][index, 0, :, 0]
        blur = self._noise + 0.5 * (self._layers - layer)
        logits = []
        for position in range(end - row.choice_count, end):
            key = 0
            for token in cached[max(0, position + 1 - self._order) : position + 1]:
                assert token >= 0, "a position that was never written"
                key = (key * 131 + int(token) + 1) % TABLE_ROWS
            logits.append(self._table[key] + blur * self._blur[layer - 1][key])
        stacked = np.array(logits)
        order = np.argsort(-stacked, axis=-1, kind="stable")[:, :TOP]
        top = np.take_along_axis(stacked, order, axis=-1)
        return Choices(stacked.argmax(-1), order, top, stacked)
