"""A device of torch's: its memory for slots, what comes back from it, its errors and threads."""

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


def _refused(error: RuntimeError) -> EngineError:
    """What torch says, in one sentence."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    short = isinstance(error, torch.OutOfMemoryError) or "allocate memory" in reason
    if short:
        return EngineError(
            f"torch has no memory left ({reason}); take a smaller precision or fewer slots "
            "(cloud-run --kv-memory, bench gpu --rows)"
        )
    return EngineError(f"torch failed: {reason}")


@contextmanager
def torch_errors() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise _refused(error) from error


@contextmanager
def threads(count: int) -> Iterator[None]:
    """The number of threads is the process's; others in it find theirs again."""
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
    """A device's memory, for `GrowingPool`."""

    device: torch.device
    min_slots: int
    """Slots that an array has at least, wanted or not."""

    def zeros(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Tensor:
        whole = (max(shape[0], self.min_slots), *shape[1:])
        with torch_errors():
            return torch.zeros(whole, dtype=_TORCH[np.dtype(dtype)], device=self.device)

    def copy(self, target: Any, index: int, source: Any, place: int, start: int, end: int) -> None:
        target[index, :, start:end].copy_(source[place, :, start:end])


def fetched(tensors: Sequence[Tensor]) -> list[npt.NDArray[Any]]:
    """In a host's memory, where numpy has no bfloat16; a GPU's come through page-locked pages, at
    the bus's full speed (64 rows of five with 32 000 logits are 20 MB)."""
    wide = [tensor.float() if tensor.dtype == torch.bfloat16 else tensor for tensor in tensors]
    if not wide or wide[0].device.type == "cpu":
        return [tensor.numpy() for tensor in wide]
    hosts = [torch.empty(one.shape, dtype=one.dtype, pin_memory=True) for one in wide]
    for host, tensor in zip(hosts, wide, strict=True):
        host.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream().synchronize()
    return [host.numpy() for host in hosts]


def free_bytes(device: torch.device) -> int:
    """Bytes of the GPU's memory that nobody has."""
    return int(torch.cuda.mem_get_info(device)[0])


def device_named(name: str) -> torch.device:
    """`cuda`, `cpu` or `auto`. Raises `UsageError` for CUDA where torch has none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("torch finds no CUDA device here; take the device cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
