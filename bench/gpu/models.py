"""Models of a given shape with random weights, created on the device. A step's speed does not
depend on the values of the weights."""

from __future__ import annotations

from types import MappingProxyType

import torch
from torch import Tensor

from bench.lab.random_checkpoint import MODELS
from edgespec.architecture import Architecture
from engines.torch_backend.model import (
    GROUP_INPUTS,
    Dense,
    LayerWeights,
    Linear,
    Model,
    SegmentWeights,
    pack,
)
from export.sources.families import architecture_from_config

SHAPES = MappingProxyType(
    {
        "llama-2-7b": architecture_from_config(MODELS["7b"]),
        "tiny": Architecture(
            family="llama",
            vocabulary=512,
            hidden=128,
            layers=2,
            heads=4,
            kv_heads=2,
            head_dim=32,
            intermediate=256,
            norm_epsilon=1e-5,
            context=1024,
            tied=False,
            qk_norm=False,
        ),
    }
)
TYPES = MappingProxyType(
    {
        "fp16": torch.float16,
        "bf16": torch.bfloat16,
        "int8": torch.bfloat16,
        "int4": torch.bfloat16,
    }
)
"""Type of the activations by precision. int8 weights become bf16 when they are loaded, so they are
measured as bf16."""


def random_model(shapes: Architecture, precision: str, device: torch.device) -> Model:
    """Model of one segment. Raises torch's `RuntimeError` if memory does not suffice."""
    dtype = TYPES[precision]

    def matrix(inputs: int, outputs: int) -> Linear:
        if precision != "int4":
            return Dense(torch.empty(outputs, inputs, dtype=dtype, device=device).normal_(0, 0.02))
        values = torch.randint(-8, 8, (inputs, outputs), dtype=torch.int8, device=device)
        scales = torch.full((inputs // GROUP_INPUTS, outputs), 0.005, device=device)
        return pack(values, scales, None, device)

    def ones() -> Tensor:
        return torch.ones(shapes.hidden, dtype=dtype, device=device)

    queries, keys = shapes.heads * shapes.head_dim, shapes.kv_heads * shapes.head_dim
    layers = [
        LayerWeights(
            attention_norm=ones(),
            qkv=matrix(shapes.hidden, queries + 2 * keys),
            q_norm=None,
            k_norm=None,
            out=matrix(queries, shapes.hidden),
            feed_forward_norm=ones(),
            gate_up=matrix(shapes.hidden, 2 * shapes.intermediate),
            down=matrix(shapes.intermediate, shapes.hidden),
        )
        for _ in range(shapes.layers)
    ]
    table = torch.empty(2, shapes.vocabulary, shapes.hidden, dtype=dtype, device=device)
    embedding, head = table.normal_(0, 0.02)
    angles = torch.zeros(shapes.context, shapes.head_dim, dtype=dtype, device=device)
    segments = [SegmentWeights(shapes.layers, layers)]
    return Model(
        shapes, dtype, embedding, angles.cos(), angles.sin(), segments, ones(), Dense(head)
    )
