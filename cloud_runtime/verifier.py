"""Hints and outcomes from the target's choices. Pure: nothing is committed here."""

from __future__ import annotations

from cloud_runtime.sessions import CloudSession, Outcome
from cloud_runtime.steps import BatchRow
from edgespec.protocol import Hint
from edgespec.sampling import choose, guess, verify
from engines.base import Choices


def hint(entry: BatchRow, layer: int, choice: Choices, vocabulary: int) -> Hint:
    """An exit head's tokens at the draft's positions and the next, from its top candidates."""
    session = entry.session
    tokens = [
        guess(ids, logits, session.sampling, session.length + place, vocabulary)
        for place, (ids, logits) in enumerate(zip(choice.top_ids, choice.top_logits, strict=True))
    ]
    number = entry.path.round if entry.path is not None else 0
    return Hint(session.id, number, session.length, layer, tokens)


def outcome(entry: BatchRow, choice: Choices) -> Outcome:
    """Verifies the draft tokens of a row against the target's choices."""
    confirmed, tokens = verify(entry.draft, _tokens(entry.session, choice))
    return Outcome(entry.path, len(entry.draft), confirmed, tokens)


def _tokens(session: CloudSession, choice: Choices) -> list[int]:
    """The target's tokens at the draft's positions and the next."""
    if session.sampling.greedy:
        return [int(token) for token in choice.argmax]
    return [
        choose(logits, session.sampling, session.length + place)
        for place, logits in enumerate(choice.logits)
    ]
