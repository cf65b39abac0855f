"""The draft beside the target: a slot for each session that it drafts for.

Unlike a device, which follows a tree of one text, the cloud follows one line for each of many
texts; what a verdict rejected is covered by what comes in its place.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from edgespec.confidence import UNCALIBRATED
from edgespec.errors import EngineError
from edgespec.manifest import Calibration
from edgespec.sampling import Sampling, common_prefix
from engines.base import Engine, Row, final_choices
from engines.drafters.base import CHUNK, Guess, judge, known


class CloudDrafter(Protocol):
    def guess(
        self, sessions: Sequence[int], texts: Sequence[Sequence[int]], sampling: Sampling
    ) -> Sequence[Guess | None]:
        """What follows each session's text; None where there is no guess."""

    def retain(self, sessions: Collection[int]) -> None:
        """Only these go on."""


@dataclass(eq=False)
class _Line:
    slot: int
    fed: list[int] = field(default_factory=list)


class CloudDraftModel:
    """A model with the target's own sampling rule and noise."""

    def __init__(
        self, engine: Engine, calibration: Calibration | None = None, memory: int = 0
    ) -> None:
        """`memory`: bytes of all its slots, of which one may exceed them; 0: no bound."""
        self._engine = engine
        self._memory = memory
        self._calibration = calibration or UNCALIBRATED
        self._lines: dict[int, _Line] = {}
        """By session; the one that was asked for last stands last."""

    def guess(
        self, sessions: Sequence[int], texts: Sequence[Sequence[int]], sampling: Sampling
    ) -> list[Guess | None]:
        """One step for as many sessions as the engine has slots, and further ones for the rest."""
        guesses: list[Guess | None] = [None] * len(texts)
        waiting = [n for n, text in enumerate(texts) if 0 < len(text) <= self._engine.context]
        while waiting:
            rows: dict[int, Row] = {}
            lines: dict[int, _Line] = {}
            asked: set[int] = set()
            for number in waiting:
                session, text = sessions[number], texts[number]
                fits = self._make_room(session, len(text), asked)
                line = self._line(session, asked) if fits else None
                if line is None:
                    break
                asked.add(session)
                rows[number], lines[number] = self._read(line, text), line
            choices = final_choices(self._engine, list(rows.values()))
            for number, choice in zip(rows, choices, strict=True):
                assert choice is not None
                text = texts[number]
                lines[number].fed += text[len(lines[number].fed) :]
                guesses[number] = judge(choice, self._calibration, sampling, len(text))
            waiting = [number for number in waiting if number not in rows]
        return guesses

    def retain(self, sessions: Collection[int]) -> None:
        for session in [session for session in self._lines if session not in sessions]:
            self._engine.close(self._lines.pop(session).slot)

    def _make_room(self, session: int, length: int, asked: set[int]) -> bool:
        """Lets go of sessions not asked for longest, so that one with so long a text fits; whether
        it does, or is the only one that is asked for."""
        if not self._memory:
            return True
        sizes = {
            other: self._engine.slot_bytes(max(len(line.fed), 1))
            for other, line in self._lines.items()
        }
        sizes[session] = self._engine.slot_bytes(length)
        spare = [other for other in self._lines if other != session and other not in asked]
        while spare and sum(sizes.values()) > self._memory:
            self._engine.close(self._lines.pop(spare[0]).slot)
            del sizes[spare.pop(0)]
        return not asked or sum(sizes.values()) <= self._memory

    def _line(self, session: int, asked: set[int]) -> _Line | None:
        """The session's line; a new one, if need be in the slot of whoever was not asked for
        longest. None where all are asked for in this step."""
        line = self._lines.pop(session, None)
        if line is None:
            try:
                line = _Line(self._engine.open())
            except EngineError:
                oldest = next((other for other in self._lines if other not in asked), None)
                if oldest is None:
                    if not asked:
                        raise
                    return None
                line = _Line(self._lines.pop(oldest).slot)
        self._lines[session] = line
        return line

    def _read(self, line: _Line, text: Sequence[int]) -> Row:
        """The row for what the line lacks of a text, after reading all but the last chunk. What is
        noted as fed has run: a step may fail."""
        del line.fed[min(common_prefix(line.fed, text), len(text) - 1) :]
        ids = known(text, self._engine.vocabulary, len(line.fed))
        while len(ids) > CHUNK:
            final_choices(self._engine, [Row(line.slot, len(line.fed), ids[:CHUNK], 0)])
            line.fed += text[len(line.fed) : len(line.fed) + CHUNK]
            ids = ids[CHUNK:]
        return Row(line.slot, len(line.fed), ids)
