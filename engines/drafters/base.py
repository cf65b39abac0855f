"""Guessing what follows a text: by a model, by the text itself (prompt lookup), or not at all.

A drafter is asked step by step, for one text or for several branches of it. It is handed whole
texts and finds out by itself what of them its cache still holds, so a caller may follow a tree of
continuations in any order.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from edgespec.confidence import UNCALIBRATED, probability
from edgespec.config import NGRAM, NO_DRAFTER
from edgespec.errors import EngineError
from edgespec.manifest import Calibration
from edgespec.sampling import Sampling, common_prefix, rank
from engines.base import Choices, Engine, Row, final_choices

CHUNK = 64
"""Tokens of a prompt that a model reads in one step."""
SLOTS = 4
"""Branches whose cache a model keeps."""
BATCH = 3
"""Texts a step: on one core two cost 1.5 times one, three 1.6 times, four 2.0 times. One slot of
four stays for a path that is not asked about."""
MATCHED = 16
"""Tokens before a match that are looked at for how sure it is."""
TRIES = 30
"""Guesses of a text that weigh as much as what other texts have shown."""


class Guess(NamedTuple):
    token: int
    """What the draft picks by the target's rule, with the shared noise."""
    confidence: float
    """Probability, in (0, 1), that it is the target's token."""
    runners_up: tuple[tuple[int, float], ...] = ()
    """The runners-up under the same rule, likeliest first, and each one's probability to be the
    target's token."""


