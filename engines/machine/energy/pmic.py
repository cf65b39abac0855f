"""Raspberry Pi: the firmware's own tool, `vcgencmd`.

The power management chip of a Raspberry Pi 5 tells current and voltage of the rails that it makes
(`vcgencmd pmic_read_adc`: lines `VDD_CORE_A current(7)=1.11A`, `VDD_CORE_V volt(15)=0.75V`); the
sum of their products is what the chip gives out. It sees neither its own losses nor what runs on
the 5 V input directly: USB, fans, HATs. `EXT5V_V` and `BATT_V` have no current and do not count. A
fit to wall meters is in circulation (1.1451 · W + 0.5879, pitop.hongjunwu.com/guide/power); it is
not applied, since it would be a guess on any other board. Older boards have no such sensor.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from engines.machine.energy.files import ROOT, board
from engines.machine.energy.sensor import Found, Sensor

EVERY = 0.5
"""Seconds: each look is a process."""
MOST_WATTS = 100.0
PATIENCE = 1.0
"""Seconds for the firmware to answer."""
WITH_SENSOR = re.compile(r"Raspberry Pi (5|Compute Module 5)")  # 500 and its likes included
READING = re.compile(r"^\s*(\w+)_([AV]) (?:current|volt)\(\d+\)=(-?[\d.]+)[AV]\s*$", re.MULTILINE)

Runner = Callable[[str], str]
"""What `vcgencmd` says to a command. Raises `OSError` with its words where it fails."""


def firmware(root: Path) -> Runner | None:
    """How to ask the firmware; None where that tool is not here. A recorded tree holds its answers
    as files `vcgencmd/COMMAND`."""
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
                [program, command], capture_output=True, text=True, timeout=PATIENCE, check=False
            )
        except subprocess.TimeoutExpired:
            raise OSError(f"no answer within {PATIENCE:g} s") from None
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise OSError(said[0] if said else f"exit code {done.returncode}")
        return done.stdout

    return ask


def rails(text: str) -> dict[str, float]:
    """Watts by rail, for those whose current and voltage are both told."""
    told: dict[tuple[str, str], float] = {}
    for name, unit, value in READING.findall(text):
        try:
            told[name, unit] = float(value)
        except ValueError:
            continue
    return {
        name: current * told[name, "V"]
        for (name, unit), current in told.items()
        if unit == "A" and (name, "V") in told
    }


def find_pmic(root: Path, ask: Runner | None) -> list[Found]:
    """Nothing on a board that is no Raspberry Pi."""
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
            lambda: _read(ask), EVERY, MOST_WATTS,
            leaves_out="its losses, and what 5 V feeds directly: USB, fan, HATs",
        )
    ]  # fmt: skip


def _read(ask: Runner) -> dict[str, float]:
    try:
        return rails(ask("pmic_read_adc"))
    except (OSError, UnicodeDecodeError):
        return {}
