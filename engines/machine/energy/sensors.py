"""Search for the sensors of this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgespec.energy_report import different
from engines.machine.energy.files import ROOT
from engines.machine.energy.heat import Thermometer
from engines.machine.energy.ina import find_ina
from engines.machine.energy.nvml import Nvml, find_nvml, load_nvml
from engines.machine.energy.pmic import find_pmic, firmware
from engines.machine.energy.rapl import find_rapl
from engines.machine.energy.sensor import Sensor

NONE = (
    "this machine shows none of the sensors that edgespec reads (INA3221 of a Jetson, PMIC of a "
    "Raspberry Pi 5, RAPL, NVML)"
)


@dataclass(frozen=True)
class Sensors:
    """Sensors of a machine."""

    energy: tuple[Sensor, ...]
    """Energy sensors that together count nothing twice."""
    unread: tuple[str, ...]
    """Reasons why other sensors, or all, are not read."""
    heat: Thermometer

    @property
    def covers(self) -> str:
        """Parts of the machine that are measured: `CPU packages and GPU only (RAPL, NVML)`."""
        return coverage(self.energy)

    def describe(self) -> str:
        """Returns a line for the user."""
        return "; ".join([self.covers, *self.unread] if self.energy else self.unread)


def coverage(sensors: tuple[Sensor, ...]) -> str:
    """Returns the parts of the machine that `sensors` measure; empty without sensors."""
    what = " and ".join(different(sensor.covers for sensor in sensors))
    only = " only" if any(sensor.partial for sensor in sensors) else ""
    names = ", ".join(different(sensor.name for sensor in sensors))
    return f"{what}{only} ({names})" if sensors else ""


def find(root: Path = ROOT, nvml: Nvml | None = None) -> Sensors:
    """Finds the sensors of the file tree `root`. Raises nothing.

    `nvml` is NVIDIA's library; None loads it if `root` is this machine's own. If the board has INA
    monitors, no other sensor is used, since the monitors include the GPU.
    """
    if nvml is None and root == ROOT:
        nvml = load_nvml()
    ask = firmware(root)
    found = find_ina(root)
    if not any(isinstance(each, Sensor) for each in found):
        found = [*found, *find_pmic(root, ask), *find_rapl(root), *find_nvml(nvml)]
    energy = tuple(each for each in found if isinstance(each, Sensor))
    unread = tuple(each for each in found if isinstance(each, str))
    return Sensors(energy, unread if found else (NONE,), Thermometer(root, ask, nvml))
