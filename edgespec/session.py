"""A session's state on either side: its committed tokens, and whether the answer has ended.

Device and cloud each keep a `Session` and commit the same tokens to it, so both find the same end
of the answer without a message.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal


def alias(session: int) -> str:
    """Short name of a session id for logs, metrics and traces, which never show the id."""
    return hashlib.blake2b(session.to_bytes(8, "big"), digest_size=4).hexdigest()


Finish = Literal["", "end", "length", "stop"]
"""Why an answer ended: end-of-text token, limit reached, stop string. Empty before the end."""


@dataclass
class Session:
    """Committed tokens, prompt first. `tokens` only grows, and is final once `finish` is set."""

    tokens: list[int]
    prompt_length: int
    max_tokens: int
    """Most tokens of the answer, end-of-text token included."""
    end_ids: frozenset[int]
    finish: Finish = field(default="")

    def __post_init__(self) -> None:
        if not 0 < self.prompt_length <= len(self.tokens):
            raise ValueError(f"prompt of {self.prompt_length} in {len(self.tokens)} tokens")
        self._settle(self.prompt_length)

    @property
    def answer(self) -> list[int]:
        return self.tokens[self.prompt_length :]

    @property
    def remaining(self) -> int:
        """Number of tokens that can still be committed."""
        return self.prompt_length + self.max_tokens - len(self.tokens) if not self.finish else 0

    def limit(self, max_tokens: int) -> None:
        """Changes the most tokens of an answer that has not ended."""
        if not self.finish and max_tokens != self.max_tokens:
            self.max_tokens = max_tokens
            self._settle(max(self.prompt_length, len(self.tokens) - 1))

    def commit(self, tokens: Sequence[int]) -> list[int]:
        """Appends tokens up to the end of the answer. Returns the appended tokens."""
        before = len(self.tokens)
        if not self.finish:
            self.tokens.extend(tokens)
            self._settle(before)
        return self.tokens[before:]

    def _settle(self, start: int) -> None:
        """Finds the end of the answer from position `start` on, and removes the tokens after it."""
        limit = self.prompt_length + self.max_tokens
        for position in range(start, len(self.tokens)):
            if self.tokens[position] in self.end_ids:
                self.finish = "end"
            elif position + 1 >= limit:
                self.finish = "length"
            if self.finish:
                del self.tokens[position + 1 :]
                return
