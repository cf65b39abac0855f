"""Trace of a runtime: what each side did, and when. JSON lines, one span each.

Times are `time.monotonic()` seconds. Processes of one machine share this clock, so the traces of
device and cloud have one time axis there. A span of length 0 is an event, such as a sent packet.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import msgspec

from edgespec.errors import EdgespecError
from edgespec.session import alias

Side = Literal["device", "cloud"]
What = Literal[
    "draft",  # a step of a draft, on the device or in the cloud
    "verify",  # a target step over draft tokens
    "decode",  # a target step without draft tokens
    "prefill",  # a target step over prompt tokens
    "wait",  # idle
    "send",
    "receive",
    "mode",  # the session changed its mode
]


BLOCK_SPANS = 100
"""Spans that are written at once."""


class Span(msgspec.Struct, frozen=True):
    side: Side
    what: What
    start: float
    """Seconds, as `time.monotonic()`."""
    seconds: float = 0.0
    session: int = 0
    """Number of the session's alias (`edgespec.session.alias`)."""
    round: int = 0
    base: int = 0
    """Position of the first token."""
    tokens: int = 0
    rows: int = 1
    """Rows of the step's batch."""
    note: str = ""


def _private(path: str, flags: int) -> int:
    """Opens a file that other users of the machine cannot read."""
    return os.open(path, flags, 0o600)


class SpanReceiver:
    """Base of what takes spans."""

    wanted = True
    """False: spans need not be added now."""

    def __init__(self, side: Side) -> None:
        self._side = side

    def add(
        self, what: What, start: float, end: float, *, session: int = 0, round: int = 0,
        base: int = 0, tokens: int = 0, rows: int = 1, note: str = "",
    ) -> None:  # fmt: skip
        """Adds a span from `start` to `end`, or an event if they are equal."""
        name = int(alias(session), 16) if session else 0
        self.take(Span(self._side, what, start, end - start, name, round, base, tokens, rows, note))

    def take(self, span: Span) -> None:
        raise NotImplementedError


class Trace(SpanReceiver):
    """Writer of spans. It writes them in blocks, and the rest when it is closed."""

    def __init__(self, path: Path, side: Side) -> None:
        """Opens the file. Raises `EdgespecError` if it cannot be written."""
        super().__init__(side)
        self._lines: list[bytes] = []
        try:
            self._file = open(path, "wb", opener=_private)  # noqa: SIM115
        except OSError as error:
            raise EdgespecError(
                f"the trace cannot be written to {path}: {error.strerror}"
            ) from error

    def take(self, span: Span) -> None:
        self._lines.append(msgspec.json.encode(span))
        if len(self._lines) >= BLOCK_SPANS:
            self.flush()

    def flush(self) -> None:
        if self._lines:
            self._file.write(b"\n".join([*self._lines, b""]))
            self._file.flush()
            self._lines.clear()

    def close(self) -> None:
        self.flush()
        self._file.close()


def read_trace(path: Path) -> list[Span]:
    """The spans of a trace file, by start. Raises `EdgespecError` with the number of a bad line."""
    spans = []
    try:
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            try:
                spans.append(msgspec.json.decode(line, type=Span))
            except msgspec.MsgspecError as error:
                raise EdgespecError(f"{path}, line {number} is no span: {error}") from error
    except OSError as error:
        raise EdgespecError(f"{path} cannot be read: {error.strerror}") from error
    return sorted(spans, key=lambda span: span.start)
