"""The shapes of a decoder, in one place: what a checkpoint declares and a graph is built from."""

from __future__ import annotations

from typing import Literal

import msgspec

Family = Literal["llama", "qwen2", "qwen3"]


class Architecture(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A dense pre-norm decoder with rotary positions and a gated feed-forward block.

    Which projections have a bias is not stated here: a bias is used where the checkpoint has one.
    """

    family: Family
    vocabulary: int
    """Rows of the embedding; may exceed the tokenizer's size by padding."""
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    norm_epsilon: float
    context: int
    """Largest number of positions the model was made for."""
    tied: bool
    """The output matrix is the embedding."""
    qk_norm: bool
    """RMS norm over head_dim on queries and keys (Qwen3)."""
