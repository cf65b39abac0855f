"""Writing the pieces of an answer to standard output, in colours on a terminal."""

from __future__ import annotations

import sys
from collections import deque

from rich.console import Console
from rich.text import Text

from edge_runtime.pieces import Origin, Piece
from edgespec.plain_text import visible

ACCEPTED, WRITTEN = "green", "yellow"
"""Colours of tokens that the device drafted, and of all others."""
UNVERIFIED = "magenta"
"""Colour of tokens that no target has verified."""
QUOTED_CHARS = 40
"""Text before a correction that the note about it repeats."""


class PieceWriter:
    """Writes one answer. What was written to a file or a pipe cannot be withdrawn, so unverified
    text is held back there until the target has confirmed it."""

    def __init__(self, *, coloured: bool) -> None:
        """`coloured`: on a terminal, colour accepted tokens too, not only unverified ones."""
        self._coloured = coloured
        self._terminal = sys.stdout.isatty()
        self._console = Console(highlight=False)
        self._written = ""
        """The text that is written and stands."""
        self._held: deque[str] = deque()
        """Unverified texts that were not written."""

    @property
    def shown(self) -> int:
        """Characters of the answer that are written and stand."""
        return len(self._written)

    def write(self, piece: Piece) -> None:
        """Writes a piece, and on standard error where it corrects the text before."""
        text = piece.text
        if piece.correction is not None:
            self._held.clear()
            if self.shown > piece.correction:
                self._written = self._written[: piece.correction]
                last = self._written[-QUOTED_CHARS:].rpartition("\n")[2]
                note(f"the target corrects the text after “{last}”" if last else "corrected")
        if piece.origin == "unverified" and not self._terminal:
            self._held.append(text)
            return
        if self._held:  # the piece confirms the first text that was held back
            text = self._held.popleft()
        self._show(text, piece.origin)
        self._written += text

    def _show(self, text: str, origin: Origin) -> None:
        text = visible(text, sys.stdout)
        if self._terminal and (self._coloured or origin == "unverified"):
            colour = {"device": ACCEPTED, "unverified": UNVERIFIED}.get(origin, WRITTEN)
            self._console.print(Text(text, style=colour), end="", soft_wrap=True)
        else:
            sys.stdout.write(text)
            sys.stdout.flush()


def note(sentence: str) -> None:
    """Prints a sentence to standard error, on a line of its own."""
    sys.stdout.flush()
    print(f"\n[{sentence}]", file=sys.stderr, flush=True)
