"""The simulated target: an engine with real slots, recorded tokens and modelled step times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bench.simulation.script import Script
from bench.simulation.times import Times
from bench.simulation.virtual_time import Process
from engines.base import Choices, Row, SegmentDone, check_rows
from engines.cache.pools import CacheTensor
from engines.cache.slots import SlotCache, SlotEngine
from engines.calls import plan_calls

VOCABULARY = 1 << 20
ID_BYTES = 8
"""Bytes of a cached position of the simulated engine, which stores one token id."""
POSITION_BYTES = 46_080
"""Bytes of a cached position of the built-in target at fp32."""


@dataclass(frozen=True)
class TargetStep:
    """One step that the target ran."""

    start: float
    """Virtual seconds."""
    seconds: float
    widths: tuple[int, ...]
    """Tokens of each row."""


class SimulatedEngine(SlotEngine):
    """Target whose slots hold token ids instead of keys and values. A wrong eviction or rollback
    therefore shows as a different answer."""

    vocabulary = VOCABULARY
    context = 4096

    def __init__(self, script: Script, times: Times, slots: int) -> None:
        super().__init__(SlotCache([CacheTensor("ids", 1, 1, np.int64)], slots))
        self.process: Process | None = None
        self.steps: list[TargetStep] = []
        self.min_tokens = times.padded
        self._script, self._times = script, times

    def slot_bytes(self, positions: int) -> int:
        """Bytes that a slot of the built-in target would take."""
        return super().slot_bytes(positions) // ID_BYTES * POSITION_BYTES

    def limit(self, memory: int) -> None:
        super().limit(memory // POSITION_BYTES * ID_BYTES)

    def run(self, rows: Sequence[Row]) -> Iterator[SegmentDone]:
        assert self.process is not None
        check_rows(self, rows)
        calls = plan_calls(rows, self._cache, self.min_tokens)
        seconds = sum(self._times.step(call.width, call.count) for call in calls)
        if any(row.hints for row in rows):
            seconds += self._times.hint_ms / 1e3
        widths = tuple(len(row.tokens) for row in rows)
        self.steps.append(TargetStep(self.process.world.now, seconds, widths))
        texts = [self._write(row) for row in rows]
        layers = self._times.layers
        with self._cache.pinned():
            for layer in range(1, layers + 1):
                self.process.sleep(seconds / layers)
                final = layer == layers
                choices = [
                    self._choices(row, text, layer) if row.asks(final=final) else None
                    for row, text in zip(rows, texts, strict=True)
                ]
                yield SegmentDone(layer, final, choices)

    def _write(self, row: Row) -> list[int]:
        """Writes the row's tokens into its slot. Returns all ids of the slot."""
        end = row.start + len(row.tokens)
        pool, index = self._cache.location(row.slot)
        ids = pool.arrays["ids"][index, 0, :, 0]
        ids[row.start : end] = row.tokens
        self._cache.length[row.slot] = end
        text: list[int] = ids[:end].tolist()
        return text

    def _choices(self, row: Row, text: list[int], layer: int) -> Choices:
        end = self._script.place(text) + 1
        places = range(end - row.choice_count, end)
        if layer == self._times.layers:
            ids = [self._script.target(text, place) for place in places]
        else:
            right = self._times.exits[layer - 1]
            ids = [self._script.hint(text, place, layer, right) for place in places]
        chosen = np.array(ids)
        none = np.zeros((row.choice_count, 1), np.float32)
        return Choices(chosen, chosen[:, None], none, none)
