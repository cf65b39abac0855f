"""What a pair says along the target's own answers, kept to be replayed without models."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path

import msgspec

from bench.acceptance.teacher_forcing import write
from edgespec.errors import UsageError
from edgespec.sampling import Sampling
from engines.base import Engine
from engines.drafters.base import Drafter, DraftRequest, Guess

SPREAD = 2.4
"""Of a synthetic draft's confidences, a + b of their Beta distribution: the built-in pair's."""
SECOND = 0.36
"""Share of a draft's misses that its runner-up gets right; 0.40 for the built-in pair."""
LONGEST = 4096
"""Tokens of a prompt and its answer together."""


class Said(msgspec.Struct, frozen=True, array_like=True):
    """One position of an answer: the target's token, and the draft's guess at it. Token 0 and
    -1 stand for no guess and no runner-up."""

    token: int
    guess: int
    confidence: float
    other: int
    other_confidence: float
    more: tuple[tuple[int, float], ...] = ()
    """Further runners-up."""

    @property
    def runners_up(self) -> tuple[tuple[int, float], ...]:
        """All runners-up, likeliest first."""
        return ((self.other, self.other_confidence), *self.more) if self.other >= 0 else ()


class Recording(msgspec.Struct, frozen=True):
    pair: str
    prompts: list[int]
    """Lengths in tokens."""
    answers: list[list[Said]]
    prompt_ids: list[list[int]] = []
    """Token ids of the prompts; empty where their lengths alone were kept."""

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
        drafter.retain(())
        said, text = [], list(answer.prompt)
        for token in answer.tokens:
            (guess,) = drafter.guess([DraftRequest(0, text, Sampling())])
            guess = guess or Guess(-1, 0.0)
            others = tuple((other, round(confidence, 3)) for other, confidence in guess.runners_up)
            other, *more = others or ((-1, 0.0),)
            said.append(Said(token, guess.token, round(guess.confidence, 3), *other, tuple(more)))
            text.append(token)
        yield answer.question, said


def read_recording(path: Path) -> Recording:
    """Raises `UsageError` where there is none."""
    try:
        recording = msgspec.json.decode(path.read_bytes(), type=Recording)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise _unusable(path, str(error)) from error
    if fault := _fault(recording):
        raise _unusable(path, fault)
    return recording


def _unusable(path: Path, fault: str) -> UsageError:
    return UsageError(
        f"{path} is no recording ({fault}); make one with 'edgespec bench plan --record'"
    )


def _fault(recording: Recording) -> str:
    """What is wrong with it; empty for nothing."""
    answers = recording.answers
    if not answers or len(answers) != len(recording.prompts):
        return f"{len(recording.prompts)} prompts with {len(answers)} answers"
    ids = recording.prompt_ids
    if ids and [len(prompt) for prompt in ids] != recording.prompts:
        return "prompt_ids of other lengths than prompts says"
    if any(not 0 <= token < 2**19 for prompt in ids for token in prompt):
        return "prompt_ids has a token that no target has"
    for number, (length, answer) in enumerate(zip(recording.prompts, answers, strict=True), 1):
        if length < 1 or not answer or length + len(answer) > LONGEST:
            return f"prompt {number} has {length} tokens, its answer {len(answer)}"
        for said in answer:
            if not 0 <= said.token < 2**19 or min(said.guess, said.other) < -1:
                return f"the answer to prompt {number} has a token {said.token}"
            if not all(
                0 <= confidence <= 1
                for confidence in (said.confidence, *(p for _, p in said.runners_up))
            ):
                return f"the answer to prompt {number} has a probability of {said.confidence}"
    return ""


def builtin_recording(name: str) -> Recording:
    """That of the built-in pair, `builtin`, or of its target drafting for itself, `self`."""
    return read_recording(Path(str(resources.files("bench") / "data" / f"recording-{name}.json")))


def excerpt(recording: Recording, count: int) -> Recording:
    """At most `count` of its prompts, from all parts of it: neighbours are of one category."""
    total = len(recording.answers)
    chosen = [number * total // count for number in range(count)] if count < total else range(total)
    return Recording(
        recording.pair,
        [recording.prompts[number] for number in chosen],
        [recording.answers[number] for number in chosen],
        [recording.prompt_ids[number] for number in chosen] if recording.prompt_ids else [],
    )


def synthetic(agreement: float, answers: int = 24, tokens: int = 64, seed: int = 0) -> Recording:
    """A draft that is right that often, independently at each position, and knows how sure it may
    be: confidences are drawn first (Beta), then whether it is right, with that probability."""
    chance = random.Random(seed)
    said = [[_drawn(agreement, chance) for _ in range(tokens)] for _ in range(answers)]
    return Recording(f"synthetic, agreement {agreement:g}", [48] * answers, said)


def _drawn(agreement: float, chance: random.Random) -> Said:
    confidence = agreement
    if 0 < agreement < 1:
        confidence = chance.betavariate(SPREAD * agreement, SPREAD * (1 - agreement))
    token = 10 + 4 * chance.randrange(10_000)
    right, second = chance.random() < confidence, chance.random() < SECOND
    guess, other = (token, token + 2) if right else (token + 1, token if second else token + 2)
    return Said(token, guess, round(confidence, 3), other, round((1 - confidence) * SECOND, 3))
