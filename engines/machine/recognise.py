"""Recognition of the hardware: from facts about a machine to a profile. Pure code.

The signs of a profile are in its file. A board decides before a GPU, and a GPU before the CPU's
flags, since a Jetson has all three.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from engines.machine import profiles
from engines.machine.installed import Gpu
from engines.machine.profiles import Signs

_INTEGRATED = ("nvgpu", "Thor")
"""Parts of the names of Jetsons' GPUs; a Jetson is recognised by its board."""


@dataclass(frozen=True)
class HardwareFacts:
    """Facts about a machine that the signs of a profile are compared with."""

    boards: tuple[str, ...] = ()
    """The device tree's `model`, and the entries of its `compatible`."""
    release: str = ""
    """Release of Jetson Linux."""
    gpus: tuple[Gpu, ...] = ()
    cpu: str = ""
    features: tuple[str, ...] = ()
    memory_mb: int = 0
    """0: unknown."""


class Recognition(NamedTuple):
    """Result of the recognition."""

    profile: str
    """Profile of the hardware; empty if it was not recognised, or is refused."""
    reason: str
    """A clause for the user; empty if the hardware was not recognised."""
    refused: bool = False


def recognise(evidence: HardwareFacts) -> Recognition:
    """Returns the profile whose signs the facts show."""
    for refused in profiles.refused().values():
        if _board(refused.signs, evidence):
            return Recognition("", refused.why, refused=True)
    known = [(name, profiles.profile(name).signs) for name in profiles.names()]
    of_board = [(name, signs) for name, signs in known if _board(signs, evidence)]
    for name, signs in of_board:
        if _within(evidence.release, signs.release):
            release = f" with Jetson Linux {evidence.release}" if any(signs.release) else ""
            return Recognition(name, f"this is a {evidence.boards[0]}{release}")
    if of_board:
        return Recognition("", _other_release(of_board, evidence))
    for name, signs in known:
        if signs.capability and (gpu := _gpu(signs, evidence.gpus)):
            return Recognition(name, f"there is a GPU ({gpu})")
    for name, signs in known:
        if signs.features and _cpu(signs, evidence):
            has = ", ".join(signs.features)
            return Recognition(name, f"the CPU ({evidence.cpu or 'of unknown name'}) has {has}")
    return Recognition("", "")


def numbers(version: str) -> tuple[int, ...]:
    """Returns the numbers of a version without trailing zeros: `36.4.0` equals `36.4`."""
    found = [int(part) for part in re.findall(r"\d+", version)]
    while found and found[-1] == 0:
        found.pop()
    return tuple(found)


def _board(signs: Signs, evidence: HardwareFacts) -> bool:
    return any(sign in board for sign in signs.boards for board in evidence.boards)


def _within(release: str, bounds: tuple[str, str]) -> bool:
    """Return True if a release is from the first bound on and below the second; "" is no bound."""
    first, end = bounds
    if not first and not end:
        return True
    known = numbers(release)
    return bool(known) and known >= numbers(first) and (not end or known < numbers(end))


def _other_release(of_board: Sequence[tuple[str, Signs]], evidence: HardwareFacts) -> str:
    """Returns the reason for a board whose release has no profile."""
    ranges = [
        f"{name} from {signs.release[0]}"
        + (f" to below {signs.release[1]}" if signs.release[1] else " on")
        for name, signs in of_board
    ]
    have = (
        f"this one has {evidence.release}"
        if evidence.release
        else "this one's cannot be read (a container needs /etc/nv_tegra_release)"
    )
    board = evidence.boards[0]
    return f"a {board} needs Jetson Linux {', or '.join(ranges)}, and {have}"


def _cpu(signs: Signs, evidence: HardwareFacts) -> bool:
    enough = not evidence.memory_mb or evidence.memory_mb >= signs.memory_mb
    return enough and set(signs.features) <= set(evidence.features)


def _gpu(signs: Signs, gpus: tuple[Gpu, ...]) -> Gpu | None:
    for gpu in gpus:
        if any(word in gpu.name for word in _INTEGRATED):
            continue
        if gpu.capability:
            if numbers(gpu.capability) >= numbers(signs.capability):
                return gpu
        elif any(name in gpu.name for name in signs.gpus):
            return gpu
    return None
