"""INA power monitors of Jetson modules and carrier boards, as hwmon devices.

The INA3221 has three channels: `inN_label`, `inN_input` in mV, `currN_input` in mA (kernel
documentation, hwmon/ina3221; its `in7`, a sum of shunt voltages, has no current and is no rail).
Thor's carrier has an INA238 at its input: one channel, named by the file `label`, with
`power1_input` in µW (hwmon/ina238). NVIDIA's device trees label the rails (tegra234-p3767, -p3701).

These rails add up without counting any twice:

* Orin Nano and NX: `VDD_IN` is the module's input and feeds the others (NVIDIA's Jetson Linux
  Developer Guide, "Software-Based Power Consumption Modeling").
* AGX Orin has no such rail. `VDD_GPU_SOC`, `VDD_CPU_CV` and `VIN_SYS_5V0` together are the module;
  the last one feeds `VDDQ_VDD2_1V8AO` (the same guide).
* AGX Thor: `VIN` is the board's input, module and carrier (rbonghi/jetson_stats, pull request 900);
  without it `VDD_GPU`, `VDD_CPU_SOC_MSS` and `VIN_SYS_5V0`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from engines.machine.energy.files import line, number
from engines.machine.energy.sensor import Found, Sensor

INTERVAL_S = 0.1
MAX_WATTS = 1000.0
MODULE = "whole module"


@dataclass(frozen=True)
class Layout:
    """Rails of a board."""

    total: tuple[str, ...]
    """Rails that add up to the figure."""
    covers: str
    inside: tuple[str, ...] = ()
    """Rails that are part of the total."""


LAYOUTS = (
    Layout(
        ("VIN",), "whole board", ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0")
    ),
    Layout(("VDD_IN",), MODULE, ("VDD_CPU_GPU_CV", "VDD_SOC")),
    Layout(("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), MODULE, ("VDDQ_VDD2_1V8AO",)),
    Layout(("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"), MODULE),
)  # fmt: skip
"""Known layouts; the first one whose total rails are present is used."""

Channel = Callable[[], float | None]
"""Returns the power in watts now; None if it cannot be read."""


def find_ina(root: Path) -> list[Found]:
    """Returns the sensor of the INA monitors; an empty list if there is no monitor."""
    channels: dict[str, Channel] = {}
    chips = set()
    for chip in _chips(root):
        chips.add((line(chip / "name") or "ina").upper())
        channels |= _channels(chip)
    if not channels:
        return []
    layout = next((each for each in LAYOUTS if set(each.total) <= set(channels)), None)
    if layout is None:
        rails = ", ".join(sorted(channels))
        return [f"the rails {rails} are none that edgespec knows how to add up"]
    inside = tuple(rail for rail in layout.inside if rail in channels)
    chosen = {rail: channels[rail] for rail in (*layout.total, *inside)}
    return [
        Sensor(
            " and ".join(sorted(chips)), layout.covers, "power", layout.total,
            lambda: _read(chosen), INTERVAL_S, MAX_WATTS, inside, partial=False,
            leaves_out="what its carrier feeds" if layout.covers == MODULE else "",
        )
    ]  # fmt: skip


def _read(channels: Mapping[str, Channel]) -> dict[str, float]:
    watts = {rail: channel() for rail, channel in channels.items()}
    return {rail: value for rail, value in watts.items() if value is not None}


def _chips(root: Path) -> list[Path]:
    """Returns the folders of INA monitors. Two paths may lead to a folder; it is listed once."""
    paths = [
        *(root / "sys/class/hwmon").glob("hwmon*"),
        *(root / "sys/bus/i2c/drivers").glob("ina*/*/hwmon/hwmon*"),
    ]
    folders = {path.resolve(): None for path in sorted(paths)}
    return [folder for folder in folders if (line(folder / "name") or "").startswith("ina")]


def _channels(chip: Path) -> dict[str, Channel]:
    found: dict[str, Channel] = {}
    for label in sorted(chip.glob("in*_label")):
        place = label.name[2 : -len("_label")]
        rail, watts = line(label), _product(chip, place)
        if rail and rail != "NC" and watts() is not None:
            found[rail] = watts
    rail, power = line(chip / "label"), chip / "power1_input"
    if not found and rail:
        single = _product(chip, "1")
        if number(power) is not None:
            found[rail] = lambda: _scaled(number(power), 1e-6)
        elif single() is not None:
            found[rail] = single
    return found


def _product(chip: Path, place: str) -> Channel:
    def watts() -> float | None:
        millivolts = number(chip / f"in{place}_input")
        milliamperes = number(chip / f"curr{place}_input")
        return None if millivolts is None else _scaled(milliamperes, millivolts * 1e-6)

    return watts


def _scaled(value: float | None, scale: float) -> float | None:
    return None if value is None else value * scale
