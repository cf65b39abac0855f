"""Printing an answer: its text to standard output, its figures to standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from edge_runtime.completion import Completion
from edge_runtime.loop import Observer
from edge_runtime.pieces import Origin
from edgespec.config import Request
from edgespec.plain_text import visible
from edgespec.sampling import Sampling
from edgespec.telemetry import AnswerStats
from edgespec.trace import Trace
from engines.machine.energy.meter import EnergyMeter
from engines.machine.energy.sensors import Sensors

ACCEPTED, WRITTEN = "green", "yellow"
"""Colours of tokens that the device drafted, and of all others."""
UNVERIFIED = "magenta"
"""Colour of tokens that no target has verified."""


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
    show_drafts: bool = False
    """Colour accepted and corrected tokens."""
    json: bool = False
    """Print the figures as one JSON line."""
    explain: bool = False
    """Print which mode answers are written in, and why."""
    quiet: bool = False
    """Print nothing but the answer and errors."""

    @property
    def conversation(self) -> bool:
        """True if several prompts are typed one after the other."""
        return self.chat and self.prompt is None and sys.stdin.isatty()

    def request(self, prompt: Sequence[int]) -> Request:
        return Request(tuple(prompt), self.max_tokens, self.sampling, self.stops)


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
        coloured = settings.show_drafts
        self._console = Console(highlight=False, force_terminal=True) if coloured else None

    def print(self, begin: Callable[[], Completion]) -> None:
        """Prints the answer that `begin` starts, and then its figures, also if it fails.

        Raises what `begin` and the iteration over the answer raise.
        """
        meter = EnergyMeter(self._sensors) if self._sensors else None
        completion: Completion | None = None
        shown = 0
        try:
            with meter or nullcontext():
                completion = begin()
                for piece in completion:
                    if piece.correction is not None:
                        _note(f"the target corrects the text after character {piece.correction}")
                        shown = piece.correction
                    self._show(piece.text, piece.origin)
                    shown += len(piece.text)
        finally:
            if completion:
                completion.cancel()  # after Ctrl-C; its figures are complete then
            if completion and completion.stats.tokens:
                self.text = completion.partial_text
                sys.stdout.write(visible(self.text[shown:], sys.stdout) + "\n")
                sys.stdout.flush()
                completion.stats.energy = meter.energy(completion.stats.tokens) if meter else None
                self._stats = completion.stats
                if self._settings.json or not self._settings.quiet:
                    self.report_last()

    def report_last(self) -> None:
        """Prints the figures of the last answer, or that there is none, to standard error."""
        if self._stats is None:
            print("there is no answer yet", file=sys.stderr)
        else:
            shown = self._stats.as_json() if self._settings.json else self._stats.as_text()
            print(shown, file=sys.stderr)

    def _show(self, text: str, origin: Origin) -> None:
        if self._console is None:
            sys.stdout.write(visible(text, sys.stdout))
            sys.stdout.flush()
        else:
            colour = {"device": ACCEPTED, "unverified": UNVERIFIED}.get(origin, WRITTEN)
            self._console.print(
                Text(visible(text, sys.stdout), style=colour), end="", soft_wrap=True
            )


def observer(settings: TextSettings, trace: Trace | None = None) -> Observer:
    """Reports to standard error: modes if they were asked for, and waiting on a terminal."""
    shows_waiting = settings.explain or (sys.stderr.isatty() and not settings.quiet)
    return Observer(
        (lambda sentence: _note(f"mode {sentence}")) if settings.explain else None,
        _note if shows_waiting else None,
        trace,
    )


def _note(sentence: str) -> None:
    sys.stdout.flush()
    print(f"\n[{sentence}]", file=sys.stderr, flush=True)
