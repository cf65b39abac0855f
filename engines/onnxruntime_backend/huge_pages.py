"""Weights in huge pages, on Linux.

A step reads all weights once. In pages of 4 KB the processor looks up an address for every page, in
a virtual machine twice, and prefetching stops at the end of each page. `madvise(MADV_COLLAPSE)`
(Linux 6.1) copies memory into huge pages (2 MB on most machines) at once; where it is missing,
`MADV_HUGEPAGE` lets the kernel do so later. A window is collapsed only if nearly all of its pages
are in use, so the process hardly grows.

SmolLM2-135M, one thread, an AMD EPYC in a virtual machine, milliseconds a token without and with
them: fp32 34.8 and 30.7, int8 13.6 and 11.0, int4 8.9 and 8.7. The copy takes 0.1 s (int4) to 1 s
(fp32), so it is made while the model already runs, where the process has another core for it. On
the same core the first steps would take twice as long, and be taken for the model's own.

Sources: madvise(2), mincore(2), Documentation/admin-guide/mm/transhuge.rst of Linux.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edgespec.config import usable_cores

_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25
_RESIDENT = b"\x01"
"""Byte of `mincore` for a page that is in memory."""
_MAPS = Path("/proc/self/maps")
_PAGE_BYTES = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
LEAST_USED = 0.9
"""Share of a window's pages that must be in use."""


class Range(NamedTuple):
    """Addresses [start, end)."""

    start: int
    end: int


class HugePages:
    """Memory that the process takes from now on and that `collapse` may move into huge pages."""

    def __init__(self) -> None:
        self._before = _anonymous()
        self._size = _huge_page_bytes()

    def start(self) -> None:
        """Runs `collapse`, on another core if there is one, in a thread that does not keep the
        process from ending."""
        if usable_cores() == 1:
            self.collapse()
        elif self._size:
            threading.Thread(target=self.collapse, name="huge pages", daemon=True).start()

    def collapse(self) -> int:
        """Moves what was taken into huge pages. Returns the bytes of all windows that it chose.

        Does nothing where the system has no huge pages, and never fails.
        """
        if not self._size:
            return 0
        try:
            library = ctypes.CDLL(None)
            advise, resident = library.madvise, library.mincore
        except (AttributeError, OSError):
            return 0
        chosen = 0
        for window in _joined(self._used(resident)):
            size = window.end - window.start
            address, length = ctypes.c_void_p(window.start), ctypes.c_size_t(size)
            if advise(address, length, _MADV_COLLAPSE):
                advise(address, length, _MADV_HUGEPAGE)
            chosen += size
        return chosen

    def _used(self, resident: Any) -> Iterator[Range]:
        """Yields windows of the size of a huge page that are nearly full."""
        pages = self._size // mmap.PAGESIZE
        vector = (ctypes.c_ubyte * pages)()
        for new in without(_anonymous(), self._before):
            first = -(-new.start // self._size) * self._size
            for start in range(first, new.end - self._size + 1, self._size):
                failed = resident(ctypes.c_void_p(start), ctypes.c_size_t(self._size), vector)
                if not failed and bytes(vector).count(_RESIDENT) >= LEAST_USED * pages:
                    yield Range(start, start + self._size)


def without(ranges: Sequence[Range], taken: Sequence[Range]) -> Iterator[Range]:
    """Yields the parts of `ranges` that are in none of `taken`; both ascending."""
    for start, end in ranges:
        for other in taken:
            if other.end > start and other.start < end:
                if other.start > start:
                    yield Range(start, other.start)
                start = other.end
        if start < end:
            yield Range(start, end)


def _joined(windows: Iterator[Range]) -> list[Range]:
    """Returns the windows with neighbours as one."""
    found: list[Range] = []
    for window in windows:
        if found and found[-1].end == window.start:
            window = Range(found.pop().start, window.end)
        found.append(window)
    return found


def _anonymous() -> list[Range]:
    """Returns the process's own writable memory without a file; empty if the system hides it."""
    try:
        lines = _MAPS.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        addresses, rights, _, _, inode, *name = line.split()
        if rights == "rw-p" and inode == "0" and name in ([], ["[heap]"]):
            found.append(Range(*(int(number, 16) for number in addresses.split("-"))))
    return found


def _huge_page_bytes() -> int:
    """Returns the size of a huge page; 0 if the system has none, or its owner wants none."""
    try:
        return 0 if "[never]" in _ENABLED.read_text() else int(_PAGE_BYTES.read_text())
    except (OSError, ValueError):
        return 0
