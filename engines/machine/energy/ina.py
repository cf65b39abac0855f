"""Jetson: the power monitors on the module and its carrier, as hwmon devices.

The INA3221 has three channels: `inN_label`, `inN_input` in mV, `currN_input` in mA (kernel
documentation, hwmon/ina3221; its `in7`, a sum of shunt voltages, has no current and is no rail).
Thor's carrier has an INA238 at its input: one channel, named by the file `label`, with
`power1_input` in µW (hwmon/ina238). NVIDIA's device trees label the rails (tegra234-p3767, -p3701).

Which rails add up, without counting any twice:

* Orin Nano and NX: `VDD_IN` is the module's input, the others are behind it (NVIDIA's Jetson Linux
  Developer Guide, "Software-Based Power Consumption Modeling").
* AGX Orin has no such rail. `VDD_GPU_SOC`, `VDD_CPU_CV` and `VIN_SYS_5V0` together are the module;
  `VDDQ_VDD2_1V8AO` is fed from the last (the same guide).
* AGX Thor: `VIN` is the board's input, module and carrier (rbonghi/jetson_stats, pull request 900);
  without it `VDD_GPU`, `VDD_CPU_SOC_MSS` and `VIN_SYS_5V0`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from engines.machine.energy.files import line, number
from engines.machine.energy.sensor import Found, Sensor

EVERY = 0.1
"""Seconds."""
MOST_WATTS = 1000.0
MODULE = "whole module"


@dataclass(frozen=True)
class Layout:
    """Rails of a board: those that add up, and those that are part of them."""

    total: tuple[str, ...]
    covers: str
    inside: tuple[str, ...] = ()


LAYOUTS = (
    Layout(
        ("VIN",), "whole board", ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0")
    ),
    Layout(("VDD_IN",), MODULE, ("VDD_CPU_GPU_CV", "VDD_SOC")),
    Layout(("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), MODULE, ("VDDQ_VDD2_1V8AO",)),
    Layout(("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"), MODULE),
)  # fmt: skip
"""The first whose total is there is taken."""

Channel = Callable[[], float | None]
"""Watts now."""


def find_ina(root: Path) -> list[Found]:
    """Nothing where there is no such monitor."""
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
            lambda: _read(chosen), EVERY, MOST_WATTS, inside, partial=False,
            leaves_out="what its carrier feeds" if layout.covers == MODULE else "",
        )
    ]  # fmt: skip


def _read(channels: Mapping[str, Channel]) -> dict[str, float]:
    watts = {rail: channel() for rail, channel in channels.items()}
    return {rail: value for rail, value in watts.items() if value is not None}


def _chips(root: Path) -> list[Path]:
    """Folders of INA monitors, by either way that leads to them, each once."""
    ways = [
        *(root / "sys/class/hwmon").glob("hwmon*"),
        *(root / "sys/bus/i2c/drivers").glob("ina*/*/hwmon/hwmon*"),
    ]
    folders = {way.resolve(): None for way in sorted(ways)}
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
