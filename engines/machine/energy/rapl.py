"""RAPL on x86: energy counters of the CPU packages, from the kernel's powercap files.

`energy_uj` counts µJ and restarts at 0 after `max_energy_range_uj` (kernel documentation,
power/powercap). Zones `intel-rapl:N` are used if their name begins with `package`. Their parts
(core, uncore, dram) and `psys`, which contains them, are not. AMD's processors use the same names.
Since Linux 5.10 only root may read the counter, because it leaks secrets (CVE-2020-8694).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from engines.machine.energy.files import line, number
from engines.machine.energy.sensor import Found, Sensor

INTERVAL_S = 1.0
MAX_WATTS = 2000.0


def find_rapl(root: Path) -> list[Found]:
    """Returns the sensor of the CPU packages; an empty list if the kernel shows no packages."""
    zones = {}
    for zone in sorted((root / "sys/class/powercap").glob("intel-rapl:*")):
        name = line(zone / "name") or ""
        if name.startswith("package"):
            zones[name if name not in zones else zone.name] = zone / "energy_uj"
    if not zones:
        return []
    try:
        for counter in zones.values():
            counter.read_text()
    except PermissionError:
        return [
            f"the CPU's energy counter (RAPL) is readable for root only: run as root, or allow "
            f"reading {counter}"
        ]
    except OSError as error:
        return [f"the CPU's energy counter (RAPL) cannot be read: {error.strerror or error}"]
    ranges = {
        rail: (number(counter.with_name("max_energy_range_uj")) or 0.0) * 1e-6
        for rail, counter in zones.items()
    }
    covers = "CPU package" if len(zones) == 1 else "CPU packages"
    return [
        Sensor(
            "RAPL", covers, "counter", tuple(zones), lambda: _read(zones), INTERVAL_S, MAX_WATTS,
            wrap_joules=ranges,
        )
    ]  # fmt: skip


def _read(zones: Mapping[str, Path]) -> dict[str, float]:
    counts = {rail: number(counter) for rail, counter in zones.items()}
    return {rail: count * 1e-6 for rail, count in counts.items() if count is not None}
