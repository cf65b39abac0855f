"""The data files of a folder of graphs: appending, hashing and writing in the background.

Hashing and writing take about half of an export's time. They run in a thread of their own, while
the next matrix is read and transposed. The number of pieces in the queue is bounded.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from edgespec.manifest import File

ALIGNMENT_BYTES = 64
_MAX_QUEUED_PIECES = 4
"""Pieces that may wait to be written (views of a matrix, not copies)."""

Piece = bytes | memoryview


class DataFiles:
    """A context manager; nothing is written after the block ends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._digests: dict[Path, hashlib._Hash] = {}
        self._sizes: dict[Path, int] = {}
        self._thread = ThreadPoolExecutor(1)
        self._queued: deque[Future[None]] = deque()

    def __enter__(self) -> DataFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def append(self, name: str, pieces: Iterable[Piece]) -> tuple[int, int]:
        """Append the pieces. Return their offset, a multiple of `ALIGNMENT_BYTES`, and length.

        The pieces must not change afterwards. Raises `OSError` in this or a later call if a write
        fails.
        """
        path = self._folder / name
        before = self._sizes.setdefault(path, 0)
        offset = before + (-before % ALIGNMENT_BYTES)
        self._put(path, bytes(offset - before))
        for piece in pieces:
            self._put(path, piece)
        return offset, self._sizes[path] - offset

    def described(self) -> dict[Path, File]:
        """Wait for all writes and return the files. Raises `OSError` if a write fails."""
        self._wait(0)
        return {
            path: File(sha256=digest.hexdigest(), size=self._sizes[path])
            for path, digest in self._digests.items()
        }

    def _put(self, path: Path, piece: Piece) -> None:
        digest = self._digests.setdefault(path, hashlib.sha256())
        self._queued.append(self._thread.submit(_write, path, piece, digest))
        self._sizes[path] += len(piece)
        self._wait(_MAX_QUEUED_PIECES)

    def _wait(self, limit: int) -> None:
        while len(self._queued) > limit:
            self._queued.popleft().result()


def _write(path: Path, piece: Piece, digest: hashlib._Hash) -> None:
    digest.update(piece)
    with path.open("ab", buffering=0) as file:
        rest = memoryview(piece)
        while rest:
            rest = rest[file.write(rest) :]
