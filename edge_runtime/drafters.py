"""Who drafts: a model of the bundle, the text itself (prompt lookup), or nobody.

A drafter is handed the committed tokens every time and finds out by itself how much of its cache
still holds: rolling back is starting lower.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from edgespec.config import NGRAM, NO_DRAFTER
from edgespec.errors import UsageError
from edgespec.manifest import Bundle
from edgespec.sampling import Sampling, choose
from engines.base import Engine, Row, final_choices

CHUNK = 64
"""Tokens of a prompt that the draft reads in one step."""


class Drafter(Protocol):
    name: str

    def draft(self, tokens: Sequence[int], count: int, sampling: Sampling) -> list[int]:
        """At most `count` guesses at what follows `tokens`, which only ever grow in one answer."""

    def reset(self) -> None:
        """Another answer begins."""


class ModelDrafter:
    """Autoregressive drafting with the target's own sampling rule and noise."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.name = name
        self._engine = engine
        self._slot = engine.open()
        self._fed: list[int] = []

    def reset(self) -> None:
        self._engine.truncate(self._slot, 0)
        self._fed = []

    def draft(self, tokens: Sequence[int], count: int, sampling: Sampling) -> list[int]:
        start = self._common(tokens)
        self._fed = list(tokens)
        count = min(count, self._engine.context - len(tokens) + 1)
        if count <= 0:
            return []
        drafted: list[int] = []
        pending = self._known(tokens[start:])
        while True:
            while len(pending) > CHUNK:
                head, pending = pending[:CHUNK], pending[CHUNK:]
                final_choices(self._engine, [Row(self._slot, start, head, 0)])
                start += CHUNK
            (choices,) = final_choices(self._engine, [Row(self._slot, start, pending)])
            assert choices is not None
            start += len(pending)
            if sampling.greedy:
                token = int(choices.argmax[0])
            else:
                token = choose(choices.logits[0], sampling, len(tokens) + len(drafted))
            drafted.append(token)
            if len(drafted) == count:
                return drafted
            self._fed.append(token)
            pending = [token]

    def _common(self, tokens: Sequence[int]) -> int:
        """Cached positions that still stand; the last token is always fed again."""
        most = min(len(self._fed), len(tokens) - 1, self._engine.cached(self._slot))
        same = 0
        while same < most and self._fed[same] == tokens[same]:
            same += 1
        return same

    def _known(self, tokens: Sequence[int]) -> list[int]:
        """Ids that a draft with a smaller vocabulary does not have become 0."""
        return [token if token < self._engine.vocabulary else 0 for token in tokens]


class NgramDrafter:
    """Prompt lookup: what followed the last time that the text ended like this.

    Saxena 2023 (prompt lookup decoding); worth most where the answer repeats its prompt. Longest
    ending first, latest occurrence first.
    """

    name = NGRAM

    def __init__(self, longest: int = 4, shortest: int = 2) -> None:
        self._sizes = range(longest, shortest - 1, -1)
        self.reset()

    def reset(self) -> None:
        self._follows: dict[tuple[int, ...], int] = {}
        self._indexed = 0

    def draft(self, tokens: Sequence[int], count: int, sampling: Sampling) -> list[int]:
        del sampling
        # An ending is indexed once something follows it.
        for position in range(max(1, self._indexed), len(tokens)):
            for size in self._sizes:
                if size <= position:
                    self._follows[tuple(tokens[position - size : position])] = position
        self._indexed = max(1, len(tokens))
        for size in self._sizes:
            position = self._follows.get(tuple(tokens[-size:]), 0)
            if position and size <= len(tokens):
                text = list(tokens)
                while len(text) < len(tokens) + count:
                    text.append(text[position])
                    position += 1
                return text[len(tokens) :]
        return []


class NoDrafter:
    """Plain cloud decoding."""

    name = NO_DRAFTER

    def reset(self) -> None:
        pass

    def draft(self, tokens: Sequence[int], count: int, sampling: Sampling) -> list[int]:
        del tokens, count, sampling
        return []


def open_drafter(bundle: Bundle, name: str, threads: int) -> Drafter:
    """The drafter of that name: a profile of the bundle, `ngram` or `none`.

    `threads` 0 is what the profile says. An empty name takes the bundle's first profile, or `ngram`
    where it has no draft.
    """
    name = name or bundle.manifest.default_draft or NGRAM
    if name == NGRAM:
        return NgramDrafter()
    if name == NO_DRAFTER:
        return NoDrafter()
    if name not in bundle.manifest.drafts:
        there = ", ".join([*sorted(bundle.manifest.drafts), NGRAM, NO_DRAFTER])
        raise UsageError(f"{bundle.folder} has no draft for {name!r}; choose one of: {there}")
    from engines.ort import device_settings, load_draft  # ONNX Runtime only where a model drafts

    return ModelDrafter(load_draft(bundle, name, device_settings(name, threads)), name)
