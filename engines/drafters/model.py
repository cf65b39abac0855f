"""A draft model with the target's sampling rule and noise, and KV-cache slots by session.

A device follows several branches of a few sessions; a cloud follows one branch of each of many.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from edgespec.confidence import EXPECTED_ACCEPTANCE, UNCALIBRATED, probability
from edgespec.errors import EngineError
from edgespec.manifest import Calibration
from edgespec.sampling import common_prefix, likeliest, rank
from engines.base import TOP, Choices, Engine, Row, final_choices
from engines.drafters.base import DraftRequest, Guess

PREFILL_CHUNK_TOKENS = 64
"""Tokens of a prompt that one step reads."""
SESSION_BRANCHES = 4
"""Branches of one session that keep a slot."""
STEP_BRANCHES = 3
"""Branches of one session in one step. On one core two cost 1.5 times as much as one, three 1.6
times, four 2.0 times. One of four slots stays for a branch that is not in the step."""


def judge(choices: Choices, calibration: Calibration, request: DraftRequest) -> Guess | None:
    """Return a draft's guess after a request's tokens from its choices, [1] each.

    None if its logits are not finite, or the adjustments rule all of its tokens out.
    """
    if not choices.finite:
        return None
    _, tokens, sampling, adjustments = request
    logits, top = choices.logits[0], choices.top_ids[0]
    if adjustments is not None:
        logits = adjustments.apply(logits, tokens)
        top = likeliest(logits, TOP)
        if not top.size:
            return None
    best = rank(logits, sampling, len(tokens), top)
    confidence = probability(best.odds, calibration, sampling.temperature)
    runners_up = tuple((token, (1 - confidence) * share) for token, share in best.runners_up)
    return Guess(best.token, confidence, runners_up)


class _Match(NamedTuple):
    """How much of a request's tokens a branch holds. Compares as "better for continuing"."""

    positions: int
    """Cached positions that can be used; the last token is always fed again."""
    complete: bool
    """True if the branch holds nothing else, so that feeding it the rest loses nothing."""


@dataclass(eq=False)
class _Branch:
    """A slot and the tokens whose keys and values it holds."""

    session: int
    slot: int
    tokens: list[int] = field(default_factory=list)
    last_used: int = 0
    """Count of placements at which it was last fed or copied from."""
    positions: int = 1
    """Most positions that its slot was used for, since a slot does not shrink."""

    def match(self, tokens: Sequence[int]) -> _Match:
        same = common_prefix(self.tokens, tokens)
        return _Match(min(same, len(tokens) - 1), same == len(self.tokens))


