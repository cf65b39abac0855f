"""Hints and outcomes from the target's choices. Pure: nothing is committed here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cloud_runtime.sessions import CloudSession, Outcome
from cloud_runtime.steps import BatchRow
from edgespec.adjustments import Adjustments
from edgespec.errors import EngineError
from edgespec.logprobs import measure
from edgespec.protocol import Hint
from edgespec.sampling import choose, guess, verify
from engines.base import Choices


class NoLegalToken(EngineError):
    """The adjustments of a session rule all tokens out."""


def hint(entry: BatchRow, layer: int, choice: Choices, vocabulary: int) -> Hint:
    """An exit head's tokens at the draft's positions and the next, from its top candidates."""
    session = entry.session
    if session.adjustments is not None:
        tokens = _adjusted_hints(session, session.adjustments, entry.draft, choice, vocabulary)
    else:
        tops = zip(choice.top_ids, choice.top_logits, strict=True)
        tokens = [
            guess(ids, logits, session.sampling, session.length + place, vocabulary)
            for place, (ids, logits) in enumerate(tops)
        ]
    number = entry.path.round if entry.path is not None else 0
    return Hint(session.id, number, session.length, layer, tokens)


def outcome(entry: BatchRow, choice: Choices) -> Outcome:
    """Verifies the draft tokens of a row against the target's choices. Raises `NoLegalToken`."""
    target = _tokens(entry.session, entry.draft, choice)
    confirmed, tokens = verify(entry.draft[: len(target) - 1], target)
    logprobs = entry.session.logprobs
    records = b""
    if logprobs is not None:
        records = measure(choice.logits, choice.top_ids, tokens, logprobs.count)
    return Outcome(entry.path, len(entry.draft), confirmed, tokens, records)


def _tokens(session: CloudSession, draft: Sequence[int], choice: Choices) -> list[int]:
    """The target's tokens at the draft's positions and the next.

    With adjustments they end at the first that the draft lacks.
    """
    if session.adjustments is not None:
        return _adjusted_tokens(session, session.adjustments, draft, choice)
    if session.sampling.greedy:
        return [int(token) for token in choice.argmax]
    return [
        choose(logits, session.sampling, session.length + place)
        for place, logits in enumerate(choice.logits)
    ]


def _adjusted_tokens(
    session: CloudSession, adjustments: Adjustments, draft: Sequence[int], choice: Choices
) -> list[int]:
    prefix, tokens = list(session.state.tokens), []
    for place, logits in enumerate(choice.logits):
        adjusted = adjustments.apply(logits, prefix)
        if adjusted.max() == -np.inf:
            raise NoLegalToken(_no_token(session))
        token = choose(adjusted, session.sampling, len(prefix))
        tokens.append(token)
        ended = token in session.state.end_ids
        if ended or [token] != list(draft[place : place + 1]):
            break
        prefix.append(token)
    return tokens


def _adjusted_hints(
    session: CloudSession,
    adjustments: Adjustments,
    draft: Sequence[int],
    choice: Choices,
    vocabulary: int,
) -> list[int]:
    """The tokens of a hint; all ids but the head's top candidates count as ruled out."""
    tokens = []
    for place, (ids, top) in enumerate(zip(choice.top_ids, choice.top_logits, strict=True)):
        logits = np.full(vocabulary, -np.inf, np.float32)
        logits[ids] = top
        prefix = [*session.state.tokens, *draft[:place]]
        adjusted = adjustments.apply(logits, prefix)
        none = adjusted.max() == -np.inf  # the grammar allows none of the candidates
        tokens.append(int(ids[0]) if none else choose(adjusted, session.sampling, len(prefix)))
    return tokens


def _no_token(session: CloudSession) -> str:
    reason = session.grammar.refusal if session.grammar is not None else ""
    return reason or "no token continues the answer as its grammar demands"
