"""`edge-run --session FILE`: an answer in a file, so that it outlives the process that reads it.

The file holds the request and the tokens that the target has committed. The same command goes on
where they end. Noise depends on the seed and the position alone, so the text is the same.
"""

from __future__ import annotations

import logging
import stat
import time
from dataclasses import replace
from pathlib import Path

import msgspec

from edge_runtime.pieces import Piece
from edgespec.config import Request
from edgespec.errors import UsageError
from edgespec.grammar import Grammar
from edgespec.manifest import Bundle
from edgespec.protocol import Token
from edgespec.publish import replace_file
from edgespec.sampling import Sampling
from edgespec.session import Finish
from edgespec.telemetry import AnswerStats
from edgespec.text import Codec, TextStream

log = logging.getLogger("edgespec")
FORMAT = 1
SAVE_INTERVAL_S = 0.5
"""Shortest time between two writes while an answer is written."""


class _Saved(msgspec.Struct, forbid_unknown_fields=True):
    format: int
    target: str
    """Fingerprint of the target's weights."""
    tokenizer: str
    prompt: list[Token]
    max_tokens: int
    sampling: Sampling
    stops: list[str]
    grammar: Grammar | None = None
    committed: list[Token] = msgspec.field(default_factory=list)
    finish: Finish = ""
    """Why the answer has ended, as in `AnswerStats`; empty: it has not."""


class SessionFile:
    """One answer on disk, readable by its owner only."""

    def __init__(self, path: Path, bundle: Bundle, request: Request) -> None:
        """Reads the answer to `request`, or begins the file.

        Raises `UsageError` if the file holds something else, or cannot be read or written.
        """
        manifest = bundle.manifest
        self._path = path
        self._request = request
        fresh = _Saved(
            FORMAT, manifest.target_fingerprint, manifest.text.fingerprint,
            list(request.prompt), request.max_tokens, request.sampling, list(request.stops),
            request.grammar,
        )  # fmt: skip
        self._saved = _read(path, fresh, manifest.target.architecture.vocabulary)
        self._failed = False
        self._written_s = 0.0
        try:
            self._write()
        except OSError as error:
            raise UsageError(f"cannot write the session to {path}: {error.strerror}") from error

    @property
    def request(self) -> Request:
        """The request, with the tokens that were committed before."""
        return replace(self._request, committed=tuple(self._saved.committed))

    @property
    def finish(self) -> str:
        """Why the answer has ended; empty: it goes on."""
        return self._saved.finish

    @property
    def stats(self) -> AnswerStats:
        """Figures of an answer of which nothing is written now."""
        saved = self._saved
        return AnswerStats(
            prompt_tokens=len(saved.prompt),
            restored=len(saved.committed),
            finish=saved.finish,
            token_ids=saved.committed,
        )

    def text(self, codec: Codec) -> str:
        """Text of the committed tokens."""
        stream = TextStream(codec, self._saved.prompt, self._saved.stops)
        return "".join(map(stream.push, self._saved.committed)) + stream.flush()

    def add(self, piece: Piece) -> None:
        """Keeps a piece that was committed now; unverified ones are not kept."""
        if piece.origin in ("unverified", "restored"):
            return
        self._saved.committed.append(piece.token)
        if time.monotonic() - self._written_s >= SAVE_INTERVAL_S:
            self._save()

    def end(self, stats: AnswerStats) -> None:
        """Writes what has been committed, and whether the answer is complete."""
        self._saved.finish = "" if stats.unverified else stats.finish
        self._save()

    def _save(self) -> None:
        """A full disk does not end the answer; it is reported once."""
        if self._failed:
            return
        try:
            self._write()
        except OSError as error:
            self._failed = True
            log.warning("cannot write the session to %s: %s", self._path, error.strerror)

    def _write(self) -> None:
        replace_file(self._path, msgspec.json.encode(self._saved))
        self._written_s = time.monotonic()


def _read(path: Path, fresh: _Saved, vocabulary: int) -> _Saved:
    """The session in a file, if it is the one that `fresh` begins; `fresh` without content.

    All its token ids are below `vocabulary`.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe or a device may never end
            raise ValueError("not a regular file")
        content = path.read_bytes()
        if not content:  # as mktemp makes it
            return fresh
        saved = msgspec.json.decode(content, type=_Saved)
        if any(token >= vocabulary for token in (*saved.prompt, *saved.committed)):
            raise ValueError("a token id beyond the vocabulary")
        saved.sampling.check()
    except FileNotFoundError:
        return fresh
    except OSError as error:
        raise UsageError(f"cannot read the session in {path}: {error.strerror}") from error
    except (ValueError, RecursionError, UsageError) as error:
        raise UsageError(f"{path} is no session of edge-run; pass another file") from error
    if differing := _differing(saved, fresh):
        raise UsageError(
            f"{path} holds another answer: its {differing} differs; "
            "repeat the command that began it, or pass another file"
        )
    return saved


def _differing(saved: _Saved, fresh: _Saved) -> str:
    """The first part of the request in which two sessions differ; empty: they agree."""
    names = {
        "format": "format",
        "target": "bundle",
        "tokenizer": "bundle",
        "prompt": "prompt",
        "max_tokens": "--max-tokens",
        "sampling": "sampling",
        "stops": "--stop",
        "grammar": "grammar",
    }
    return next(
        (name for field, name in names.items() if getattr(saved, field) != getattr(fresh, field)),
        "",
    )
