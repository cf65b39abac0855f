"""Drafters of simulated devices: replayed from a recording, in the time of their kind of device."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from bench.fleet.profile import DeviceKind
from bench.lab.recording import Recording
from engines.drafters.base import Drafter, DraftRequest, Guess


class RecordedDrafter:
    """Guesses what the recorded draft guessed. Off the recorded path, it guesses what the recorded
    draft guessed somewhere else; the same tokens always get the same guess."""

    name = "recorded"

    def __init__(self, recording: Recording, batch: int) -> None:
        self.batch = batch
        self.acceptance = recording.agreement
        self._recording = recording
        self._anywhere = [each for answer in recording.answers for each in answer]
        self.begin(0)

    def begin(self, number: int) -> None:
        """Prepare for an answer to the recorded prompt of that number."""
        self._answer = self._recording.answers[number]
        self._tokens = [each.token for each in self._answer]
        self._prompt_length = self._recording.prompts[number]

    def retain(self, sessions: Collection[int]) -> None:
        """Do nothing: guesses depend on the tokens alone."""

    def guess(self, requests: Sequence[DraftRequest]) -> list[Guess | None]:
        return [self._guess(request.tokens) for request in requests]

    def _guess(self, tokens: Sequence[int]) -> Guess | None:
        place = len(tokens) - self._prompt_length
        on_path = list(tokens[self._prompt_length :]) == self._tokens[:place]
        if place < len(self._answer) and on_path:
            here = self._answer[place]
        else:
            here = self._anywhere[hash(tuple(tokens)) % len(self._anywhere)]
        if here.guess < 0:
            return None
        return Guess(here.guess, here.confidence, here.runners_up)


class PacedDrafter:
    """A drafter that takes the time which its kind of device would take."""

    def __init__(
        self,
        drafter: Drafter,
        kind: DeviceKind,
        prompt_tokens: Callable[[], int],
        sleep: Callable[[float], None],
    ) -> None:
        """`prompt_tokens` returns the length of the prompt that is being answered."""
        self.name, self.batch = drafter.name, drafter.batch
        self.acceptance = drafter.acceptance
        self._drafter, self._kind = drafter, kind
        self._prompt_tokens, self._sleep = prompt_tokens, sleep
        self._unread = 0

    def retain(self, sessions: Collection[int]) -> None:
        self._drafter.retain(sessions)
        self._unread = self._prompt_tokens()

    def guess(self, requests: Sequence[DraftRequest]) -> Sequence[Guess | None]:
        kind = self._kind
        step_ms = kind.draft_ms * kind.batch[min(len(requests), len(kind.batch)) - 1]
        reading_ms, self._unread = self._unread * kind.read_ms, 0
        self._sleep((step_ms + reading_ms) / 1e3)
        return self._drafter.guess(requests)
