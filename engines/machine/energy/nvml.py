"""NVML: NVIDIA GPUs through the driver's own library, `libnvidia-ml.so.1`.

According to NVML's reference, `nvmlDeviceGetTotalEnergyConsumption` counts mJ since the driver was
loaded (Volta and newer), `nvmlDeviceGetPowerUsage` returns mW, averaged over a second on recent
cards, `nvmlDeviceGetTemperature(…, 0)` returns °C of the GPU, and
`nvmlDeviceGetCurrentClocksThrottleReasons` returns a bit mask. All GPUs of the machine are counted,
including those that other programs use.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from engines.machine.energy.sensor import Found, Kind, Sensor

LIBRARY = "libnvidia-ml.so.1"
COUNTER_INTERVAL_S = 1.0
POWER_INTERVAL_S = 0.1
MAX_WATTS = 5000.0
NAME_BYTES = 96
UNKNOWN_FUNCTION = 13
"""NVML's return code for a function that it does not have."""
SLOWED: Mapping[int, str] = {
    0x04: "GPU power cap",
    0x08: "GPU hardware slowdown",
    0x20: "GPU too warm",
    0x40: "GPU too hot (hardware)",
    0x80: "GPU power brake",
}
"""Throttle reasons, by bit, that mean a lack of power or cooling. Idling and clock settings do not.
"""


class NvmlGpu(NamedTuple):
    """A GPU of NVML."""

    name: str
    handle: ctypes.c_void_p


class Nvml:
    """NVIDIA's library, initialised, and its GPUs."""

    def __init__(self, library: Any) -> None:
        """`library` has NVML's functions. Raises `OSError` if the driver refuses."""
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
        """Calls a function. Returns NVML's code: 0 for success."""
        function = getattr(self._library, name, None)
        return UNKNOWN_FUNCTION if function is None else int(function(*arguments))

    def energy(self, gpu: NvmlGpu) -> float | None:
        """Returns joules since the driver was loaded; None if the GPU does not count them."""
        return self._ask("nvmlDeviceGetTotalEnergyConsumption", gpu, ctypes.c_ulonglong(), 1e-3)

    def power(self, gpu: NvmlGpu) -> float | None:
        """Returns watts; None if the GPU does not measure them."""
        return self._ask("nvmlDeviceGetPowerUsage", gpu, ctypes.c_uint(), 1e-3)

    def celsius(self, gpu: NvmlGpu) -> float | None:
        """Returns the temperature in °C; None if it is unknown."""
        value = ctypes.c_uint()
        code = self._call(
            "nvmlDeviceGetTemperature", gpu.handle, ctypes.c_int(0), ctypes.byref(value)
        )
        return None if code else float(value.value)

    def slowed(self, gpu: NvmlGpu) -> set[str] | None:
        """Returns the reasons why the clocks are held down now; None if they are unknown."""
        name, value = "nvmlDeviceGetCurrentClocksThrottleReasons", ctypes.c_ulonglong()
        mask = self._ask(name, gpu, value, 1.0)
        return None if mask is None else {why for bit, why in SLOWED.items() if int(mask) & bit}

    def _ask(
        self, name: str, gpu: NvmlGpu, value: ctypes.c_uint | ctypes.c_ulonglong, scale: float
    ) -> float | None:
        code = self._call(name, gpu.handle, ctypes.byref(value))
        return None if code else value.value * scale


def load_nvml() -> Nvml | None:
    """Loads the library; returns None if there is no NVIDIA driver, or if it refuses."""
    try:
        return Nvml(ctypes.CDLL(LIBRARY))
    except OSError:
        return None


def find_nvml(nvml: Nvml | None) -> list[Found]:
    """Returns a counter for the GPUs that count energy, and a power sensor for those that only
    measure watts."""
    if nvml is None or not nvml.gpus:
        return []
    counting = [gpu for gpu in nvml.gpus if nvml.energy(gpu) is not None]
    measuring = [gpu for gpu in nvml.gpus if gpu not in counting and nvml.power(gpu) is not None]
    silent = [gpu for gpu in nvml.gpus if gpu not in counting and gpu not in measuring]
    found: list[Found] = [f"{gpu.name} tells no power (NVML)" for gpu in silent]
    if counting:
        found.append(_sensor("counter", counting, nvml.energy))
    if measuring:
        found.append(_sensor("power", measuring, nvml.power))
    return found


def _sensor(kind: Kind, gpus: Sequence[NvmlGpu], ask: Callable[[NvmlGpu], float | None]) -> Sensor:
    def read() -> dict[str, float]:
        values = {gpu.name: ask(gpu) for gpu in gpus}
        return {rail: value for rail, value in values.items() if value is not None}

    return Sensor(
        "NVML", "GPU" if len(gpus) == 1 else "GPUs", kind,
        tuple(gpu.name for gpu in gpus), read,
        COUNTER_INTERVAL_S if kind == "counter" else POWER_INTERVAL_S, MAX_WATTS,
    )  # fmt: skip
