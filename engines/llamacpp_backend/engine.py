"""Drafts in llama.cpp, through the bindings `llama-cpp-python` (extra `llamacpp`).

A slot is a sequence of one unified KV cache, so a copied prefix shares its cells with its source
and costs no memory. Rolling back removes positions. The cache begins small and doubles when it is
full, since llama.cpp allocates it whole.

Only drafts run here: one token alone and several at once do not give the same bits in llama.cpp,
and a target needs that.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec.config import usable_cores
from edgespec.errors import EngineError
from edgespec.manifest import Bundle
from engines.base import Choices, Row, SegmentDone, check_rows
from engines.cache.slots import check_copy, open_slot
from engines.llamacpp_backend.batch import BATCH_TOKENS, Batch, Token
from engines.llamacpp_backend.bindings import open_bindings
from engines.llamacpp_backend.top import top_choices
from engines.machine import profiles
from engines.outputs import OutputMemory

FIRST_CELLS = 1024
"""Positions of a new cache."""
MAX_SLOTS = 256
"""Sequences that llama.cpp allows in one cache."""
_FULL = 1
"""`llama_decode`: there are too few free cells; nothing has changed."""


class LlamaCppEngine:
    """A draft in a GGUF file."""

    def __init__(
        self, path: Path, *, layers: int, position_bytes: int, context: int, threads: int,
        slots: int,
    ) -> None:  # fmt: skip
        """`position_bytes`: keys and values of a position. Raises `EngineError`."""
        self._api = open_bindings()
        self._layers = layers
        self._position_bytes = position_bytes
        self.context = context
        self.min_tokens = 1
        self.slots = min(slots, MAX_SLOTS)
        self._threads = threads
        self._most_cells = self.slots * context
        self._length: dict[int, int] = {}
        self._model = _load(self._api, path)
        self._context: Any = None
        self._memory: Any = None
        """Cache of the context."""
        self._cells = 0
        vocabulary = self._api.llama_model_get_vocab(self._model)
        self.vocabulary = int(self._api.llama_vocab_n_tokens(vocabulary))
        self._batch = Batch(self._api)
        self._outputs = OutputMemory(
            lambda tokens: [np.empty((tokens, self.vocabulary), np.float32)]
        )

    def __del__(self) -> None:
        if getattr(self, "_context", None) is not None:
            self._api.llama_free(self._context)
        if getattr(self, "_model", None) is not None:
            self._api.llama_model_free(self._model)

    def limit(self, memory_bytes: int) -> None:
        """Limits the memory of all slots. Call it before the first row."""
        assert self._context is None
        self.slots = max(1, min(MAX_SLOTS, memory_bytes // self.slot_bytes(1)))
        self._most_cells = max(self.context, memory_bytes // self._position_bytes)

    def slot_bytes(self, positions: int) -> int:
        return positions * self._position_bytes

    def open(self) -> int:
        """Returns a new, empty slot. Raises `EngineError` when all slots are taken."""
        return open_slot(self._length, self.slots)

    def close(self, slot: int) -> None:
        del self._length[slot]
        if self._context is not None:
            self._remove(slot, 0)

    def rest(self, slot: int) -> None:
        """Does nothing: slots share one cache."""

    def truncate(self, slot: int, length: int) -> None:
        self._length[slot] = min(length, self._length[slot])

    def cached(self, slot: int) -> int:
        return self._length[slot]

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        """Shares positions `[start, end)` of `source` with `target`, which then holds `end`."""
        check_copy(self._length, source, target, start, end)
        if source != target and self._context is not None:
            self._remove(target, start)
            if start < end:
                self._api.llama_memory_seq_cp(self._memory, source, target, start, end)
        self._length[target] = end

    def run(self, rows: Sequence[Row]) -> Iterator[SegmentDone]:
        check_rows(self, rows)
        tokens = [
            Token(token, row.start + place, row.slot, place >= len(row.tokens) - row.choice_count)
            for row in rows
            for place, token in enumerate(row.tokens)
        ]
        if self._context is None:
            self._open(min(FIRST_CELLS, self._most_cells))
        for row in rows:
            self._remove(row.slot, row.start)
            self._length[row.slot] = row.start
        (logits,) = self._outputs.take(sum(token.wanted for token in tokens)).arrays()
        done = 0
        for start in range(0, len(tokens), BATCH_TOKENS):
            done += self._decode(tokens[start : start + BATCH_TOKENS], logits[done:])
        for row in rows:
            self._length[row.slot] = row.start + len(row.tokens)
        yield SegmentDone(self._layers, True, _split(logits, rows))

    def _remove(self, slot: int, start: int) -> None:
        """Empties the positions of a slot from `start` on."""
        self._api.llama_memory_seq_rm(self._memory, slot, start, -1)

    def _decode(self, tokens: Sequence[Token], logits: npt.NDArray[np.float32]) -> int:
        """Runs some tokens. Writes the logits of the wanted ones, and returns their number."""
        api = self._api
        batch = self._batch.filled(tokens)
        while (status := api.llama_decode(self._context, batch)) == _FULL:
            self._grow()
        if status:
            raise EngineError(f"llama.cpp failed on {len(tokens)} tokens (status {status})")
        wanted = sum(token.wanted for token in tokens)
        if wanted:
            written = logits[:wanted]
            pointer = api.llama_get_logits(self._context)
            ctypes.memmove(written.ctypes.data, pointer, written.nbytes)
        return wanted

    def _open(self, cells: int) -> None:
        """Opens a context with an empty cache."""
        parameters = self._api.llama_context_default_params()
        parameters.n_ctx = cells
        parameters.n_batch = parameters.n_ubatch = BATCH_TOKENS
        parameters.n_seq_max = self.slots
        parameters.n_threads = parameters.n_threads_batch = self._threads
        parameters.kv_unified = True
        parameters.no_perf = True
        context = self._api.llama_init_from_model(self._model, parameters)
        if not context:
            raise EngineError(f"llama.cpp has no memory for a cache of {cells} positions")
        self._context, self._memory = context, self._api.llama_get_memory(context)
        self._cells = int(self._api.llama_n_ctx(context))

    def _grow(self) -> None:
        """Moves the cache into one of twice the size. Raises `EngineError` at the limit."""
        if self._cells >= self._most_cells:
            raise EngineError(f"all {self._cells} positions of the draft's cache are taken")
        old, api = self._context, self._api
        size = int(api.llama_state_get_size(old))
        state = (ctypes.c_uint8 * size)()
        size = int(api.llama_state_get_data(old, state, size))
        self._open(min(2 * self._cells, self._most_cells))
        api.llama_free(old)
        if not api.llama_state_set_data(self._context, state, size):
            raise EngineError("llama.cpp cannot move a cache into a larger one")


def open_draft(bundle: Bundle, profile: str, threads: int, slots: int) -> LlamaCppEngine:
    """Loads the bundle's draft for a device, and checks its file.

    Raises `EngineError` if the bindings are missing or the file cannot be loaded.
    """
    draft = bundle.draft(profile)
    bundle.check(f"draft/{profile}")
    shapes = draft.architecture
    width = shapes.kv_heads * shapes.head_dim
    return LlamaCppEngine(
        bundle.path(draft.graph),
        layers=shapes.layers,
        position_bytes=shapes.layers * 2 * width * np.dtype(np.float16).itemsize,
        context=bundle.manifest.context,
        threads=threads or profiles.profile(profile).threads or usable_cores(),
        slots=slots,
    )


def _load(api: Any, path: Path) -> Any:
    parameters = api.llama_model_default_params()
    parameters.n_gpu_layers = 0
    model = api.llama_model_load_from_file(os.fsencode(path), parameters)
    if not model:
        raise EngineError(f"llama.cpp cannot load {path}; export the bundle again")
    return model


def _split(logits: npt.NDArray[np.float32], rows: Sequence[Row]) -> list[Choices | None]:
    """Divides the logits of all wanted tokens, [N, vocabulary], among the rows."""
    choices: list[Choices | None] = []
    done = 0
    for row in rows:
        part = logits[done : done + row.choice_count]
        choices.append(top_choices(part) if row.choice_count else None)
        done += row.choice_count
    return choices
