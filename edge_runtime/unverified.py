"""The end of an answer that was written while the cloud was lost: the draft's own, not committed.

Once the cloud is back, these tokens are offered to it as a draft. The target confirms them one by
one, up to the first difference, where the rest is withdrawn.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgespec.session import Finish, Session
from edgespec.text import TextStream
from engines.drafters.base import Guess


class UnverifiedTail:
    """Tokens handed out after the committed ones of a session, and their text."""

    def __init__(self) -> None:
        self.guesses: list[Guess] = []
        self.finish: Finish = ""
        """Why the answer ended without the cloud; empty: it did not."""
        self._text: TextStream | None = None

    def __len__(self) -> int:
        return len(self.guesses)

    @property
    def tokens(self) -> list[int]:
        return [guess.token for guess in self.guesses]

    def add(self, guess: Guess, session: Session, committed_text: TextStream | None) -> str:
        """Appends a token. Returns its text; empty where `committed_text`, the text of the
        committed tokens, is None."""
        if not self.guesses and committed_text is not None:
            prompt = session.tokens[: session.prompt_length]
            self._text = committed_text.fork(prompt, session.answer)
        self.guesses.append(guess)
        text = self._text.push(guess.token) if self._text else ""
        if self._text and self._text.stopped:
            self.finish = "stop"
        elif guess.token in session.end_ids:
            self.finish = "end"
        elif len(self.guesses) >= session.remaining:
            self.finish = "length"
        return text

    def confirms(self, token: int) -> bool:
        """Compares a committed token with the first one here, and takes it out. A different one
        withdraws all."""
        if self.guesses.pop(0).token == token:
            return True
        self.guesses.clear()
        return False

    def offered(self, drafted: Sequence[int], most: int) -> Sequence[Guess]:
        """The guesses that extend a path of `drafted` tokens to at most `most`; none if it
        differs."""
        count = min(len(drafted), len(self.guesses))
        same = list(drafted[:count]) == self.tokens[:count]
        return self.guesses[len(drafted) : most] if same else ()

    def flush(self) -> str:
        """Text held back because it might begin a stop string."""
        return self._text.flush() if self._text else ""
