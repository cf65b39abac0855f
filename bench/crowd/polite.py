"""What one device that behaves badly costs polite ones: windows with and without it in turns."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from bench.crowd.cloud import Crowd, Served, tell
from bench.crowd.figures import compared, mean_rate, said_of, worst
from bench.crowd.offenders import OFFENDERS, Scene, offender
from bench.fleet.devices import Cell
from bench.lab.methods import EDGESPEC
from bench.lab.processes import cores, resident_mb

ONE_MORE = "one more"
"""In place of an offender: what a polite device costs the others."""


def offences(crowd: Crowd) -> dict[str, Any]:
    """Rates, gaps, memory and log lines, offender by offender."""
    polite, rows = crowd.settings.polite, []
    with crowd.cloud() as served:
        before = _window(served, polite, "alone")
        for name in (ONE_MORE, *OFFENDERS):
            lines, memory = len(served.lines), resident_mb(served.pid)
            did: dict[str, Any] = {}
            if name == ONE_MORE:
                cell = _window(served, polite + 1, name)
            else:
                beside = partial(_beside, crowd, served, name, did)
                cell = _window(served, polite, name, beside)
            after = _window(served, polite, "alone")
            said = said_of(served.lines[lines:], name)
            rows.append(
                {"name": name}
                | compared(before, cell, after, polite)
                | {
                    "memory_before_mb": memory,
                    "memory_beside_mb": cell["memory_mb"],
                    "memory_after_mb": after["memory_mb"],
                    "said": said[0] if said else None,
                    "lines": len(said),
                    "did": did,
                }
            )
            before = after
    bad = [row for row in rows if row["name"] != ONE_MORE]
    fair = next(row["rate_beside"] for row in rows if row["name"] == ONE_MORE)
    greedy = next(row["rate_beside"] for row in rows if row["name"] == "greedy")
    return {
        "worst_polite_ratio": worst(bad),
        "greedy_ratio_to_one_more": greedy / fair if fair else None,
        "polite": polite,
        "offenders": rows,
    }


def _window(
    served: Served, devices: int, beside_whom: str, beside: Any = nullcontext
) -> dict[str, Any]:
    tell(f"{devices} devices, {beside_whom}")
    figures = served.generator.measure(EDGESPEC, devices, beside).figures
    tell(f"  {mean_rate(figures, devices):.2f} tokens/s each")
    return figures


def _beside(
    crowd: Crowd, served: Served, name: str, did: dict[str, Any], cell: Cell
) -> AbstractContextManager[object]:
    prompts, answers = zip(*crowd.texts, strict=True)
    scene = Scene(
        served.endpoint, cell.hello, list(prompts), list(answers), cell.end_ids, cell.closes,
        cores()[0],
    )  # fmt: skip
    return offender(name, scene, did)
