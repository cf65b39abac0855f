"""The bytes that each token stands for, alone and not as a part of a text.

A tokenizer's decoder says how its vocabulary spells bytes: byte-level ones (GPT-2, Llama 3, Qwen)
have one printable character for each byte; the others (SentencePiece) write `▁` for a space and
`<0x0A>` for a byte. Special tokens are spelled out.
"""

from __future__ import annotations

import re
from functools import cached_property

from tokenizers import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_characters() -> dict[str, int]:
    """The byte of each character that a byte-level vocabulary uses (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {chr(byte): byte for byte in printable}
    return characters | {chr(256 + number): byte for number, byte in enumerate(others)}


class TokenBytes:
    """Bytes by token id."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __call__(self, token: int) -> bytes:
        """The bytes of a token; empty for an id that the vocabulary lacks."""
        name = self._tokenizer.id_to_token(token)
        if name is None:
            return b""
        if token in self._added:
            return name.encode()
        if byte := _BYTE.fullmatch(name):
            return bytes.fromhex(byte[1])
        if self._characters and all(character in self._characters for character in name):
            return bytes(self._characters[character] for character in name)
        return name.replace("▁", " ").encode()

    @cached_property
    def _added(self) -> frozenset[int]:
        return frozenset(self._tokenizer.get_added_tokens_decoder())

    @cached_property
    def _characters(self) -> dict[str, int]:
        """Empty if the vocabulary is not byte-level."""
        decoder = self._tokenizer.decoder
        return _byte_characters() if decoder and b'"ByteLevel"' in decoder.__getstate__() else {}
