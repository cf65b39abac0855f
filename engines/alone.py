"""The target decoding alone, one token a step: the reference for every answer."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from edgespec.adjustments import adjusted, adjustments_of
from edgespec.grammars import GrammarMask
from edgespec.sampling import Sampling, choose
from engines.base import Engine, Row, final_choices


def write_alone(
    engine: Engine,
    prompt: Sequence[int],
    max_tokens: int,
    sampling: Sampling,
    end_ids: Collection[int] = (),
    grammar: GrammarMask | None = None,
) -> list[int]:
    """Returns the answer's tokens, end-of-text included. Uses no code of the runtimes.

    `grammar`: one that no answer has followed yet.
    """
    slot = engine.open()
    tokens = list(prompt)
    adjustments = adjustments_of(sampling, prompt, [] if grammar is None else [grammar])
    try:
        while len(tokens) < len(prompt) + max_tokens:
            start = engine.cached(slot)
            (choices,) = final_choices(engine, [Row(slot, start, tokens[start:])])
            assert choices is not None
            logits = adjusted(choices.logits[0], adjustments, tokens)
            tokens.append(choose(logits, sampling, len(tokens)))
            if tokens[-1] in end_ids:
                break
    finally:
        engine.close(slot)
    return tokens[len(prompt) :]
