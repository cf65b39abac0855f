"""Frequencies against transformers' own rotary embedding, for each kind in both spellings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgespec.errors import CheckpointError, UnsupportedModel
from export.sources.rope import rope_from_config

HEAD_DIM = 64
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 1024}
KINDS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 2.5},
    "llama3": {"rope_type": "llama3", **LLAMA3},
    "yarn": {"rope_type": "yarn", **YARN},
    "yarn-attention": {"rope_type": "yarn", **YARN, "attention_factor": 0.8},
    "yarn-mscale": {"rope_type": "yarn", **YARN, "mscale": 1.0, "mscale_all_dim": 0.7},
    "yarn-betas": {"rope_type": "yarn", **YARN, "beta_fast": 16, "beta_slow": 2},
    "yarn-untruncated": {"rope_type": "yarn", **YARN, "truncate": False},
    "yarn-without-original": {"rope_type": "yarn", "factor": 4.0},
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0 + number / 8 for number in range(32)],
        "long_factor": [1.0 + number / 8 for number in range(32)],
        "original_max_position_embeddings": 1024,
        "attention_factor": 1.25,
    },
}


def oracle(config: dict[str, Any]) -> tuple[np.ndarray, float]:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    shapes = {"hidden_size": 2 * HEAD_DIM, "num_attention_heads": 2}
    embedding = LlamaRotaryEmbedding(LlamaConfig.from_dict({**shapes, **config}))
    return embedding.inv_freq.numpy(), embedding.attention_scaling


@pytest.mark.parametrize("style", ["rope_scaling", "type", "rope_parameters"])
@pytest.mark.parametrize("kind", KINDS)
def test_rope_is_as_in_transformers(kind: str, style: str) -> None:
    numbers = dict(KINDS[kind])
    config: dict[str, Any] = {"max_position_embeddings": 4096}
    if style == "rope_parameters":
        config["rope_parameters"] = {"rope_theta": 50_000.0, **numbers}
    else:
        if style == "type":
            numbers["type"] = numbers.pop("rope_type")
        config |= {"rope_theta": 50_000.0, "rope_scaling": numbers}
    rope = rope_from_config(config, HEAD_DIM)
    frequencies, factor = oracle(config)
    assert rope.inverse_frequencies.dtype == np.float32
    np.testing.assert_allclose(rope.inverse_frequencies, frequencies, rtol=1e-6)
    assert rope.attention_factor == pytest.approx(factor, rel=1e-7)
    again = rope_from_config({"rope_parameters": dict(rope.parameters)}, HEAD_DIM)
    np.testing.assert_array_equal(again.inverse_frequencies, rope.inverse_frequencies)
    assert again.attention_factor == rope.attention_factor


def test_without_theta_the_class_default_holds() -> None:
    frequencies, _ = oracle({})
    np.testing.assert_allclose(
        rope_from_config({}, HEAD_DIM).inverse_frequencies, frequencies, rtol=1e-6
    )


def test_both_spellings_may_agree() -> None:
    linear = {"rope_type": "linear", "factor": 2.0}
    config = {
        "rope_theta": 5e5,
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "rope_parameters": {**linear, "rope_theta": 5e5},
    }
    once = rope_from_config({"rope_theta": 5e5, "rope_scaling": linear}, HEAD_DIM)
    both = rope_from_config(config, HEAD_DIM)
    np.testing.assert_array_equal(once.inverse_frequencies, both.inverse_frequencies)


@pytest.mark.parametrize(
    "config",
    [
        {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}},
        {
            "rope_scaling": {"rope_type": "linear", "factor": 2.0},
            "rope_parameters": {"rope_type": "linear", "factor": 4.0},
        },
        {"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "linear"}},
        {"rope_scaling": {"rope_type": "linear", "factor": "two"}},
        {"rope_scaling": {"rope_type": "llama3", **LLAMA3, "high_freq_factor": 1.0}},
    ],
)
def test_contradictions_and_gaps_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"rotary|rope") as refused:
        rope_from_config(config, HEAD_DIM)
    assert not isinstance(refused.value, UnsupportedModel)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "longrope"),
        (
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}},
            "longrope",
        ),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1, 2]}}, "mrope"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "layer to layer"),
    ],
)
def test_other_kinds_are_refused_by_name(config: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModel, match=named):
        rope_from_config(config, HEAD_DIM)