class ModelDrafter:
    """A draft model with a slot for each of a few branches of each session.

    A request is fed to the branch of its session that holds most of its tokens. Where that branch
    goes on differently, as the main path does at a fork, the request gets another slot, which
    copies the positions that it lacks and leaves the main path's cache unchanged. If slots or bytes
    run out, the least recently used branches give up theirs.
    """

    def __init__(
        self,
        engine: Engine,
        name: str,
        calibration: Calibration | None = None,
        *,
        branches: int = SESSION_BRANCHES,
        memory_bytes: int = 0,
    ) -> None:
        """`branches`: most branches of one session that keep a slot. `memory_bytes`: bound of all
        slots together, which a single slot may exceed; 0 for no bound."""
        self.name = name
        self.batch = min(STEP_BRANCHES, branches)
        self.acceptance = calibration.agreement if calibration else EXPECTED_ACCEPTANCE
        self._engine = engine
        self._calibration = calibration or UNCALIBRATED
        self._max_branches = branches
        self._memory_bytes = memory_bytes
        self._sessions: dict[int, list[_Branch]] = {}
        self._placements = 0

    def guess(self, requests: Sequence[DraftRequest]) -> list[Guess | None]:
        """Run one step for as many requests as there are slots, and further steps for the rest."""
        guesses: list[Guess | None] = [None] * len(requests)
        waiting = {
            number: request
            for number, request in enumerate(requests)
            if 0 < len(request.tokens) <= self._engine.context
        }
        while waiting:
            placed = self._place(dict(list(waiting.items())[: self._engine.slots]))
            rows = [self._row(branch, waiting[number]) for number, branch in placed.items()]
            results = final_choices(self._engine, rows)
            for (number, branch), choices in zip(placed.items(), results, strict=True):
                assert choices is not None
                request = waiting.pop(number)
                branch.tokens += request.tokens[len(branch.tokens) :]
                guesses[number] = judge(choices, self._calibration, request)
        return guesses

    def retain(self, sessions: Collection[int]) -> None:
        for session in [session for session in self._sessions if session not in sessions]:
            for branch in self._sessions[session][:]:
                self._close(branch)

    def _place(self, requests: dict[int, DraftRequest]) -> dict[int, _Branch]:
        """Return a branch for each request, or for fewer if there are too few slots. Each branch
        has read all of its request's tokens but the last chunk.

        Requests that continue a branch come before those that fork one.
        """
        placed: dict[int, _Branch] = {}
        for number, request in requests.items():
            best = self._longest(request)
            if best is None or best in placed.values() or not best.match(request.tokens).complete:
                continue
            if self._make_room(best, request, placed.values()) or not placed:
                placed[number] = self._read(best, request)
        for number, request in requests.items():
            if number not in placed and (fork := self._fork(request, placed.values())):
                placed[number] = self._read(fork, request)
        return placed

    def _longest(self, request: DraftRequest) -> _Branch | None:
        """Return the session's branch that holds most of a request's tokens."""
        own = self._sessions.get(request.session, [])
        return max(own, key=lambda branch: branch.match(request.tokens), default=None)

    def _fork(self, request: DraftRequest, placed: Collection[_Branch]) -> _Branch | None:
        """Return a branch that is not in the step, holding what any branch of the session holds of
        the request's tokens; None if all slots are in the step."""
        source = self._longest(request)
        target = self._claim(request, source, placed)
        if target is None or source is None:
            return target
        source.last_used = self._placements
        end, start = (branch.match(request.tokens).positions for branch in (source, target))
        del target.tokens[start:]
        if end > start:
            self._engine.copy(source.slot, target.slot, start, end)
            target.tokens += request.tokens[start:end]
        return target

    def _claim(
        self, request: DraftRequest, source: _Branch | None, placed: Collection[_Branch]
    ) -> _Branch | None:
        """Return a new branch, or the session's least recently used one if it has the most that it
        may have; `source` last."""
        own = self._sessions.get(request.session, [])
        reused = None
        if len(own) == self._max_branches:
            free = [branch for branch in own if branch not in placed]
            reused = min(free, key=lambda b: (b is source, b.last_used), default=None)
            if reused is None:
                return None
        kept = [*placed, source] if source else placed
        if not self._make_room(reused, request, kept) and placed:
            return None
        return reused or self._open(request.session, source, placed)

    def _open(
        self, session: int, source: _Branch | None, placed: Collection[_Branch]
    ) -> _Branch | None:
        """Return a branch in a new slot, or in the slot of the least recently used one: `source`
        last, and before it those that are the only branch of another session."""
        try:
            branch = _Branch(session, self._engine.open())
        except EngineError:
            if not self._sessions:
                raise
            free = [branch for branch in self._branches() if branch not in placed]
            if not free:
                return None
            oldest = min(
                free,
                key=lambda b: (
                    b is source,
                    b.session != session and len(self._sessions[b.session]) == 1,
                    b.last_used,
                ),
            )
            if oldest.session == session:
                return oldest
            branch = _Branch(session, self._remove(oldest), positions=oldest.positions)
        self._sessions.setdefault(session, []).append(branch)
        return branch

    def _make_room(
        self, grown: _Branch | None, request: DraftRequest, kept: Collection[_Branch]
    ) -> bool:
        """Close least recently used branches until a request's tokens fit into the bound in bytes,
        in the place of `grown` or in a new slot. Return True if they fit."""
        if not self._memory_bytes:
            return True
        size = self._engine.slot_bytes
        positions = max(len(request.tokens), grown.positions if grown else 0)
        others = [branch for branch in self._branches() if branch is not grown]
        free = self._memory_bytes - sum(
            size(n) for n in (positions, *(b.positions for b in others))
        )
        for branch in sorted(set(others) - set(kept), key=lambda branch: branch.last_used):
            if free >= 0:
                break
            free += size(branch.positions)
            self._close(branch)
        return free >= 0

    def _branches(self) -> list[_Branch]:
        return [branch for branches in self._sessions.values() for branch in branches]

    def _close(self, branch: _Branch) -> None:
        self._engine.close(self._remove(branch))

    def _remove(self, branch: _Branch) -> int:
        """Forget a branch; return its slot."""
        own = self._sessions[branch.session]
        own.remove(branch)
        if not own:
            del self._sessions[branch.session]
        return branch.slot

    def _read(self, branch: _Branch, request: DraftRequest) -> _Branch:
        """Feed the branch what it lacks of the tokens, chunk by chunk, but for the last chunk."""
        self._placements += 1
        branch.last_used = self._placements
        branch.positions = max(branch.positions, len(request.tokens))
        while (start := len(branch.tokens)) + PREFILL_CHUNK_TOKENS < len(request.tokens):
            chunk = request.tokens[start : start + PREFILL_CHUNK_TOKENS]
            final_choices(self._engine, [Row(branch.slot, start, self._ids(chunk), 0)])
            branch.tokens += chunk
        return branch

    def _row(self, branch: _Branch, request: DraftRequest) -> Row:
        """Return the row of the last chunk. A step may fail, so the branch keeps no token that the
        row writes again."""
        start = min(len(branch.tokens), len(request.tokens) - 1)
        del branch.tokens[start:]
        return Row(branch.slot, start, self._ids(request.tokens[start:]))

    def _ids(self, tokens: Sequence[int]) -> list[int]:
        """Return the tokens with 0 for those that a smaller vocabulary lacks."""
        vocabulary = self._engine.vocabulary
        return [token if token < vocabulary else 0 for token in tokens]