class Drafter(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def batch(self) -> int:
        """Texts that one call should be given at most: 1 where a batch does not pay."""

    def guess(self, texts: Sequence[Sequence[int]], sampling: Sampling) -> Sequence[Guess | None]:
        """What follows each text; None where there is no guess (nothing found, context full)."""

    def reset(self) -> None:
        """Another answer begins."""


def draft(drafter: Drafter, tokens: Sequence[int], count: int, sampling: Sampling) -> list[int]:
    """At most `count` guesses, each made on the ones before it."""
    text = list(tokens)
    while len(text) < len(tokens) + count:
        (guess,) = drafter.guess([text], sampling)
        if guess is None:
            break
        text.append(guess.token)
    return text[len(tokens) :]


def judge(
    choices: Choices, calibration: Calibration, sampling: Sampling, position: int
) -> Guess | None:
    """A draft's guess at a position, from its one wanted choice; None where its logits are not
    finite."""
    if not choices.finite:
        return None
    best = rank(choices.logits[0], sampling, position, choices.top_ids[0])
    confidence = probability(best.odds, calibration, sampling.temperature)
    others = tuple((other, (1 - confidence) * share) for other, share in best.runners_up)
    return Guess(best.token, confidence, others)


def known(text: Sequence[int], vocabulary: int, start: int) -> list[int]:
    """Its ids from `start` on; those that a draft with a smaller vocabulary does not have become
    0."""
    return [token if token < vocabulary else 0 for token in text[start:]]


class _Held(NamedTuple):
    """What a branch holds of a text."""

    positions: int
    """Positions that stand; the text's last token is always fed again."""
    all: bool
    """Whether it holds nothing else, so that feeding it the rest loses nothing."""


@dataclass(eq=False)
class _Branch:
    """A slot and the tokens that it holds keys and values of."""

    slot: int
    fed: list[int] = field(default_factory=list)
    used: int = 0
    """When it was last fed or copied from, in steps."""

    def holds(self, text: Sequence[int]) -> _Held:
        same = common_prefix(self.fed, text)
        return _Held(min(same, len(text) - 1), same == len(self.fed))


class ModelDrafter:
    """A model with the target's own sampling rule and noise, a slot for each of a few branches.

    A text is fed to the slot that holds most of it. Where that slot goes on differently, as the
    main path does at a fork, the least recently used other slot takes the branch: it copies the
    positions that it lacks and leaves the main path's cache whole.
    """

    def __init__(
        self,
        engine: Engine,
        name: str,
        calibration: Calibration | None = None,
        slots: int = SLOTS,
        batch: int = BATCH,
    ) -> None:
        """Slots are opened when they are needed; an engine that has fewer gives what it has."""
        self.name = name
        self.batch = min(batch, slots)
        self._engine = engine
        self._calibration = calibration or UNCALIBRATED
        self._slots = slots
        self._branches: list[_Branch] = []
        self._steps = 0

    def reset(self) -> None:
        for branch in self._branches:
            self._engine.truncate(branch.slot, 0)
            branch.fed = []

    def close(self) -> None:
        """Gives the slots back."""
        while self._branches:
            self._engine.close(self._branches.pop().slot)

    def guess(self, texts: Sequence[Sequence[int]], sampling: Sampling) -> list[Guess | None]:
        """One step for up to as many texts as there are slots."""
        guesses: list[Guess | None] = [None] * len(texts)
        waiting = [n for n, text in enumerate(texts) if 0 < len(text) <= self._engine.context]
        while waiting:
            placed = self._place({number: texts[number] for number in waiting[: self._slots]})
            rows = []
            for number, branch in placed.items():
                start = min(len(branch.fed), len(texts[number]) - 1)
                del branch.fed[start:]
                rows.append(
                    Row(branch.slot, start, known(texts[number], self._engine.vocabulary, start))
                )
            for (number, branch), choices in zip(
                placed.items(), final_choices(self._engine, rows), strict=True
            ):
                branch.fed += texts[number][len(branch.fed) :]
                assert choices is not None
                guesses[number] = judge(choices, self._calibration, sampling, len(texts[number]))
            waiting = [number for number in waiting if number not in placed]
        return guesses

    def _place(self, texts: dict[int, Sequence[int]]) -> dict[int, _Branch]:
        """A branch for each text, its prompt read but for the last tokens.

        Texts that go on where a branch ends come first, then forks. Fewer than there are texts
        where the engine has fewer slots.
        """
        placed: dict[int, _Branch] = {}
        held = {}
        for number, text in texts.items():
            held[number] = {branch: branch.holds(text) for branch in self._branches}
            best = max(self._branches, key=held[number].__getitem__, default=None)
            if best and held[number][best].all and best not in placed.values():
                placed[number] = self._take(best, text)
        for number, text in texts.items():
            if number not in placed:
                changed = {branch: branch.holds(text) for branch in placed.values()}
                target = self._fork(text, held[number] | changed, placed.values())
                if target:
                    placed[number] = self._take(target, text)
        return placed

    def _fork(
        self, text: Sequence[int], held: dict[_Branch, _Held], taken: Collection[_Branch]
    ) -> _Branch | None:
        """A branch made to hold what the others do of a text; None where all are taken."""
        source = max(held, key=held.__getitem__, default=None)
        target = self._spare(source, taken)
        if target is None or source is None:
            return target
        source.used = self._steps
        has = held[target].positions if target in held else 0
        del target.fed[has:]
        if held[source].positions > has:
            self._engine.copy(source.slot, target.slot, has, held[source].positions)
            target.fed += text[has : held[source].positions]
        return target

    def _spare(self, source: _Branch | None, taken: Collection[_Branch]) -> _Branch | None:
        """A new branch, or the least recently used one, `source` last."""
        if len(self._branches) < self._slots:
            try:
                self._branches.append(_Branch(self._engine.open()))
                return self._branches[-1]
            except EngineError:
                if not self._branches:
                    raise
                self._slots = len(self._branches)
        free = [branch for branch in self._branches if branch not in taken]
        return min(free, key=lambda b: (b is source, b.used), default=None)

    def _take(self, branch: _Branch, text: Sequence[int]) -> _Branch:
        """Reads what the branch lacks of the text, chunk by chunk, but for the last one."""
        self._steps += 1
        branch.used = self._steps
        while (start := len(branch.fed)) + CHUNK < len(text):
            part = text[: start + CHUNK]
            ids = known(part, self._engine.vocabulary, start)
            final_choices(self._engine, [Row(branch.slot, start, ids, 0)])
            branch.fed += part[start:]
        return branch


class _Entry(NamedTuple):
    """What indexing one position did, so that it can be undone."""

    replaced: list[tuple[tuple[int, ...], int]]
    """Endings and the positions, 0 for none, that they stood for before."""
    matched: int
    """Tokens by which this position could be looked up; 0 for none."""
    right: bool
    """Whether that found its token."""


class NgramDrafter:
    """Prompt lookup: what followed the last time that the text ended like this.

    Saxena 2023 (prompt lookup decoding); worth most where the answer repeats its prompt. Longest
    ending first, latest occurrence first. The more of the text before agrees, the surer: `n / (n +
    2)` for n tokens, of which half are right for 2 and nine in ten from 9 on in answers of the
    built-in pair; what this text has shown for such n is added to that.
    """

    name = NGRAM
    batch = 1

    def __init__(self, longest: int = 4, shortest: int = 2) -> None:
        self._sizes = range(longest, shortest - 1, -1)
        self.reset()

    def reset(self) -> None:
        self._text: list[int] = []
        self._follows: dict[tuple[int, ...], int] = {}
        self._log: list[_Entry] = []
        self._tries = [0] * (MATCHED + 1)
        self._hits = [0] * (MATCHED + 1)

    def guess(self, texts: Sequence[Sequence[int]], sampling: Sampling) -> list[Guess | None]:
        del sampling
        return [self._guess(text) for text in texts]

    def _guess(self, text: Sequence[int]) -> Guess | None:
        same = common_prefix(self._text, text)
        while len(self._text) > same:
            self._forget()
        for token in text[same:]:
            self._learn(token)
        position, matched = self._find()
        if not matched:
            return None
        before = matched / (matched + 2)
        hits, tries = self._hits[matched] + TRIES * before, self._tries[matched] + TRIES
        return Guess(self._text[position], hits / tries)

    def _find(self) -> tuple[int, int]:
        """Where the text ended like this before, which is the position after that, and how many
        tokens agree, at most `MATCHED`; 0, 0 for nowhere."""
        text = self._text
        for size in self._sizes:
            position = self._follows.get(tuple(text[-size:]), 0)
            if position and size <= len(text):
                most = min(MATCHED, position)
                while size < most and text[position - 1 - size] == text[-1 - size]:
                    size += 1
                return position, size
        return 0, 0

    def _learn(self, token: int) -> None:
        """An ending is indexed once something follows it."""
        found, matched = self._find()
        replaced = []
        position = len(self._text)
        for size in self._sizes:
            if size <= position:
                ending = tuple(self._text[-size:])
                replaced.append((ending, self._follows.get(ending, 0)))
                self._follows[ending] = position
        right = matched > 0 and self._text[found] == token
        self._log.append(_Entry(replaced, matched, right))
        self._tries[matched] += 1
        self._hits[matched] += right
        self._text.append(token)

    def _forget(self) -> None:
        """Undoes the last `_learn`."""
        self._text.pop()
        replaced, matched, right = self._log.pop()
        self._tries[matched] -= 1
        self._hits[matched] -= right
        for ending, before in replaced:
            if before:
                self._follows[ending] = before
            else:
                del self._follows[ending]


class NoDrafter:
    """Plain cloud decoding."""

    name = NO_DRAFTER
    batch = 1

    def guess(self, texts: Sequence[Sequence[int]], sampling: Sampling) -> list[Guess | None]:
        del sampling
        return [None] * len(texts)

    def reset(self) -> None:
        pass
