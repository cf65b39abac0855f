"""NVIDIA GPUs, by the driver's own library (`libnvidia-ml.so.1`) and nothing else.

Of NVML's reference: `nvmlDeviceGetTotalEnergyConsumption` counts mJ since the driver was loaded
(Volta and newer); `nvmlDeviceGetPowerUsage` tells mW, averaged over a second on recent cards;
`nvmlDeviceGetTemperature(…, 0)` °C of the GPU; `nvmlDeviceGetCurrentClocksThrottleReasons` a mask.
All GPUs of the machine are counted, whoever uses them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from engines.machine.energy.sensor import Found, Kind, Sensor

LIBRARY = "libnvidia-ml.so.1"
EVERY = 1.0
EVERY_POWER = 0.1
MOST_WATTS = 5000.0
NAME_BYTES = 96
SLOWED: Mapping[int, str] = {
    0x04: "GPU power cap",
    0x08: "GPU hardware slowdown",
    0x20: "GPU too warm",
    0x40: "GPU too hot (hardware)",
    0x80: "GPU power brake",
}
"""Reasons that are a lack of power or cooling; idling and settings of the clocks are not."""


class NvmlGpu(NamedTuple):
    name: str
    handle: ctypes.c_void_p


class Nvml:
    """The library, begun. `library` has NVML's functions."""

    def __init__(self, library: Any) -> None:
        """Raises `OSError` where the driver refuses."""
        self._library = library
        self.gpus: tuple[NvmlGpu, ...] = ()
        if code := self._call("nvmlInit_v2"):
            raise OSError(f"the NVIDIA driver refuses (NVML error {code})")
        count = ctypes.c_uint()
        self._call("nvmlDeviceGetCount_v2", ctypes.byref(count))
        self.gpus = tuple(
            gpu for place in range(count.value) if (gpu := self._gpu(place)) is not None
        )

    def _gpu(self, place: int) -> NvmlGpu | None:
        handle, name = ctypes.c_void_p(), ctypes.create_string_buffer(NAME_BYTES)
        index = ctypes.c_uint(place)
        if self._call("nvmlDeviceGetHandleByIndex_v2", index, ctypes.byref(handle)):
            return None
        self._call("nvmlDeviceGetName", handle, name, ctypes.c_uint(NAME_BYTES))
        return NvmlGpu(f"GPU {place} {name.value.decode(errors='replace')}".strip(), handle)

    def _call(self, name: str, *arguments: object) -> int:
        """NVML's return code: 0 for success; that of an unknown function where it has none."""
        function = getattr(self._library, name, None)
        return 13 if function is None else int(function(*arguments))

    def energy(self, gpu: NvmlGpu) -> float | None:
        """Joules since the driver was loaded."""
        return self._ask("nvmlDeviceGetTotalEnergyConsumption", gpu, ctypes.c_ulonglong(), 1e-3)

    def power(self, gpu: NvmlGpu) -> float | None:
        """Watts."""
        return self._ask("nvmlDeviceGetPowerUsage", gpu, ctypes.c_uint(), 1e-3)

    def celsius(self, gpu: NvmlGpu) -> float | None:
        value = ctypes.c_uint()
        code = self._call(
            "nvmlDeviceGetTemperature", gpu.handle, ctypes.c_int(0), ctypes.byref(value)
        )
        return None if code else float(value.value)

    def slowed(self, gpu: NvmlGpu) -> set[str] | None:
        """Why its clocks are held down now; None where it does not tell."""
        name, value = "nvmlDeviceGetCurrentClocksThrottleReasons", ctypes.c_ulonglong()
        mask = self._ask(name, gpu, value, 1.0)
        return None if mask is None else {why for bit, why in SLOWED.items() if int(mask) & bit}

    def _ask(
        self, name: str, gpu: NvmlGpu, value: ctypes.c_uint | ctypes.c_ulonglong, scale: float
    ) -> float | None:
        code = self._call(name, gpu.handle, ctypes.byref(value))
        return None if code else value.value * scale


def load_nvml() -> Nvml | None:
    """None where there is no NVIDIA driver, or one that refuses."""
    try:
        return Nvml(ctypes.CDLL(LIBRARY))
    except OSError:
        return None


def find_nvml(nvml: Nvml | None) -> list[Found]:
    """A counter for the GPUs that count, a power sensor for those that only tell watts."""
    if nvml is None or not nvml.gpus:
        return []
    counting = [gpu for gpu in nvml.gpus if nvml.energy(gpu) is not None]
    telling = [gpu for gpu in nvml.gpus if gpu not in counting and nvml.power(gpu) is not None]
    silent = [gpu for gpu in nvml.gpus if gpu not in counting and gpu not in telling]
    found: list[Found] = [f"{gpu.name} tells no power (NVML)" for gpu in silent]
    if counting:
        found.append(_sensor("counter", counting, nvml.energy))
    if telling:
        found.append(_sensor("power", telling, nvml.power))
    return found


def _sensor(kind: Kind, gpus: Sequence[NvmlGpu], ask: Callable[[NvmlGpu], float | None]) -> Sensor:
    def read() -> dict[str, float]:
        values = {gpu.name: ask(gpu) for gpu in gpus}
        return {rail: value for rail, value in values.items() if value is not None}

    return Sensor(
        "NVML", "GPU" if len(gpus) == 1 else "GPUs", kind,
        tuple(gpu.name for gpu in gpus), read, EVERY if kind == "counter" else EVERY_POWER,
        MOST_WATTS,
    )  # fmt: skip
