"""What a pair says along the target's own answers, kept to be replayed without models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from bench.answers import write
from edgespec.errors import UsageError
from edgespec.sampling import Sampling
from engines.base import Engine
from engines.drafting import Drafter, Guess


class Said(msgspec.Struct, frozen=True, array_like=True):
    """One position of an answer: the target's token, and the draft's guess at it. Token 0 and
    -1 stand for no guess and no runner-up."""

    token: int
    guess: int
    sure: float
    other: int
    other_sure: float


class Recording(msgspec.Struct, frozen=True):
    pair: str
    prompts: list[int]
    """Lengths in tokens."""
    answers: list[list[Said]]

    @property
    def agreement(self) -> float:
        said = [s for answer in self.answers for s in answer]
        return sum(s.token == s.guess for s in said) / max(len(said), 1)


def record(
    target: Engine,
    drafter: Drafter,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    end_ids: Sequence[int],
) -> Iterator[tuple[int, list[Said]]]:
    """Number of the prompt and what was said along the greedy answer to it."""
    ways = lambda _: [Sampling()]  # noqa: E731
    for answer, _ in write(target, prompts, ways, max_tokens, end_ids):
        drafter.reset()
        said, text = [], list(answer.prompt)
        for token in answer.tokens:
            (guess,) = drafter.guess([text], Sampling())
            guess = guess or Guess(-1, 0.0)
            said.append(
                Said(
                    token, guess.token, round(guess.sure, 3), guess.other,
                    round(guess.other_sure, 3),
                )
            )  # fmt: skip
            text.append(token)
        yield answer.question, said


def read_recording(path: Path) -> Recording:
    """Raises `UsageError` where there is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Recording)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise UsageError(
            f"{path} is no recording ({error}); make one with 'edgespec bench plan --record'"
        ) from error
