"""A device whose memory is the host's, as strict as a GPU is where tests can see it."""

from __future__ import annotations

import ctypes
import math
import weakref

import numpy as np

from edgespec.errors import EngineError

GARBAGE = 0xFF
"""Of fresh memory: as floats of any size, no numbers."""


class HostBuffer:
    def __init__(self, device, size):
        self.size = size
        self._memory_bytes = np.full(size + 256, GARBAGE, np.uint8)
        self.address = -(-self._memory_bytes.ctypes.data // 256) * 256
        device.live[self.address] = size
        weakref.finalize(self, device.free, self.address, self._memory_bytes)


class HostDevice:
    """`lazy`: like a stream, nothing is done before somebody waits for it."""

    place = "cpu"
    stream = 7

    def __init__(self, *, lazy=False, total=1 << 30):
        self.live = {}
        """Sizes by address: of what is allocated, and of the host's page-locked arrays."""
        self.replays = self.captures = 0
        self.most = 0
        """Bytes allocated at once."""
        self._lazy, self._total = lazy, total
        self._used = 0
        self._queue = []
        self._tape = None

    def memory(self):
        return self._total - self._used, self._total

    def allocate(self, size):
        assert self._tape is None, "no memory may be asked for while a graph is recorded"
        if self._used + size > self._total:
            raise EngineError("the device's memory is full; lower --kv-memory")
        self._used += size
        self.most = max(self.most, self._used)
        return HostBuffer(self, size)

    def free(self, address, _memory_bytes):
        self.finish()
        self._used -= self.live.pop(address)

    def host(self, shape, dtype):
        array = np.zeros(shape, dtype)
        self.live[array.ctypes.data] = array.nbytes
        return array

    def fill(self, address, size):
        self.enqueue(lambda: self.at(address, size).fill(0))

    def copy(self, target, target_pitch, source, source_pitch, width, rows):
        assert width <= min(target_pitch, source_pitch), "CUDA refuses runs wider than their pitch"

        def do():
            for row in range(rows):
                here = self.at(target + row * target_pitch, width)
                here[:] = self.at(source + row * source_pitch, width)

        self.enqueue(do)

    def write(self, address, array):
        self.at(array.ctypes.data, array.nbytes)
        self.enqueue(
            lambda: ctypes.memmove(address, array.ctypes.data, self.at(address, array.nbytes).size)
        )

    def read(self, array, address):
        self.at(array.ctypes.data, array.nbytes)
        self.enqueue(
            lambda: ctypes.memmove(array.ctypes.data, address, self.at(address, array.nbytes).size)
        )

    def capture(self, record):
        self.finish()
        self.captures += 1
        self._tape = tape = []
        try:
            record()
        finally:
            self._tape = None

        def replay():
            self.replays += 1
            for do in tape:
                self.enqueue(do)

        return replay

    @property
    def recording(self):
        return self._tape is not None

    def finish(self):
        assert self._tape is None, "nobody may wait while a graph is recorded"
        while self._queue:
            self._queue.pop(0)()

    def enqueue(self, do):
        if self._tape is not None:
            self._tape.append(do)
        else:
            self._queue.append(do)
            if not self._lazy:
                self.finish()

    def at(self, address, size):
        """Bytes that were allocated and not freed since."""
        assert any(
            begin <= address and address + size <= begin + length
            for begin, length in self.live.items()
        ), f"{size} bytes at {address:#x} are nobody's"
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def numbers(self, array):
        """What a `DeviceArray` holds."""
        self.finish()
        size = math.prod(array.shape) * array.dtype.itemsize
        return self.at(array.address, size).view(array.dtype).reshape(array.shape)
