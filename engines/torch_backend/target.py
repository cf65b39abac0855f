"""Torch behind the engines' contract: a target for a GPU in the cloud.

Slots lie in tensors of the device, `[slots, kv_heads, capacity, head_dim]`, written in place; a
call is a view of neighbours. By default shapes are fixed (`engines.torch_backend.shapes`), so that
a token's logits do not depend on its company, and answers are those of the target alone.

On a CPU it is proven by the tests, and slower than ONNX Runtime; CUDA, what it is for, is unproven.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType

import torch

from edgespec.manifest import Bundle
from engines.staged import Sizes, StagedEngine
from engines.torch_backend.device import device_named, free_bytes, torch_errors
from engines.torch_backend.model import Model
from engines.torch_backend.runner import TorchRunner, TorchSettings
from engines.torch_backend.weights import Placing, read_target

log = logging.getLogger("edgespec.torch")

FLOATS: Mapping[str, torch.dtype] = MappingProxyType(
    {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
)


def load_target(bundle: Bundle, settings: TorchSettings) -> StagedEngine:
    """The bundle's target. Checks the files it reads.

    Raises `UsageError` for a device that is not there, `EngineError` where memory does not suffice.
    """
    device = device_named(settings.device)
    dtype = _dtype(bundle, device, settings)
    packs = dtype == torch.bfloat16 and (
        device.type == "cuda" if settings.packed is None else settings.packed
    )
    with torch_errors(), torch.inference_mode():
        model = read_target(bundle, Placing(device, dtype, packs))
    log.info(
        "torch %s on %s, %s, %s: %.0f MB of weights a step",
        torch.__version__, device, str(dtype).removeprefix("torch."),
        "fixed shapes" if settings.exact else "shapes as they come", model.nbytes / 1e6,
    )  # fmt: skip
    return engine(model, settings, bundle.manifest.context)


def engine(model: Model, settings: TorchSettings, context: int) -> StagedEngine:
    free = partial(free_bytes, model.device) if model.device.type == "cuda" else None
    vocabulary = model.architecture.vocabulary
    sizes = Sizes(vocabulary, context, settings.slots, 1, settings.capacities, free)
    return StagedEngine(TorchRunner(model, settings), sizes)


def open_target(bundle: Bundle, threads: int) -> StagedEngine:
    return load_target(bundle, TorchSettings(threads=threads))


def open_fast_target(bundle: Bundle, threads: int) -> StagedEngine:
    """Faster, and answers may differ from the target's alone."""
    return load_target(bundle, TorchSettings(threads=threads, exact=False))


def _dtype(bundle: Bundle, device: torch.device, settings: TorchSettings) -> torch.dtype:
    if settings.floats != "auto":
        return FLOATS[settings.floats]
    stored = bundle.manifest.target.precisions.layers
    if stored in FLOATS:
        return FLOATS[stored]
    return torch.bfloat16 if device.type == "cuda" else torch.float32
