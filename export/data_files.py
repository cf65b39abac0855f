"""The data files beside the graphs of a folder: appended to, hashed, written behind.

Hashing and writing happen in a thread of their own, so that the next matrix is read and turned
meanwhile; they are about half of an export's time. What waits to be written is bounded.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from edgespec.manifest import File

ALIGNMENT = 64
_WAITING = 4
"""Pieces that may wait to be written; those of one matrix are no copies of it."""

Piece = bytes | memoryview


class DataFiles:
    """Use it as a context manager: nothing is written any more once the block is left."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._digests: dict[Path, hashlib._Hash] = {}
        self._sizes: dict[Path, int] = {}
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> DataFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def append(self, name: str, pieces: Iterable[Piece]) -> tuple[int, int]:
        """Where the pieces lie in the file: offset, a multiple of `ALIGNMENT`, and length.

        They must not change afterwards. Raises `OSError` where the disk refuses, now or later.
        """
        path = self._folder / name
        before = self._sizes.setdefault(path, 0)
        offset = before + (-before % ALIGNMENT)
        self._put(path, bytes(offset - before))
        for piece in pieces:
            self._put(path, piece)
        return offset, self._sizes[path] - offset

    def described(self) -> dict[Path, File]:
        """The files, once all of them is written; `OSError` as above."""
        self._wait(0)
        return {
            path: File(sha256=digest.hexdigest(), size=self._sizes[path])
            for path, digest in self._digests.items()
        }

    def _put(self, path: Path, piece: Piece) -> None:
        digest = self._digests.setdefault(path, hashlib.sha256())
        self._waiting.append(self._thread.submit(_write, path, piece, digest))
        self._sizes[path] += len(piece)
        self._wait(_WAITING)

    def _wait(self, most: int) -> None:
        while len(self._waiting) > most:
            self._waiting.popleft().result()


def _write(path: Path, piece: Piece, digest: hashlib._Hash) -> None:
    digest.update(piece)
    with path.open("ab", buffering=0) as file:
        rest = memoryview(piece)
        while rest:
            rest = rest[file.write(rest) :]
