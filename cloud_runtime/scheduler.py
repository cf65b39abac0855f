"""The next step. Pure: sessions, cost models and the clock in, a plan out.

Sessions are served by the time at which their next token is due, the earliest first. All ready
sessions join a step, since its rows share its fixed cost. Left out are rows beyond
`max_batch_rows` and the sessions that `turns` leaves out. Prompts run in steps of their own, each
no longer than the waiting sessions can bear.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from cloud_runtime.costs import Speeds
from cloud_runtime.decision import UNBOUNDED_TOKENS, Decision, decide
from cloud_runtime.outlook import outlook
from cloud_runtime.sessions import CloudSession
from cloud_runtime.steps import Batch, BatchRow, DraftStep, Step, Wait
from cloud_runtime.turns import TurnChange, take_turns
from edgespec.config import CloudSettings
from engines.base import Row


class Plan(NamedTuple):
    step: Step
    turns: Sequence[TurnChange] = ()
    """Turns that change; the caller applies them."""


def pick(
    sessions: Collection[CloudSession], settings: CloudSettings, speeds: Speeds, now: float
) -> Plan:
    """Plans the next step for the sessions that are ready and have a slot."""
    return _Picker(settings, speeds, now).plan(sessions)


class _Picker:
    def __init__(self, settings: CloudSettings, speeds: Speeds, now: float) -> None:
        self._settings, self._policy = settings, settings.scheduler
        self._speeds, self._now = speeds, now

    def plan(self, sessions: Collection[CloudSession]) -> Plan:
        ready = [
            session for session in sessions if session.ready and session.cache.slot is not None
        ]
        if not ready:
            return Plan(Wait(None))
        # Sessions that are very late are equally urgent; the longest waiting one is first.
        latest = self._now - self._policy.lateness_s
        ready.sort(key=lambda session: (max(session.due, latest), session.ready_since))
        narrow = self._policy.narrow_tokens
        prompts = [session for session in ready if session.pending > narrow]
        prompts.sort(key=lambda session: session.opened_at)
        others = [session for session in ready if session.pending <= narrow]
        others, turns = take_turns(others, self._policy, self._decoding_s, self._now)
        others = others[: self._settings.max_batch_rows or None]
        return Plan(self._step(prompts, others), turns)

    def _step(self, prompts: Sequence[CloudSession], others: Sequence[CloudSession]) -> Step:
        """Prompts and other sessions take turns, so that neither stalls the other."""
        if prompts and all(prompts[0].ready_since <= other.ready_since for other in others):
            return self._prompt_batch(prompts, others)
        decision = self._decide(others)
        if decision.what == "wait":
            return self._prompt_batch(prompts, others) if prompts else Wait(decision.seconds)
        if decision.what == "draft":
            lacking = [session for session in others if self._lacks(session, decision.ids, others)]
            return DraftStep(lacking, max(session.unread for session in lacking))
        return Batch([self._verify_row(session, decision.ids) for session in others])

    def _decide(self, sessions: Sequence[CloudSession]) -> Decision:
        cached, shared = _cached(sessions), len(sessions) > 1
        costs, cloud_draft = self._speeds.costs, self._speeds.cloud_draft
        outlooks = []
        for session in sessions:
            late = session.has_deadline and session.due < self._now
            weight = self._policy.late_weight if late else 1.0
            outlooks.append(outlook(session, self._now, self._most(session), weight, shared=shared))

        def step(rows: int, width: int) -> float:
            return costs.step(width, rows, cached)

        def draft_step(rows: int, width: int) -> float:
            assert cloud_draft is not None
            return cloud_draft.step(width, rows)

        widest = self._policy.short_row_tokens if shared else UNBOUNDED_TOKENS
        draft = draft_step if cloud_draft is not None else None
        return decide(outlooks, step, draft, widest, self._policy)

    def _most(self, session: CloudSession) -> int:
        """Draft tokens that are of use to a session."""
        return max(0, min(self._settings.max_draft, session.state.remaining - 1))

    def _lacks(self, session: CloudSession, ids: int, sessions: Sequence[CloudSession]) -> bool:
        """True if the cloud drafts for the session, and it has fewer than `ids` draft tokens."""
        useful = min(ids, self._most(session))
        may_draft = session.may_cloud_draft(shared=len(sessions) > 1) and session.terms.decoding
        return may_draft and session.ahead < useful

    def _verify_row(self, session: CloudSession, ids: int) -> BatchRow:
        """The committed tokens that are not cached, then up to `ids` draft tokens."""
        cache, count = session.cache, min(ids, self._most(session))
        path = session.best_path() if count else None
        draft = path.ahead(session.length)[:count] if path is not None else []
        hints = bool(draft) and self._settings.hints and session.terms.hints
        tokens = [*session.state.tokens[cache.length :], *draft]
        return BatchRow(session, _row(session, tokens, len(draft) + 1, hints), path, draft)

    def _prompt_batch(
        self, prompts: Sequence[CloudSession], others: Sequence[CloudSession]
    ) -> Batch:
        """A chunk of the oldest prompt, and chunks of other prompts that fit into the same step."""
        bearable_s = self._bearable_s(others)
        width = self._chunk_tokens(prompts[0], bearable_s)
        chosen: list[CloudSession] = []
        for session in prompts[: self._settings.max_batch_rows or None]:
            rows, cached = len(chosen) + 1, _cached([*chosen, session])
            step_s = self._speeds.for_width(width).step(width, rows, cached)
            if chosen and (rows * width > self._settings.max_batch_tokens or step_s > bearable_s):
                break
            chosen.append(session)
        return Batch([_chunk_row(session, width) for session in chosen])

    def _bearable_s(self, others: Sequence[CloudSession]) -> float:
        """Longest prompt step: a step of the waiting sessions, or more where they are early."""
        if not others:
            return float("inf")
        own_s = self._decoding_s(others)
        early_s = min(session.due for session in others) - self._now
        return min(max(own_s, early_s), self._policy.chunk_steps * own_s)

    def _chunk_tokens(self, prompt: CloudSession, bearable_s: float) -> int:
        """The widest chunk that takes no longer than bearable; the narrowest width at least."""
        most = self._settings.prefill_chunk
        widths = [width for width in self._policy.chunk_tokens if width < most] + [most]
        chosen = widths[0]
        for width in widths[1:]:
            if self._speeds.chunks.step(width, 1, prompt.cache.length) <= bearable_s:
                chosen = width
        return min(chosen, prompt.pending)

    def _decoding_s(self, sessions: Sequence[CloudSession]) -> float:
        """Seconds of a step that only decodes."""
        width = self._policy.narrow_tokens
        return self._speeds.costs.step(width, len(sessions), _cached(sessions))


def _chunk_row(session: CloudSession, width: int) -> BatchRow:
    """The next `width` tokens of a prompt. The row that ends the prompt wants the next token."""
    start = session.cache.length
    tokens = session.state.tokens[start : start + width]
    return BatchRow(session, _row(session, tokens, int(start + len(tokens) == session.length)))


def _row(session: CloudSession, tokens: list[int], choice_count: int, hints: bool = False) -> Row:
    assert session.cache.slot is not None
    return Row(session.cache.slot, session.cache.length, tokens, choice_count, hints)


def _cached(sessions: Sequence[CloudSession]) -> int:
    return sum(session.cache.length for session in sessions)
