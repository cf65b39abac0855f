"""What is moved into huge pages, and that it stays what it was."""

import mmap
import sys

import numpy as np
import pytest

from engines.onnxruntime_backend import huge_pages
from engines.onnxruntime_backend.huge_pages import HugePages, Range, without

MB = 1 << 20


@pytest.mark.parametrize(
    ("taken", "left"),
    [
        ([], [(10, 20), (30, 40)]),
        ([(0, 10), (20, 30), (40, 50)], [(10, 20), (30, 40)]),
        ([(0, 12), (14, 16), (18, 32)], [(12, 14), (16, 18), (32, 40)]),
        ([(0, 100)], []),
        ([(10, 20), (30, 39)], [(39, 40)]),
    ],
)
def test_ranges_without_those_that_were_there(taken, left):
    ranges = [Range(10, 20), Range(30, 40)]
    assert list(without(ranges, [Range(*one) for one in taken])) == left


@pytest.fixture
def pages(monkeypatch):
    """Huge pages of 2 MB, whatever this machine has, of which the kernel makes what it can."""
    if sys.platform != "linux":
        pytest.skip("other systems have no madvise of this kind")
    monkeypatch.setattr(huge_pages, "_huge_page_bytes", lambda: 2 * MB)
    return HugePages()


def test_full_memory_is_chosen_and_keeps_its_content(pages):
    memory = mmap.mmap(-1, 16 * MB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    numbers = np.frombuffer(memory, np.int64)
    numbers[:] = np.arange(len(numbers))
    assert 14 * MB <= pages.collapse() <= 24 * MB
    assert np.array_equal(numbers, np.arange(len(numbers)))
    assert HugePages().collapse() < 14 * MB  # it was there before


def test_memory_with_holes_is_left_alone(pages):
    memory = mmap.mmap(-1, 16 * MB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    np.frombuffer(memory, np.uint8)[:: 2 * mmap.PAGESIZE] = 1
    assert pages.collapse() < 8 * MB


@pytest.mark.parametrize("enabled", ["always madvise [never]", None])
def test_a_system_without_huge_pages(tmp_path, monkeypatch, enabled):
    monkeypatch.setattr(huge_pages, "_ENABLED", tmp_path / "enabled")
    if enabled:
        (tmp_path / "enabled").write_text(enabled)
    assert HugePages().collapse() == 0
