"""Log-probabilities of a session's committed tokens, kept for devices that miss verdicts."""

from __future__ import annotations

from edgespec.logprobs import record_bytes
from edgespec.protocol import MAX_LOGPROB_BYTES


class SessionLogprobs:
    """Records of the tokens from position `start` on, `count` likeliest tokens each."""

    def __init__(self, count: int, start: int) -> None:
        """`start`: committed tokens when the session was opened; the device has theirs."""
        self.count = count
        self.records = bytearray()
        self._start = start
        self._size = record_bytes(count)

    def add(self, records: bytes, tokens: int) -> bytes:
        """Appends the records of the first `tokens` tokens; returns them."""
        taken = records[: self._size * tokens]
        self.records += taken
        return taken

    def since(self, base: int) -> bytes:
        """The records of the tokens from position `base` on, as many as fit into a verdict. Empty
        if the first of them are missing."""
        if base < self._start:
            return b""
        first = self._size * (base - self._start)
        most = MAX_LOGPROB_BYTES // self._size
        return bytes(self.records[first : first + self._size * most])

    def tokens(self, records: bytes) -> int:
        """Number of tokens that these records are for."""
        return len(records) // self._size
