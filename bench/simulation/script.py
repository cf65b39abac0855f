"""The tokens of a simulated pair: recorded answers, and noise off their path."""

from __future__ import annotations

import random
from collections.abc import Sequence

from bench.lab.recording import RecordedToken, Recording
from engines.drafters.base import Guess

END = 1
"""Token id that ends an answer."""
WRONG = 7
"""Token id that no recorded answer contains; the ids of wrong runners-up and hints follow it."""
FIRST_PROMPT = 100
"""First token id of recorded prompt 0; prompt n begins with this id plus n."""
FIRST_ID = 1000
"""Offset of recorded token ids, which keeps them apart from the ids above."""


class Script:
    """Tokens of target, draft and exit heads for each text.

    A text is a prompt of `prompt` followed by tokens of an answer.
    """

    def __init__(self, recording: Recording, seed: int = 0) -> None:
        self.acceptance = recording.agreement
        """The draft's acceptance rate."""
        self._recording = recording
        self._seed = seed
        self._chance = random.Random(seed)
        self._positions = [recorded for answer in recording.answers for recorded in answer]
        self._ids = [[_id(recorded.token) for recorded in answer] for answer in recording.answers]

    def prompt(self, number: int) -> list[int]:
        """Ids of recorded prompt `number`; the first id identifies it."""
        return [FIRST_PROMPT + number] + [2] * max(1, self._recording.prompts[number] - 1)

    def answer(self, text: Sequence[int]) -> list[RecordedToken]:
        """Recorded answer to the prompt that `text` begins with; empty for an unknown prompt."""
        number = text[0] - FIRST_PROMPT
        return self._recording.answers[number] if self._known(number) else []

    def ids(self, number: int, tokens: int) -> list[int]:
        """First `tokens` ids of the target's answer to recorded prompt `number`."""
        return self._ids[number][:tokens]

    def place(self, text: Sequence[int]) -> int:
        """Number of ids that follow the prompt in `text`."""
        number = text[0] - FIRST_PROMPT
        length = max(2, self._recording.prompts[number]) if self._known(number) else len(text)
        return len(text) - length

    def target(self, text: Sequence[int], place: int) -> int:
        """Target's token at index `place` of the answer, assuming that the tokens before it are
        the recorded ones."""
        answer = self.answer(text)
        return _id(answer[place].token) if 0 <= place < len(answer) else END

    def hint(self, text: Sequence[int], place: int, layer: int, right: float) -> int:
        """Token of an exit head that is right with probability `right`. The same arguments give
        the same token."""
        draw = random.Random(f"{self._seed} {text[0]} {place} {layer}").random()
        return self.target(text, place) if draw < right else WRONG + 1 + layer

    def guess(self, text: Sequence[int]) -> Guess:
        """Recorded guess after `text`; off the recorded answer a wrong guess with the confidence
        of a recorded one drawn at random."""
        answer, place = self.answer(text), self.place(text)
        written = list(text[len(text) - place :])
        if place < len(answer) and self.ids(text[0] - FIRST_PROMPT, place) == written:
            here = answer[place]
            return Guess(
                _id(here.guess),
                here.confidence,
                tuple((_id(other), confidence) for other, confidence in here.runners_up),
            )
        return wrong_guess(self._chance.choice(self._positions))

    def _known(self, number: int) -> bool:
        return 0 <= number < len(self._recording.answers)


def _id(token: int) -> int:
    return token + FIRST_ID


def wrong_guess(recorded: RecordedToken | Guess) -> Guess:
    """Guess with the same confidences whose tokens are never right."""
    others = tuple(
        (WRONG + n, confidence) for n, (_, confidence) in enumerate(recorded.runners_up, 1)
    )
    return Guess(WRONG, recorded.confidence, others)
