"""Cost of one offender to polite devices: windows with and without it, in turns."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial

from bench.crowd.cloud import Crowd, Served, tell
from bench.crowd.figures import Offence, OffendersPart, compared, mean_rate, trouble_of, worst
from bench.crowd.offenders import OFFENDERS, offender
from bench.crowd.scene import Scene
from bench.fleet.devices import TrialPlan
from bench.fleet.figures import Trial
from bench.fleet.generator import During
from bench.lab.methods import EDGESPEC
from bench.lab.processes import cores, resident_mb

ONE_MORE = "one more"
"""Name of the window in which one more polite device takes the offender's place."""


def offences(crowd: Crowd) -> OffendersPart:
    """Rates, gaps, memory and log lines for each offender."""
    polite, rows = crowd.settings.polite, []
    with crowd.cloud() as served:
        before = _window(served, polite, "alone")
        for name in (ONE_MORE, *OFFENDERS):
            row, before = _offence(crowd, served, name, before)
            rows.append(row)
    rates = {row.name: row.rate_with_offender for row in rows}
    fair = rates[ONE_MORE]
    return OffendersPart(
        worst_polite_ratio=worst([row for row in rows if row.name != ONE_MORE]),
        greedy_ratio_to_one_more=rates["greedy"] / fair if fair else None,
        polite=polite,
        offenders=rows,
    )


def _offence(crowd: Crowd, served: Served, name: str, before: Trial) -> tuple[Offence, Trial]:
    """A window with the offender and one without it, which is returned too."""
    polite = crowd.settings.polite
    lines, memory_mb = len(served.lines), resident_mb(served.pid)
    did: dict[str, float] = {}
    if name == ONE_MORE:
        trial = _window(served, polite + 1, name)
    else:
        trial = _window(served, polite, name, partial(_offender, crowd, served, name, did))
    after = _window(served, polite, "alone")
    entries = trouble_of(served.lines[lines:], name)
    row = Offence(
        name=name,
        memory_before_mb=memory_mb,
        memory_with_offender_mb=trial.memory_mb,
        memory_after_mb=after.memory_mb,
        log_entry=entries[0] if entries else None,
        lines=len(entries),
        did=did,
        **vars(compared(before, trial, after, polite)),
    )
    return row, after


def _window(served: Served, devices: int, name: str, during: During = nullcontext) -> Trial:
    tell(f"{devices} devices, {name}")
    trial = served.generator.measure(EDGESPEC, devices, during).trial
    tell(f"  {mean_rate(trial, devices):.2f} tokens/s each")
    return trial


def _offender(
    crowd: Crowd, served: Served, name: str, did: dict[str, float], plan: TrialPlan
) -> AbstractContextManager[object]:
    prompts, answers = zip(*crowd.texts, strict=True)
    identity = plan.identity
    scene = Scene(
        served.endpoint, identity.hello, list(prompts), list(answers), list(identity.end_ids),
        plan.closes, cores()[0],
    )  # fmt: skip
    return offender(name, scene, did)
