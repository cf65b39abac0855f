"""Unverified text in replies: what the draft writes while the cloud is away.

A client of OpenAI's API keeps every text that it was sent. So a plain stream gets unverified text
only when the target has confirmed it, or at the end of the answer. A client that asks for pieces
(`edgespec`) gets it at once, and each piece that takes the place of others has a `correction`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from edge_runtime.pieces import Piece


class HeldText:
    """The text of one answer for a client that cannot take text back."""

    def __init__(self) -> None:
        self._held: deque[str] = deque()
        """Texts that the target has not confirmed, a token each."""

    def pass_on(self, text: str, piece: Piece | None) -> str:
        """The text that may be sent now that `piece` has come with `text`; None: at the end of the
        answer."""
        if piece is None:
            return self.flush() + text
        if piece.correction is not None:
            self._held.clear()
        if piece.origin == "unverified":
            self._held.append(text)
            return ""
        return self._held.popleft() if self._held else text  # confirms the first that was held

    def flush(self) -> str:
        """What was never confirmed, at the end of the answer."""
        text = "".join(self._held)
        self._held.clear()
        return text


def settled(pieces: Iterable[Piece]) -> list[Piece]:
    """The pieces of a whole answer as they stand at its end: confirmed ones have the origin that
    the target's verdict gave them, and withdrawn ones are gone."""
    standing: list[Piece] = []
    unverified: deque[int] = deque()
    """Places of pieces that no verdict has reached."""
    for piece in pieces:
        if piece.origin == "unverified":
            unverified.append(len(standing))
        elif unverified:
            place = unverified.popleft()
            if piece.correction is None:
                standing[place] = standing[place]._replace(origin=piece.origin)
                continue
            del standing[place:]
            unverified.clear()
            piece = piece._replace(correction=None)
        standing.append(piece)
    return standing
