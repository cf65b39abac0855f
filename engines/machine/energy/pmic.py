"""PMIC of a Raspberry Pi 5, through the firmware's tool `vcgencmd`.

The power management chip measures current and voltage of its output rails (`vcgencmd
pmic_read_adc`: lines `VDD_CORE_A current(7)=1.11A`, `VDD_CORE_V volt(15)=0.75V`). The sum of the
products is the chip's output power. It includes neither the chip's losses nor consumers of the 5 V
input: USB, fans, HATs. `EXT5V_V` and `BATT_V` have no current and do not count. A published fit to
wall meters (1.1451 · W + 0.5879, pitop.hongjunwu.com/guide/power) is not applied, since it would be
a guess on any other board. Older boards have no such sensor.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from engines.machine.energy.files import ROOT, board
from engines.machine.energy.sensor import Found, Sensor

INTERVAL_S = 0.5
"""Seconds between two samples; each one starts a process."""
MAX_WATTS = 100.0
ANSWER_TIMEOUT_S = 1.0
WITH_SENSOR = re.compile(r"Raspberry Pi (5|Compute Module 5)")  # matches the 500 too
READING = re.compile(r"^\s*(\w+)_([AV]) (?:current|volt)\(\d+\)=(-?[\d.]+)[AV]\s*$", re.MULTILINE)

Runner = Callable[[str], str]
"""Returns the output of `vcgencmd` for a command. Raises `OSError` with its message if it fails."""


def firmware(root: Path) -> Runner | None:
    """Returns the function that runs `vcgencmd`; None if the tool is not installed.

    A recorded tree holds the outputs as files `vcgencmd/COMMAND`.
    """
    if root != ROOT:
        return _recorded(root / "vcgencmd") if (root / "vcgencmd").is_dir() else None
    program = shutil.which("vcgencmd")
    return _asking(program) if program else None


def _recorded(folder: Path) -> Runner:
    return lambda command: (folder / command).read_text(encoding="utf-8")


def _asking(program: str) -> Runner:
    def ask(command: str) -> str:
        try:
            done = subprocess.run(
                [program, command], capture_output=True, text=True, timeout=ANSWER_TIMEOUT_S,
                check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise OSError(f"no answer within {ANSWER_TIMEOUT_S:g} s") from None
        if done.returncode:
            message = (done.stderr or done.stdout).strip().splitlines()
            raise OSError(message[0] if message else f"exit code {done.returncode}")
        return done.stdout

    return ask


def rails(text: str) -> dict[str, float]:
    """Returns watts by rail, for the rails with a current and a voltage."""
    values: dict[tuple[str, str], float] = {}
    for name, unit, value in READING.findall(text):
        try:
            values[name, unit] = float(value)
        except ValueError:
            continue
    return {
        name: current * values[name, "V"]
        for (name, unit), current in values.items()
        if unit == "A" and (name, "V") in values
    }


def find_pmic(root: Path, ask: Runner | None) -> list[Found]:
    """Returns the board's sensor; an empty list if the board is no Raspberry Pi."""
    name = board(root)
    if "Raspberry Pi" not in name:
        return []
    if not WITH_SENSOR.search(name):
        return [f"{name} has no power sensor"]
    if ask is None:
        return [
            f"{name} tells its power by vcgencmd, which is not installed (Debian package "
            "raspi-utils-core)"
        ]
    try:
        found = rails(ask("pmic_read_adc"))
    except (OSError, UnicodeDecodeError) as error:
        return [f"vcgencmd pmic_read_adc fails ({error}); is this user in the group video?"]
    if not found:
        return [f"the firmware of {name} tells no currents; update it"]
    return [
        Sensor(
            "PMIC", "rails of the power management chip", "power", tuple(found),
            lambda: _read(ask), INTERVAL_S, MAX_WATTS,
            leaves_out="its losses, and what 5 V feeds directly: USB, fan, HATs",
        )
    ]  # fmt: skip


def _read(ask: Runner) -> dict[str, float]:
    try:
        return rails(ask("pmic_read_adc"))
    except (OSError, UnicodeDecodeError):
        return {}
