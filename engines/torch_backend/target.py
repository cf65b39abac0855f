"""The torch back end: a target on a GPU in the cloud.

Slots are in tensors of the device, `[slots, kv_heads, capacity, head_dim]`, written in place. A
call is a view of neighbouring slots. Shapes are fixed by default (`engines.torch_backend.shapes`),
so that a token's logits do not depend on the rest of the batch, and answers equal those of the
target alone.

The tests prove the back end on a CPU, where it is slower than ONNX Runtime. CUDA is unproven.
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
    """Loads the bundle's target and checks its files.

    Raises `UsageError` if the device is missing, and `EngineError` if the memory is too small.
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
    """Makes an engine over a loaded model; `context` is in positions."""
    free = partial(free_bytes, model.device) if model.device.type == "cuda" else None
    vocabulary = model.architecture.vocabulary
    sizes = Sizes(vocabulary, context, settings.slots, 1, settings.capacities, free)
    return StagedEngine(TorchRunner(model, settings), sizes)


def open_target(bundle: Bundle, threads: int) -> StagedEngine:
    """Loads the bundle's target with fixed shapes."""
    return load_target(bundle, TorchSettings(threads=threads))


def open_fast_target(bundle: Bundle, threads: int) -> StagedEngine:
    """Loads the bundle's target with free shapes: faster, but answers may differ from those of the
    target alone."""
    return load_target(bundle, TorchSettings(threads=threads, exact=False))


def _dtype(bundle: Bundle, device: torch.device, settings: TorchSettings) -> torch.dtype:
    if settings.floats != "auto":
        return FLOATS[settings.floats]
    stored = bundle.manifest.target.precisions.layers
    if stored in FLOATS:
        return FLOATS[stored]
    return torch.bfloat16 if device.type == "cuda" else torch.float32
