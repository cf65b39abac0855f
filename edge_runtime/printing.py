"""Printing an answer: its text to standard output, its figures to standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from edge_runtime.completion import Completion
from edge_runtime.observer import Observer
from edge_runtime.piece_writer import PieceWriter, note
from edge_runtime.session_file import SessionFile
from edgespec.config import Request
from edgespec.grammar import Grammar
from edgespec.plain_text import visible
from edgespec.sampling import Sampling
from edgespec.telemetry import AnswerStats
from edgespec.trace import Trace
from engines.machine.energy.meter import EnergyMeter
from engines.machine.energy.sensors import Sensors


@dataclass(frozen=True)
class TextSettings:
    """The request to answer, and how to show the answer."""

    prompt: str | None
    """None: standard input; with `chat` on a terminal, a conversation."""
    chat: bool = False
    system: str = ""
    max_tokens: int = 256
    sampling: Sampling = Sampling()
    stops: tuple[str, ...] = ()
    grammar: Grammar | None = None
    show_drafts: bool = False
    """Colour accepted and corrected tokens."""
    json: bool = False
    """Print the figures as one JSON line."""
    explain: bool = False
    """Print which mode answers are written in, and why."""
    session: Path | None = None
    """File that keeps the answer."""
    quiet: bool = False
    """Print nothing but the answer and errors."""

    @property
    def conversation(self) -> bool:
        """True if several prompts are typed one after the other."""
        return self.chat and self.prompt is None and sys.stdin.isatty()

    def request(self, prompt: Sequence[int]) -> Request:
        return Request(
            tuple(prompt), self.max_tokens, self.sampling, self.stops, grammar=self.grammar
        )


class AnswerPrinter:
    """Prints answers while they are written."""

    def __init__(self, settings: TextSettings, sensors: Sensors | None = None) -> None:
        """`sensors` measure the energy of each answer."""
        self.text = ""
        """Text of the last answer, as far as it was committed."""
        self._stats: AnswerStats | None = None
        """Figures of the last answer."""
        self._settings = settings
        self._sensors = sensors

    def print(self, begin: Callable[[], Completion], session: SessionFile | None = None) -> None:
        """Prints the answer that `begin` starts, and then its figures, also if it fails.

        Committed pieces are kept in `session`. Raises what `begin` and the iteration over the
        answer raise.
        """
        meter = EnergyMeter(self._sensors) if self._sensors else None
        completion: Completion | None = None
        writer = PieceWriter(coloured=self._settings.show_drafts)
        try:
            with meter or nullcontext():
                completion = begin()
                for piece in completion:
                    writer.write(piece)
                    if session:
                        session.add(piece)
        finally:
            if completion:
                completion.cancel()  # after Ctrl-C; its figures are complete then
            if completion and session:
                session.end(completion.stats)
            if completion and completion.stats.token_ids:
                self.text = completion.partial_text
                completion.stats.energy = meter.energy(completion.stats.tokens) if meter else None
                self.show(self.text[writer.shown :], completion.stats)

    def show(self, text: str, stats: AnswerStats) -> None:
        """Prints an answer that is complete already, and its figures."""
        sys.stdout.write(visible(text, sys.stdout) + "\n")
        sys.stdout.flush()
        self._stats = stats
        if self._settings.json or not self._settings.quiet:
            self.report_last()
        elif stats.warning:
            print(stats.warning, file=sys.stderr)

    def report_last(self) -> None:
        """Prints the figures of the last answer, or that there is none, to standard error."""
        if self._stats is None:
            print("there is no answer yet", file=sys.stderr)
        else:
            shown = self._stats.as_json() if self._settings.json else self._stats.as_text()
            print(shown, file=sys.stderr)


def observer(settings: TextSettings, trace: Trace | None = None) -> Observer:
    """Reports to standard error: modes if they were asked for, and waiting on a terminal."""
    shows_waiting = settings.explain or (sys.stderr.isatty() and not settings.quiet)
    return Observer(
        (lambda sentence: note(f"mode {sentence}")) if settings.explain else None,
        note if shows_waiting else None,
        trace,
    )
