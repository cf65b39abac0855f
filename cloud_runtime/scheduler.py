"""Which step runs next. Pure: sessions and costs in, a batch, a draft step or a wait out.

Sessions are served by the time at which their next token is due, the earliest first. Everyone who
is ready joins a step, since the rows of a step share its fixed cost; left out are rows beyond
`max_batch_rows`, further sessions of a device that has one in the step already, where they would
make the others wait, and, while someone is late for his promised rate, those who are early.
Prompts run in steps of their own, as long as those who wait can bear.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from cloud_runtime.costs import SHORT, Speeds
from cloud_runtime.decision import Decision, decide
from cloud_runtime.sessions import CloudSession
from edgespec.config import CloudSettings
from engines.base import Row

NARROW = 2
"""Tokens not cached up to which a session is no prompt: a row costs as much for two as for one."""
LATE = 1.0
"""Seconds; whoever is later than that is not more urgent for it, so that no one starves."""
PAUSE, RESUME = 0.5, 0.1
"""Seconds that a session must be early to be left out, and to join again. Not too close together,
since its slot is moved out of the way."""
URGENT = 2.0
"""What the tokens of a session count that is late, lest the fast ones choose the width."""
TURN = 1.0
"""Seconds for which the same of a device's sessions are left out, and the same run."""
SHARE = 0.1
"""What the further sessions of devices may add to the time of a step."""
LONGEST = 2.0
"""Steps of the others that a prompt's chunk may take where they are early."""
CHUNKS = (32, 64, 128, 256, 512, 1024)
"""Widths of a prompt's rows."""


@dataclass(frozen=True)
class Batch:
    """A step of the target."""

    seats: list[CloudSession] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    """One for each seat."""

    @property
    def width(self) -> int:
        """Tokens of the longest row."""
        return max(len(row.tokens) for row in self.rows)

    @property
    def cached(self) -> int:
        """Positions that were cached before it."""
        return sum(row.start for row in self.rows)


@dataclass(frozen=True)
class DraftStep:
    """One more id for each seat, by the draft beside the target."""

    seats: list[CloudSession]
    width: int = 1
    """Tokens that it reads of the longest text."""


@dataclass(frozen=True)
class Wait:
    seconds: float | None
    """Until something may have changed by itself; None: only news can."""


def pick(
    sessions: Collection[CloudSession], settings: CloudSettings, speeds: Speeds, now: float
) -> Batch | DraftStep | Wait:
    """What to run for the sessions that are ready and have a slot; marks those of a batch as
    running."""
    ready = [seat for seat in sessions if seat.ready and seat.slot is not None]
    if not ready:
        return Wait(None)
    # Of those later than that whoever was served longest ago, lest the same ones always win.
    ready.sort(key=lambda seat: (max(seat.due, now - LATE), seat.ready_since))
    prompts = [seat for seat in ready if seat.pending > NARROW]
    prompts.sort(key=lambda seat: seat.opened_at)
    others = _paused([seat for seat in ready if seat.pending <= NARROW], now)
    others = _shares(others, settings, speeds, now)
    # In turns, so that neither stalls the other.
    if prompts and all(prompts[0].ready_since <= seat.ready_since for seat in others):
        return _prompt_step(prompts, others, settings, speeds, now)
    step = _decide(others, settings, speeds, now)
    if step.what == "wait" and prompts:
        return _prompt_step(prompts, others, settings, speeds, now)
    if step.what == "wait":
        return Wait(step.seconds)
    if step.what == "draft":
        shared = len(others) > 1
        lacking = [seat for seat in others if _lacks(seat, step.ids, settings, shared=shared)]
        return DraftStep(lacking, max(seat.unread for seat in lacking))
    batch = Batch()
    for seat in others:
        batch.seats.append(seat)
        count = min(step.ids, _most(seat, settings))
        batch.rows.append(seat.row(NARROW, count, hints=settings.hints))
    return batch


def _most(seat: CloudSession, settings: CloudSettings) -> int:
    """Ids that are of use to it."""
    return max(0, min(settings.max_draft, seat.state.remaining - 1))


def _lacks(seat: CloudSession, ids: int, settings: CloudSettings, *, shared: bool) -> bool:
    """Whether the draft beside the target is to name another for it, where each is to have so
    many."""
    wanted = min(ids, _most(seat, settings))
    return seat.may_draft(shared=shared) and seat.terms.decoding and seat.ahead < wanted


