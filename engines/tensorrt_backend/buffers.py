"""Buffers that frames copy to and from a GPU: a call's inputs and a head's outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.cache.device_memory import DeviceStore
from engines.cuda import GpuDevice
from engines.tensorrt_backend.engine import Dims, Port


class Upload:
    """A device array, and the page-locked host array that is copied to it."""

    def __init__(
        self, device: GpuDevice, store: DeviceStore, shape: Dims, dtype: npt.DTypeLike
    ) -> None:
        self.array = store.zeros(shape, dtype)
        self._device = device
        self._host = device.host(shape, dtype)

    def fill(self, values: npt.NDArray[Any]) -> None:
        """Fills the first rows of the host array."""
        np.copyto(self._host[: len(values)], values, casting="same_kind")

    def enqueue(self, rows: int) -> None:
        """Copies the first `rows` rows to the device."""
        self._device.write(self.array.address, self._host[:rows])


class HeadOutputs:
    """Outputs of a head for up to `size` tokens, on the device and in host memory."""

    def __init__(
        self, device: GpuDevice, store: DeviceStore, ports: Sequence[Port], size: int
    ) -> None:
        self._device = device
        self._ports = ports
        shapes = [(size, *port.shape[1:]) for port in ports]
        self.arrays = {
            port.name: store.empty(shape, port.dtype)
            for shape, port in zip(shapes, ports, strict=True)
        }
        self._host = [device.host(s, p.dtype) for s, p in zip(shapes, ports, strict=True)]

    def enqueue(self, tokens: int) -> None:
        """Copies the outputs of the first `tokens` tokens to the host."""
        for host, array in zip(self._host, self.arrays.values(), strict=True):
            self._device.read(host[:tokens], array.address)

    def copies(self, tokens: int) -> list[npt.NDArray[Any]]:
        """Returns copies of what `enqueue` has read: ids as int64, bfloat16 logits as float32."""
        return [as_numpy(h[:tokens], p) for h, p in zip(self._host, self._ports, strict=True)]


def as_numpy(array: npt.NDArray[Any], port: Port) -> npt.NDArray[Any]:
    """Returns a copy in a type that numpy has."""
    if port.bfloat16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.int64 if port.dtype.kind == "i" else port.dtype)
