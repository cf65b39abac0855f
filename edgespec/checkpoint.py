"""The readable form of a model: weights under Hugging Face names, from any source."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from edgespec.architecture import Architecture

Weights = npt.NDArray[Any]
"""float32, float16 or ml_dtypes.bfloat16, in Hugging Face layout `[out, in]`."""
BLOCK_INPUTS = 32
"""Consecutive inputs of one output that share a scale in a quantised matrix."""
RopeParameters = Mapping[str, str | bool | float | list[float]]
"""`rope_parameters` of a Hugging Face config: `rope_type`, `rope_theta`, and the type's numbers."""


class Blocks(NamedTuple):
    """A matrix `[out, in]` as integers: `values * scales`, one scale per `BLOCK_INPUTS` inputs."""

    values: npt.NDArray[np.int8]
    """[out, in]"""
    scales: npt.NDArray[np.float32]
    """[out, in / 32], all positive."""
    bits: Literal[4, 8]


@dataclass(frozen=True)
class Rope:
    """Rotary positions: the parameters that the config declares, and what follows from them."""

    inverse_frequencies: npt.NDArray[np.float32]
    """[head_dim / 2]"""
    attention_factor: float = 1.0
    """Factor of cosines and sines."""
    parameters: RopeParameters = field(default_factory=dict)
    """The declared parameters, complete enough to compute the frequencies again."""


@dataclass(frozen=True)
class TokenizerSource:
    """A tokenizer and the format of a conversation."""

    json: str
    """A complete `tokenizer.json` of the tokenizers library."""
    chat_template: str | None
    """Jinja template; None for a model without one."""
    bos: str | None
    """Text of the first token, as chat templates refer to it."""
    eos: str | None
    """Text of the last token, as chat templates refer to it."""
    end_ids: tuple[int, ...]
    """Every id that ends an answer, ascending."""


class Checkpoint(Protocol):
    """A supported and complete model. Holds no weights in memory; each call reads from the disk."""

    @property
    def name(self) -> str:
        """Name of the folder, hub repository or file."""

    @property
    def revision(self) -> str:
        """Commit on the hub; empty for local files."""

    @property
    def architecture(self) -> Architecture: ...

    @property
    def rope(self) -> Rope: ...

    @property
    def tokenizer(self) -> TokenizerSource: ...

    @property
    def kept_ids(self) -> npt.NDArray[np.int64] | None:
        """Ascending token ids of a draft's trimmed output matrix; None for a full vocabulary."""

    def names(self) -> Collection[str]:
        """Hugging Face names of all tensors that the architecture uses."""

    def shape(self, name: str) -> tuple[int, ...]: ...

    def nbytes(self, name: str) -> int:
        """Bytes on disk, for progress."""

    def tensor(self, name: str) -> Weights:
        """Read the complete tensor."""

    def bits(self, name: str) -> int | None:
        """Bits of the integers of a quantised matrix; None where floats are stored."""

    def blocks(self, name: str) -> Blocks | None:
        """Read the integers of a quantised matrix; None where floats are stored."""

    def rows(self, name: str, start: int, stop: int) -> Weights:
        """Read rows `[start, stop)` and no others, so that an embedding never fills the memory."""
