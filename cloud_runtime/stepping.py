"""Steps: which one runs next, and what its results mean for the sessions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cloud_runtime.costs import Speeds
from cloud_runtime.memory.ledger import Memory
from cloud_runtime.scheduler import pick
from cloud_runtime.session_table import Outgoing, SessionTable
from cloud_runtime.sessions import CloudSession
from cloud_runtime.status.tally import Tally
from cloud_runtime.steps import Batch, BatchRow, DraftStep, Step, Wait
from cloud_runtime.turns import TurnChange
from cloud_runtime.verifier import NoLegalToken, hint, outcome
from edgespec.config import CloudSettings
from edgespec.protocol import Error, ErrorCode, Verdict
from engines.base import Choices, Engine
from engines.drafters.base import Guess


class Stepping:
    """Applies the scheduler's plans and the engine's results to the sessions."""

    def __init__(
        self,
        engine: Engine,
        memory: Memory,
        settings: CloudSettings,
        speeds: Speeds,
        sessions: SessionTable,
        tally: Tally,
    ) -> None:
        """`engine` is asked for its sizes and moves idle slots; it is never run here."""
        self._engine = engine
        self._memory = memory
        self._settings = settings
        self._speeds = speeds
        self._sessions = sessions
        self._tally = tally
        self.mean_batch_rows = 0.0
        """Rows of a step that decodes or verifies, on average over recent steps."""

    def next(self, now: float) -> Step:
        """The step to run now. The rows of a batch run until `commit` or `abandon`."""
        self._sessions.await_masks()
        served = self._memory.lend(self._sessions, self._settings.max_draft, now)
        step, turns = pick(served, self._settings, self._speeds, now)
        self._apply(turns)
        if isinstance(step, Batch):
            for session in step.sessions:
                session.progress.running = True
        elif isinstance(step, Wait):
            return Wait(min(self._polls_s(step.seconds), default=None))
        return step

    def _polls_s(self, wait_s: float | None) -> Iterator[float]:
        """Longest waits: the step's own, and for what no message reports."""
        if wait_s is not None:
            yield wait_s
        if self._memory.waiting:
            yield self._settings.scheduler.memory_poll_s
        if self._sessions.unmasked:
            yield self._settings.grammars.poll_s

    def _apply(self, turns: Sequence[TurnChange]) -> None:
        """Sets changed turns. The slot of a session that becomes idle makes room for the others."""
        for session, turn in turns:
            was_idle, session.turn = session.idle, turn
            if session.idle and not was_idle and session.cache.slot is not None:
                self._engine.rest(session.cache.slot)

    def drafted(self, step: DraftStep, guesses: Sequence[Guess | None]) -> None:
        """Adds the tokens of a step of the cloud draft; None: it has none for that session."""
        for session, guess in zip(step.sessions, guesses, strict=True):
            if guess is None:
                session.stop_cloud_draft()
            else:
                session.add_cloud_token(guess.token, guess.confidence)

    def learn(self, step: Batch | DraftStep, seconds: float) -> None:
        """Adds the duration of a step to the cost models and the tally."""
        if isinstance(step, Batch):
            self._learn_batch(step, seconds)
            return
        self._tally.cloud_draft_steps += 1
        self._tally.cloud_draft_seconds += seconds
        if self._speeds.cloud_draft is not None:
            self._speeds.cloud_draft.learn(len(step.sessions), step.width, seconds)

    def _learn_batch(self, batch: Batch, seconds: float) -> None:
        rows, width = batch.rows, batch.width
        self._tally.step(len(rows), sum(len(row.tokens) for row in rows), seconds)
        exits_s = self._speeds.hints_s if any(row.hints for row in rows) else 0.0
        costs = self._speeds.for_width(width)
        costs.learn(len(rows), width, seconds - exits_s, batch.cached)
        if costs is self._speeds.costs:
            smoothing = self._settings.scheduler.batch_rows_smoothing
            self.mean_batch_rows += smoothing * (len(rows) - self.mean_batch_rows)

    def hints(self, batch: Batch, layer: int, choices: Sequence[Choices | None]) -> Outgoing:
        """An exit head's tokens at the drafts of a batch."""
        vocabulary = self._engine.vocabulary
        return [
            (entry.session.connection.peer, hint(entry, layer, choice, vocabulary))
            for entry, choice in zip(batch.entries, choices, strict=True)
            if choice is not None and choice.finite
        ]

    def commit(self, batch: Batch, choices: Sequence[Choices | None], now: float) -> Outgoing:
        """Applies the target's choices; returns the verdicts."""
        outgoing: Outgoing = []
        for entry, choice in zip(batch.entries, choices, strict=True):
            session = entry.session
            session.progress.running, session.progress.ended_at = False, now
            if choice is None:
                session.cache.advance(entry.row.start + len(entry.row.tokens))
            elif not choice.finite:
                outgoing.append(self._fail(session, "the target's logits are not finite", now))
            else:
                try:
                    verdict = self._commit(entry, choice, now)
                    outgoing.append((session.connection.peer, verdict))
                except NoLegalToken as error:
                    outgoing.append(self._fail(session, str(error), now, "invalid"))
            if session.state.finish or session not in self._sessions:
                self._sessions.release(session, now)
        return outgoing

    def _commit(self, entry: BatchRow, choice: Choices, now: float) -> Verdict:
        session = entry.session
        verdict = session.commit(outcome(entry, choice), now)
        self._tally.verdict(session.record, verdict, now)
        if verdict.finish and session in self._sessions:
            self._sessions.ended(session, verdict.finish, now)
        return verdict

    def abandon(self, batch: Batch, reason: str, now: float) -> Outgoing:
        """Ends the sessions of a batch on which the target failed."""
        for session in batch.sessions:
            session.progress.running = False
        return [self._fail(session, reason, now) for session in batch.sessions]

    def _fail(
        self, session: CloudSession, reason: str, now: float, code: ErrorCode = "internal"
    ) -> tuple[bytes, Error]:
        """Ends a session with an error."""
        self._sessions.remove(session, "error", now)
        return session.connection.peer, Error(code, reason, session.id)
