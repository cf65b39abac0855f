"""Memory bandwidth: how fast some threads read a large array.

A step reads all weights, so it cannot be faster than its bytes at this speed unless the last cache
level holds them.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

READ_BYTES = 1 << 29
"""Size of the array: larger than the last cache level of most CPUs."""
REPEAT_COUNT = 5


def read_gb_s(threads: int) -> float:
    """Highest speed in GB/s of `threads` threads that each read a part of one array.

    numpy releases the interpreter while it reduces an array, so that the threads run in parallel.
    """
    # Zeros would all be one page of the system.
    parts = np.array_split(np.ones(READ_BYTES // 8, np.uint64), threads)
    taken_s = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(REPEAT_COUNT):
            before = time.perf_counter()
            list(pool.map(np.bitwise_or.reduce, parts))
            taken_s.append(time.perf_counter() - before)
    return READ_BYTES / min(taken_s) / 1e9