def _paused(seats: Sequence[CloudSession], now: float) -> list[CloudSession]:
    """While someone is late for what he was promised, those who are early wait until they no
    longer are, and make the step shorter."""
    late = any(seat.promised and seat.due < now for seat in seats)
    for seat in seats:
        early = seat.due - now
        seat.paused = late and seat.promised and early > (RESUME if seat.paused else PAUSE)
    return [seat for seat in seats if not seat.paused]


def _shares(
    seats: Sequence[CloudSession], settings: CloudSettings, speeds: Speeds, now: float
) -> list[CloudSession]:
    """Of each device one session, and of the others as many as cost the rest little; no more than a
    step may have. Which ones they are changes every `TURN` at most."""
    own: dict[bytes, list[CloudSession]] = {}
    for seat in seats:
        own.setdefault(seat.peer, []).append(seat)
    if 1 < len(own) < len(seats):
        for several in own.values():
            several.sort(key=lambda seat: _turn(seat, now))
        first = [several[0] for several in own.values()]
        further = [seat for several in own.values() for seat in several[1:]]
        further.sort(key=lambda seat: (_turn(seat, now), max(seat.due, now - LATE)))
        allowed = (1 + SHARE) * _step(first, speeds)
        while further and _step([*first, *further], speeds) > allowed:
            further.pop()
        chosen = {seat.session for seat in (*first, *further)}
    else:
        chosen = {seat.session for seat in seats}
    for seat in seats:
        if seat.left_out != (seat.session not in chosen):
            seat.left_out, seat.turn_since = not seat.left_out, now
    within = [seat for seat in seats if not seat.left_out]
    return within[: settings.max_batch_rows or None]


def _turn(seat: CloudSession, now: float) -> int:
    """Its place among those of its device: those whose turn it is, those who wait for theirs, those
    who have had it."""
    if seat.left_out:
        return 1
    return 0 if now - seat.turn_since < TURN else 2


def _prompt_step(
    prompts: Sequence[CloudSession],
    others: Sequence[CloudSession],
    settings: CloudSettings,
    speeds: Speeds,
    now: float,
) -> Batch:
    """A chunk of the most urgent prompt, and of those beside it that fit. With others waiting it
    takes as long as a step of theirs, or somewhat longer where they are early."""
    bearable = float("inf")
    if others:
        own = _step(others, speeds)
        early = min(seat.due for seat in others) - now
        bearable = min(max(own, early), LONGEST * own)
    room = settings.prefill_chunk
    widths = [width for width in CHUNKS if width < room] + [room]
    width = widths[0]
    for wider in widths[1:]:
        if speeds.chunks.step(wider, 1, prompts[0].cached) <= bearable:
            width = wider
    width = min(width, prompts[0].pending)
    batch = Batch()
    for seat in prompts[: settings.max_batch_rows or None]:
        cached = _cached([*batch.seats, seat])
        rows = len(batch.rows) + 1
        if batch.rows and (
            rows * width > settings.max_batch_tokens
            or speeds.of(width).step(width, rows, cached) > bearable
        ):
            break
        batch.seats.append(seat)
        batch.rows.append(seat.row(width, 0, hints=False))
    return batch


def _decide(
    seats: Sequence[CloudSession], settings: CloudSettings, speeds: Speeds, now: float
) -> Decision:
    cached, shared = _cached(seats), len(seats) > 1
    outlooks = []
    for seat in seats:
        weight = URGENT if seat.promised and seat.due < now else 1.0
        outlooks.append(seat.outlook(now, _most(seat, settings), weight, shared=shared))

    def step(rows: int, width: int) -> float:
        return speeds.costs.step(width, rows, cached)

    cloud_draft = speeds.cloud_draft
    draft = (
        (lambda texts, width: cloud_draft.step(width, texts)) if cloud_draft is not None else None
    )
    widest = SHORT if shared else 1 << 16
    return decide(outlooks, step, draft, widest)


def _step(seats: Sequence[CloudSession], speeds: Speeds) -> float:
    """Seconds of a step that only decodes."""
    return speeds.costs.step(NARROW, len(seats), _cached(seats))


def _cached(seats: Sequence[CloudSession]) -> int:
    return sum(seat.cached for seat in seats)
