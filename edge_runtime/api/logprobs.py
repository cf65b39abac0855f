"""Log-probabilities in the forms of OpenAI's chats and of its text completions.

Tokens that no verdict has brought have none and are left out, and so is the end-of-text token,
which is no part of the text.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Collection, Sequence
from typing import Any

from edge_runtime.pieces import Piece
from edgespec.logprobs import TokenLogprobs

LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON lacks."""

Spell = Callable[[int], bytes]
"""Bytes of a token."""


class ChoiceLogprobs:
    """The log-probabilities of one choice, which are taken out chunk by chunk."""

    def __init__(self, spell: Spell, end_ids: Collection[int], *, chat: bool) -> None:
        self._spell = spell
        self._end_ids = end_ids
        self._form = self._of_chat if chat else self._of_text
        self._waiting: list[tuple[int, TokenLogprobs]] = []
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0
        """Characters before the next token."""

    def add(self, piece: Piece) -> None:
        if piece.logprobs is not None and piece.token not in self._end_ids:
            self._waiting.append((piece.token, piece.logprobs))

    def take(self) -> dict[str, Any] | None:
        """Log-probabilities of the pieces added since the last call; None if there are none."""
        taken, self._waiting = self._waiting, []
        return self._form(taken) if taken else None

    def _of_chat(self, tokens: Sequence[tuple[int, TokenLogprobs]]) -> dict[str, Any]:
        content = [
            self._entry(token, found.logprob)
            | {"top_logprobs": [self._entry(*other) for other in found.top]}
            for token, found in tokens
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        spelled = self._spell(token)
        text = spelled.decode(errors="replace")
        return {"token": text, "logprob": _number(logprob), "bytes": list(spelled)}

    def _of_text(self, tokens: Sequence[tuple[int, TokenLogprobs]]) -> dict[str, Any]:
        return {
            "tokens": [self._name(token) for token, _ in tokens],
            "token_logprobs": [_number(found.logprob) for _, found in tokens],
            "top_logprobs": [
                {
                    self._name(other): _number(logprob)
                    for other, logprob in (*found.top, (token, found.logprob))
                }
                for token, found in tokens
            ],
            "text_offset": [self._advance(token) for token, _ in tokens],
        }

    def _name(self, token: int) -> str:
        """The token's text; its bytes, as OpenAI writes them, if they are no whole characters."""
        spelled = self._spell(token)
        try:
            return spelled.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)

    def _advance(self, token: int) -> int:
        """The offset of a token in the text."""
        offset = self._offset
        self._offset += len(self._decoder.decode(self._spell(token)))
        return offset


def _number(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB)
