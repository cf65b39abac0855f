"""The shapes of a decoder, and what distinguishes one supported model family from another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

import msgspec

Family = Literal["llama", "qwen2", "qwen3"]
LARGEST_SIZE = 1 << 24
LARGEST_LAYERS = 1 << 12
Size = Annotated[int, msgspec.Meta(ge=1, le=LARGEST_SIZE)]
"""Rows, columns, heads or positions: a range that holds every model, and no impossible shape."""
LayerCount = Annotated[int, msgspec.Meta(ge=1, le=LARGEST_LAYERS)]
ATTENTION_PROJECTIONS = frozenset({"q_proj", "k_proj", "v_proj", "o_proj"})
FEED_FORWARD_PROJECTIONS = frozenset({"gate_proj", "up_proj", "down_proj"})


class FamilyTraits(NamedTuple):
    """The properties of a family that do not follow from the numbers in its config."""

    model_types: tuple[str, ...]
    """Values of `model_type` in config.json that belong to the family."""
    hugging_face_class: str
    """Class of transformers that a checkpoint of the family is written for."""
    bias_groups: tuple[frozenset[str], ...]
    """Sets of projections: the class gives all of a set a bias, or none."""
    always_biased: frozenset[str] = frozenset()
    """Projections that have a bias in every model of the class."""
    qk_norm: bool = False
    """RMS norm over head_dim on queries and keys."""
    default_head_dim: int | None = None
    """`head_dim` where a config has none; None: hidden size / heads."""


FAMILIES: Mapping[Family, FamilyTraits] = {
    "llama": FamilyTraits(
        ("llama", "mistral"),
        "LlamaForCausalLM",
        bias_groups=(ATTENTION_PROJECTIONS, FEED_FORWARD_PROJECTIONS),
    ),
    "qwen2": FamilyTraits(
        ("qwen2",),
        "Qwen2ForCausalLM",
        bias_groups=(),
        always_biased=frozenset({"q_proj", "k_proj", "v_proj"}),
    ),
    "qwen3": FamilyTraits(
        ("qwen3",),
        "Qwen3ForCausalLM",
        bias_groups=(ATTENTION_PROJECTIONS,),
        qk_norm=True,
        default_head_dim=128,
    ),
}
"""Every supported family. `CONTRIBUTING.md` lists what else a new one needs."""


class Architecture(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A dense pre-norm decoder with rotary positions and a gated feed-forward block.

    Biases are not declared here: a projection has a bias where the checkpoint has one.
    """

    family: Family
    vocabulary: Size
    """Rows of the embedding; may exceed the tokenizer's size because of padding."""
    hidden: Size
    layers: LayerCount
    heads: Size
    kv_heads: Size
    head_dim: Size
    intermediate: Size
    norm_epsilon: float
    context: Size
    """Largest number of positions that the model supports."""
    tied: bool
    """True if the output matrix is the embedding."""
    qk_norm: bool
    """True for an RMS norm over head_dim on queries and keys (Qwen3)."""
