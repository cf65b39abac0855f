"""A torch device: memory for slots, copies to the host, errors, and the number of threads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgespec.errors import EngineError, UsageError

NUMPY: Mapping[torch.dtype, Any] = MappingProxyType(
    {
        torch.float32: np.float32,
        torch.float16: np.float16,
        torch.bfloat16: ml_dtypes.bfloat16,
    }
)
_TORCH = {np.dtype(kind): dtype for dtype, kind in NUMPY.items()}


def _engine_error(error: RuntimeError) -> EngineError:
    """Returns an error of torch in one sentence."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in reason:
        return EngineError(
            f"torch has no memory left ({reason}); take a smaller precision or fewer slots "
            "(cloud-run --kv-memory, bench gpu --rows)"
        )
    return EngineError(f"torch failed: {reason}")


@contextmanager
def torch_errors() -> Iterator[None]:
    """Turns torch's errors in the block into `EngineError`."""
    try:
        yield
    except RuntimeError as error:
        raise _engine_error(error) from error


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Sets the process's number of torch threads for the block; 0 leaves it as it is."""
    before = torch.get_num_threads()
    if count in (0, before):
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class TorchStore:
    """A `Store` (engines/cache/pools.py) in a torch device's memory."""

    device: torch.device
    min_slots: int
    """Smallest number of slots of an array."""

    def zeros(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Tensor:
        enlarged = (max(shape[0], self.min_slots), *shape[1:])
        with torch_errors():
            return torch.zeros(enlarged, dtype=_TORCH[np.dtype(dtype)], device=self.device)

    def copy(self, target: Any, index: int, source: Any, place: int, start: int, end: int) -> None:
        target[index, :, start:end].copy_(source[place, :, start:end])


def fetched(tensors: Sequence[Tensor]) -> list[npt.NDArray[Any]]:
    """Returns the tensors in host memory, bfloat16 as float32.

    Copies from a GPU go through page-locked memory, which has the bus's full speed: 64 rows of five
    tokens with 32 000 logits are 20 MB.
    """
    wide = [tensor.float() if tensor.dtype == torch.bfloat16 else tensor for tensor in tensors]
    if not wide or wide[0].device.type == "cpu":
        return [tensor.numpy() for tensor in wide]
    hosts = [torch.empty(one.shape, dtype=one.dtype, pin_memory=True) for one in wide]
    for host, tensor in zip(hosts, wide, strict=True):
        host.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream().synchronize()
    return [host.numpy() for host in hosts]


def free_bytes(device: torch.device) -> int:
    """Returns the free bytes of the GPU's memory."""
    return int(torch.cuda.mem_get_info(device)[0])


def device_named(name: str) -> torch.device:
    """Returns the device `cuda`, `cpu` or `auto`. Raises `UsageError` if torch has no CUDA."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("torch finds no CUDA device here; take the device cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
