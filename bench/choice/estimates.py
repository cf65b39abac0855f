"""Agreements of drafts that are not trained yet, estimated from drafts that were.

Sources are measurements of SmolLM2 (docs/pair.md), or the JSON line of `edgespec bench shapes`. For
any other target they are a guess. The choice therefore marks them, and names the agreement at which
it would change.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.lab.profiles import read_json
from edgespec.errors import UsageError

FEW_STEPS = ((4 / 30, 0.101), (8 / 30, 0.200), (12 / 30, 0.352), (16 / 30, 0.508), (20 / 30, 0.597))
"""(share of the target's layers, agreement) after 20 steps of training, at int8."""
MORE_STEPS_LOG_ODDS = 0.84
"""What 331 further steps added to the log-odds of agreement: 18 layers went from 0.553, which
`FEW_STEPS` gives, to 0.741."""
COPY_ERRORS_LEFT = 0.4
"""Errors of an int4 copy after GPTQ and 120 steps of training, relative to those of plain rounding:
0.909 and 0.774 of the same 2 009 held-out tokens agreed."""
INT8_SHARE = 0.1
"""Share of an int4 copy's weights that stay at int8, by default."""


@dataclass(frozen=True)
class DepthCurve:
    """Agreement by depth."""

    points: Sequence[tuple[float, float]]
    """(share of the target's layers, agreement), ascending, without the ends 0 and 1."""
    source: str

    def agreement(self, share: float) -> float:
        """Interpolates for a share of the target's layers from 0 to 1."""
        shares, agreements = zip((0.0, 0.0), *self.points, (1.0, 1.0), strict=True)
        return float(np.interp(share, shares, agreements))


def builtin_curve() -> DepthCurve:
    """What long training reached for SmolLM2, by depth."""
    points = [(share, _raised(agreement)) for share, agreement in FEW_STEPS]
    return DepthCurve(points, "the curve of SmolLM2")


def read_curve(path: Path, profile: str) -> DepthCurve:
    """Reads the output of `bench shapes --json`, whose last line is the object.

    The best draft of each depth counts, at that profile if the file has it. Raises `UsageError`.
    """
    best: dict[float, float] = {}
    try:
        entries = _last_object(path)["shapes"]
        same = [entry for entry in entries if entry["profile"] == profile]
        for entry in same or entries:
            layers, of = entry["layers"].split(" of ")
            share, agreement = int(layers) / int(of), float(entry["agreement"])
            if not (0 < share <= 1 and 0 <= agreement <= 1):
                raise ValueError
            if share < 1:
                best[share] = max(agreement, best.get(share, 0.0))
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
        best = {}
    if not best:
        raise UsageError(
            f"{path} has no drafts with a depth and an agreement; pass what 'edgespec bench shapes "
            "--json' printed"
        )
    return DepthCurve(sorted(best.items()), path.name)


def trained_copy(rounded: float) -> float:
    """Agreement of an int4 copy after training, from that of plain rounding."""
    return 1 - COPY_ERRORS_LEFT * (1 - rounded)


def _raised(agreement: float) -> float:
    log_odds = math.log(agreement / (1 - agreement)) + MORE_STEPS_LOG_ODDS
    return 1 / (1 + math.exp(-log_odds))


def _last_object(path: Path) -> dict[str, list[dict[str, str]]]:
    try:
        lines = path.read_text(encoding="utf-8").strip().splitlines()
    except (OSError, UnicodeDecodeError):
        return dict(read_json(path))  # raises UsageError for what cannot be read
    return dict(json.loads(lines[-1] if lines else ""))
