"""What a checkpoint is to those who read one: weights under Hugging Face names, from any source."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from edgespec.architecture import Architecture

Weights = npt.NDArray[Any]
"""float32, float16 or ml_dtypes.bfloat16, in Hugging Face layout `[out, in]`."""


class Blocks(NamedTuple):
    """A matrix `[out, in]` as integers: `values * scales`, one scale for 32 inputs of an output."""

    values: npt.NDArray[np.int8]
    """[out, in]"""
    scales: npt.NDArray[np.float32]
    """[out, in / 32], all positive."""
    bits: Literal[4, 8]


@dataclass(frozen=True)
class Rope:
    """`inverse_frequencies` is float32 `[head_dim / 2]`; `attention_factor` scales cos and sin."""

    inverse_frequencies: npt.NDArray[np.float32]
    attention_factor: float = 1.0


@dataclass(frozen=True)
class TokenizerSource:
    """Text to ids and back, and how a conversation is written down."""

    json: str
    """A complete tokenizers `tokenizer.json`."""
    chat_template: str | None
    """Jinja."""
    bos: str | None
    """Text of the token, as chat templates refer to it."""
    eos: str | None
    end_ids: tuple[int, ...]
    """Every id that ends an answer, ascending."""


class Checkpoint(Protocol):
    """A readable, supported and complete model. Nothing is held but what is being read."""

    @property
    def name(self) -> str:
        """The folder's, hub's or file's name."""

    @property
    def revision(self) -> str:
        """The hub's commit; empty for local files."""

    @property
    def architecture(self) -> Architecture: ...

    @property
    def rope(self) -> Rope: ...

    @property
    def tokenizer(self) -> TokenizerSource: ...

    @property
    def kept_ids(self) -> npt.NDArray[np.int64] | None:
        """Of a draft with a trimmed vocabulary: the ids, ascending, that its head is used for."""

    def names(self) -> Collection[str]:
        """Hugging Face names of all tensors that the architecture uses."""

    def shape(self, name: str) -> tuple[int, ...]: ...

    def nbytes(self, name: str) -> int:
        """Bytes on disk, for progress."""

    def tensor(self, name: str) -> Weights:
        """The whole tensor."""

    def blocks(self, name: str) -> Blocks | None:
        """The integers of a matrix that was quantised before; None where floats are stored."""

    def rows(self, name: str, start: int, stop: int) -> Weights:
        """Rows `[start, stop)`; no other row is read, so an embedding is never held whole."""
