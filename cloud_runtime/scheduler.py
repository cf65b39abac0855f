"""Which step runs next. Pure: sessions and costs in, a batch, a draft step or a wait out."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from cloud_runtime.costs import StepCosts
from cloud_runtime.decision import Decision, decide
from cloud_runtime.seats import Seat
from edgespec.config import CloudSettings
from engines.base import Row


@dataclass(frozen=True)
class Batch:
    """A step of the target."""

    seats: list[Seat] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    """One for each seat."""

    @property
    def tokens(self) -> int:
        return sum(len(row.tokens) for row in self.rows)


@dataclass(frozen=True)
class DraftStep:
    """One more id for each seat, by the draft beside the target."""

    seats: list[Seat]


@dataclass(frozen=True)
class Wait:
    seconds: float | None
    """Until something may have changed by itself; None: only news can."""


def pick(
    sessions: Collection[Seat],
    settings: CloudSettings,
    costs: StepCosts,
    beside_step: float,
    now: float,
) -> Batch | DraftStep | Wait:
    """Of the sessions that are ready, the longest waiting first, up to the batch's tokens; marks
    them as running. One row always runs, whatever its length.

    A session alone may wait for ids that are on their way; where others run anyway it joins them.
    """
    ready = sorted((s for s in sessions if s.ready), key=lambda seat: seat.ready_since)
    company = len(ready) > 1
    decisions = [_decide(seat, settings, costs, beside_step, now, company) for seat in ready]
    drafting = [s for s, d in zip(ready, decisions, strict=True) if d.what == "draft"]
    if drafting:
        return DraftStep(drafting)
    waits = [decision.seconds for decision in decisions if decision.what == "wait"]
    if waits and len(waits) == len(ready):
        return Wait(min(waits))
    batch, budget = Batch(), settings.max_batch_tokens
    for seat, decision in zip(ready, decisions, strict=True):
        size = _size(seat, settings, decision)
        if batch.rows and size > budget:
            break
        budget -= size
        batch.seats.append(seat)
        batch.rows.append(seat.row(settings.prefill_chunk, decision.ids, hints=settings.hints))
    return batch if batch.rows else Wait(None)


def _size(seat: Seat, settings: CloudSettings, decision: Decision) -> int:
    return min(seat.length - seat.cached, settings.prefill_chunk) + decision.ids


def _decide(
    seat: Seat,
    settings: CloudSettings,
    costs: StepCosts,
    beside_step: float,
    now: float,
    company: bool,
) -> Decision:
    if seat.prefilling(settings.prefill_chunk):
        return Decision("verify", 0)
    outlook = seat.outlook(now, beside_step, company=company)
    most = min(settings.max_draft, seat.state.remaining - 1)
    if len(outlook.here) >= most:  # more than that cannot be committed
        outlook = replace(outlook, beside=0.0, coming=())
    if not seat.terms.decoding:  # lock-step: what came is verified, all of it
        return Decision("verify", min(len(outlook.here), max(0, most)))
    decision = decide(outlook, costs.step)
    return decision._replace(ids=min(decision.ids, max(0, most)))
