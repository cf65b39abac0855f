"""Which sensors this machine has."""

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
    energy: tuple[Sensor, ...]
    """Together they count nothing twice."""
    unread: tuple[str, ...]
    """Why others, or all, are not read."""
    heat: Thermometer

    @property
    def covers(self) -> str:
        """As in `CPU packages and GPU only (RAPL, NVML)`."""
        return coverage(self.energy)

    def describe(self) -> str:
        """For people, in a line."""
        return "; ".join([self.covers, *self.unread] if self.energy else self.unread)


def coverage(sensors: tuple[Sensor, ...]) -> str:
    what = " and ".join(different(sensor.covers for sensor in sensors))
    only = " only" if any(sensor.partial for sensor in sensors) else ""
    names = ", ".join(different(sensor.name for sensor in sensors))
    return f"{what}{only} ({names})" if sensors else ""


def find(root: Path = ROOT, nvml: Nvml | None = None) -> Sensors:
    """Looks below `root`. `nvml` stands for NVIDIA's library, which is otherwise loaded where
    `root` is this machine's own. A board that measures itself measures its GPU too. Raises
    nothing."""
    if nvml is None and root == ROOT:
        nvml = load_nvml()
    ask = firmware(root)
    found = find_ina(root)
    if not any(isinstance(each, Sensor) for each in found):
        found = [*found, *find_pmic(root, ask), *find_rapl(root), *find_nvml(nvml)]
    energy = tuple(each for each in found if isinstance(each, Sensor))
    unread = tuple(each for each in found if isinstance(each, str))
    return Sensors(energy, unread if found else (NONE,), Thermometer(root, ask, nvml))
