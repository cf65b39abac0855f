"""Recordings of a pair along the target's own answers, to be replayed without models."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path

import msgspec

from bench.acceptance.teacher_forcing import write_answers
from edgespec.errors import UsageError
from edgespec.manifest import Bundle
from edgespec.sampling import Sampling
from engines.base import Engine
from engines.drafters.base import Drafter, DraftRequest, Guess

SPREAD = 2.4
"""Sum a + b of the Beta distribution of a synthetic draft's confidences."""
RUNNER_UP_RATIO = 0.36
"""Share of a draft's misses that its runner-up gets right; 0.40 for the built-in pair."""
LONGEST_TOKENS = 4096
"""Greatest length of a prompt and its answer together."""
VOCABULARY_TOKENS = 2**19
"""Token ids of a recording are below this."""

SYNTHETIC_PROMPT_TOKENS = 48


class RecordedToken(msgspec.Struct, frozen=True, array_like=True):
    """One position of an answer: the target's token, and the draft's guess of it.

    A guess or runner-up of -1 means that there was none.
    """

    token: int
    guess: int
    confidence: float
    other: int
    other_confidence: float
    more: tuple[tuple[int, float], ...] = ()
    """Further runners-up."""

    @property
    def runners_up(self) -> tuple[tuple[int, float], ...]:
        """Other tokens with their confidences, the likeliest first."""
        return ((self.other, self.other_confidence), *self.more) if self.other >= 0 else ()


class Recording(msgspec.Struct, frozen=True):
    pair: str
    prompts: list[int]
    """Lengths of the prompts in tokens."""
    answers: list[list[RecordedToken]]
    prompt_ids: list[list[int]] = []
    """Token ids of the prompts; empty if only their lengths were recorded."""

    @property
    def agreement(self) -> float:
        """Share of the tokens that the draft guessed."""
        tokens = [each for answer in self.answers for each in answer]
        return sum(each.token == each.guess for each in tokens) / max(len(tokens), 1)


def draft_of(recording: Recording, bundle: Bundle) -> str:
    """Profile of the recorded draft; the bundle's default if it has no such draft."""
    profile = recording.pair.rpartition(" with ")[2]
    return profile if profile in bundle.manifest.drafts else bundle.manifest.default_draft


def record(
    target: Engine,
    drafter: Drafter,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    end_ids: Sequence[int],
) -> Iterator[tuple[int, list[RecordedToken]]]:
    """Numbers of the prompts, each with its recorded greedy answer."""
    ways = lambda _: [Sampling()]  # noqa: E731
    for answer, _ in write_answers(target, prompts, ways, max_tokens, end_ids):
        drafter.retain(())
        recorded, context = [], list(answer.prompt)
        for token in answer.tokens:
            (guess,) = drafter.guess([DraftRequest(0, context, Sampling())])
            guess = guess or Guess(-1, 0.0)
            others = tuple((other, round(confidence, 3)) for other, confidence in guess.runners_up)
            other, *more = others or ((-1, 0.0),)
            confidence = round(guess.confidence, 3)
            recorded.append(RecordedToken(token, guess.token, confidence, *other, tuple(more)))
            context.append(token)
        yield answer.prompt_number, recorded


def read_recording(path: Path) -> Recording:
    """The recording in a file. Raises `UsageError` if the file has none."""
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
    """The first fault of a recording; empty: it is valid."""
    answers = recording.answers
    if not answers or len(answers) != len(recording.prompts):
        return f"{len(recording.prompts)} prompts with {len(answers)} answers"
    ids = recording.prompt_ids
    if ids and [len(prompt) for prompt in ids] != recording.prompts:
        return "prompt_ids of other lengths than prompts says"
    if any(not 0 <= token < VOCABULARY_TOKENS for prompt in ids for token in prompt):
        return "prompt_ids has a token that no target has"
    for number, (length, answer) in enumerate(zip(recording.prompts, answers, strict=True), 1):
        if length < 1 or not answer or length + len(answer) > LONGEST_TOKENS:
            return f"prompt {number} has {length} tokens, its answer {len(answer)}"
        for each in answer:
            if not 0 <= each.token < VOCABULARY_TOKENS or min(each.guess, each.other) < -1:
                return f"the answer to prompt {number} has a token {each.token}"
            if not all(
                0 <= confidence <= 1
                for confidence in (each.confidence, *(p for _, p in each.runners_up))
            ):
                return f"the answer to prompt {number} has a probability of {each.confidence}"
    return ""


def builtin_recording(name: str) -> Recording:
    """A recording of the built-in pair, with its `strong` or its `small` draft."""
    return read_recording(Path(str(resources.files("bench") / "data" / f"recording-{name}.json")))


def excerpt(recording: Recording, count: int) -> Recording:
    """At most `count` prompts, spread over the recording, since neighbours share a category."""
    total = len(recording.answers)
    chosen = [number * total // count for number in range(count)] if count < total else range(total)
    return Recording(
        recording.pair,
        [recording.prompts[number] for number in chosen],
        [recording.answers[number] for number in chosen],
        [recording.prompt_ids[number] for number in chosen] if recording.prompt_ids else [],
    )


def synthetic(agreement: float, answers: int = 24, tokens: int = 64, seed: int = 0) -> Recording:
    """A draft with this acceptance rate, independently at each position, and exact confidences.

    Confidences are drawn from a Beta distribution; a guess is right with that probability.
    """
    chance = random.Random(seed)
    recorded = [[_drawn(agreement, chance) for _ in range(tokens)] for _ in range(answers)]
    return Recording(
        f"synthetic, agreement {agreement:g}", [SYNTHETIC_PROMPT_TOKENS] * answers, recorded
    )


def _drawn(agreement: float, chance: random.Random) -> RecordedToken:
    confidence = agreement
    if 0 < agreement < 1:
        confidence = chance.betavariate(SPREAD * agreement, SPREAD * (1 - agreement))
    token = 10 + 4 * chance.randrange(10_000)
    right, second = chance.random() < confidence, chance.random() < RUNNER_UP_RATIO
    guess, other = (token, token + 2) if right else (token + 1, token if second else token + 2)
    return RecordedToken(
        token, guess, round(confidence, 3), other, round((1 - confidence) * RUNNER_UP_RATIO, 3)
    )
