"""CUDA's calls and sentences over a recorded runtime; pools in the memory of a device."""

import ctypes
import importlib.util
from enum import IntEnum
from types import SimpleNamespace

import numpy as np
import pytest

from edgespec.errors import EngineError
from engines.cache.device_memory import DeviceStore, device_pools
from engines.cache.pools import CacheTensor
from engines.cache.slots import SlotCache
from engines.cuda import CudaDevice, Runtime, count
from tests.engines.host_device import HostDevice


class Error(IntEnum):
    cudaSuccess = 0  # noqa: N815
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorInsufficientDriver = 35  # noqa: N815
    cudaErrorNoDevice = 100  # noqa: N815
    cudaErrorStreamCaptureInvalidated = 901  # noqa: N815


class Recorded:
    """cuda-python's runtime: answers as it does and notes what it hears."""

    cudaStreamNonBlocking = 1  # noqa: N815
    cudaMemcpyKind = SimpleNamespace(  # noqa: N815
        cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3
    )
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815

    def __init__(self, **failing):
        self.failing = failing
        self.heard = []
        self.memory = {}

    def __getattr__(self, name):
        if not name.startswith("cuda"):
            raise AttributeError(name)

        def call(*arguments):
            self.heard.append((name, *arguments))
            if name in self.failing:
                return self.failing[name], None
            return (Error.cudaSuccess, *getattr(self, "_" + name, lambda *_: ())(*arguments))

        return call

    def cudaGetErrorName(self, code):  # noqa: N802
        return Error.cudaSuccess, code.name.encode()

    def cudaGetErrorString(self, code):  # noqa: N802
        return Error.cudaSuccess, b"something else"

    def _cudaGetDeviceCount(self):  # noqa: N802
        return (2,)

    def _cudaGetDeviceProperties(self, number):  # noqa: N802
        return (SimpleNamespace(name=b"NVIDIA Test", major=8, minor=7),)

    def _cudaStreamCreateWithFlags(self, flags):  # noqa: N802
        return (77,)

    def _cudaMemGetInfo(self):  # noqa: N802
        return 1_000_000, 8_000_000

    def _cudaMalloc(self, size):  # noqa: N802
        array = (ctypes.c_uint8 * size)()
        self.memory[ctypes.addressof(array)] = array
        return (ctypes.addressof(array),)

    _cudaMallocHost = _cudaMalloc  # noqa: N815

    def _cudaStreamEndCapture(self, stream):  # noqa: N802
        return ("graph",)

    def _cudaGraphInstantiate(self, graph, flags):  # noqa: N802
        return ("instance",)

    def names(self):
        return [name for name, *_ in self.heard]


def device(**failing):
    return CudaDevice(runtime=Runtime(Recorded(**failing)))


def test_a_device_says_what_it_is_and_how_full():
    cuda = device()
    assert (cuda.name, cuda.capability, cuda.stream) == ("NVIDIA Test", (8, 7), 77)
    assert cuda.memory() == (1_000_000, 8_000_000)
    assert cuda.place == "cuda"
    with pytest.raises(EngineError, match="no GPU 5: this process may use 2"):
        CudaDevice(5, Runtime(Recorded()))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (Error.cudaErrorInsufficientDriver, "driver is missing or older"),
        (Error.cudaErrorNoDevice, "no NVIDIA GPU"),
        (Error.cudaErrorStreamCaptureInvalidated, "something else"),
    ],
)
def test_an_error_is_named_with_what_to_do(code, words):
    with pytest.raises(EngineError, match=words) as caught:
        count(Runtime(Recorded(cudaGetDeviceCount=code)))
    assert code.name in str(caught.value)
    assert "cudaGetDeviceCount" in str(caught.value)


def test_full_memory_says_how_much_was_asked_for_and_is_left():
    cuda = device(cudaMalloc=Error.cudaErrorMemoryAllocation)
    with pytest.raises(EngineError, match=r"--kv-memory.*asked for 5\.0 MB; 1 of 8 MB are free"):
        cuda.allocate(5_000_000)


def test_memory_is_freed_with_its_last_user_after_the_stream_is_done():
    cuda = device()
    heard = cuda._call.module
    array = DeviceStore(cuda).zeros((4, 2, 8, 3), np.float16)
    assert ("cudaMemsetAsync", array.address, 0, 4 * 2 * 8 * 3 * 2, 77) in heard.heard
    view = array[1:3]
    assert view.address == array.address + 2 * 8 * 3 * 2 and view.shape == (2, 2, 8, 3)
    address = array.address
    del array
    assert heard.heard[-2:] == [("cudaStreamSynchronize", 77), ("cudaFree", address)]


def test_a_slot_is_copied_as_runs_a_pitch_apart():
    cuda = device()
    store = DeviceStore(cuda)
    source, target = store.empty((3, 2, 16, 8), np.float16), store.empty((2, 2, 64, 8), np.float16)
    store.copy(target, 1, source, 2, 5, 9)
    *_, call = cuda._call.module.heard
    position = 8 * 2
    assert call == (
        "cudaMemcpy2DAsync",
        target.address + (1 * 2 * 64 + 5) * position,
        64 * position,
        source.address + (2 * 2 * 16 + 5) * position,
        16 * position,
        4 * position,
        2,
        3,
        77,
    )
    store.copy(target, 1, source, 2, 5, 5)
    assert cuda._call.module.heard[-1] is call, "nothing is not copied"


def test_page_locked_memory_begins_as_zeros_and_goes_with_its_array():
    cuda = device()
    array = cuda.host((2, 3), np.int64)
    assert array.shape == (2, 3) and not array.any()
    array[:] = 5
    buffer = cuda.allocate(48)
    cuda.write(buffer.address, array)
    cuda.read(array, buffer.address)
    calls = cuda._call.module.heard
    assert calls[-2] == ("cudaMemcpyAsync", buffer.address, array.ctypes.data, 48, 1, 77)
    assert calls[-1] == ("cudaMemcpyAsync", array.ctypes.data, buffer.address, 48, 2, 77)
    address, part = array.ctypes.data, array[1:]
    del array
    assert "cudaFreeHost" not in cuda._call.module.names(), "a view keeps it"
    del part
    assert cuda._call.module.heard[-1] == ("cudaFreeHost", address)


def test_what_is_recorded_is_launched_and_destroyed():
    cuda = device()
    calls = cuda._call.module
    launch = cuda.capture(lambda: cuda.fill(4096, 8))
    assert calls.names()[-5:] == [
        "cudaStreamBeginCapture",
        "cudaMemsetAsync",
        "cudaStreamEndCapture",
        "cudaGraphInstantiate",
        "cudaGraphDestroy",
    ]
    launch()
    assert calls.heard[-1] == ("cudaGraphLaunch", "instance", 77)
    del launch
    assert calls.heard[-1] == ("cudaGraphExecDestroy", "instance")


def test_a_recording_that_fails_ends():
    def record():
        raise EngineError("no")

    cuda = device()
    with pytest.raises(EngineError, match="no"):
        cuda.capture(record)
    assert cuda._call.module.names()[-1] == "cudaStreamEndCapture"
    cuda = device(cudaStreamEndCapture=Error.cudaErrorStreamCaptureInvalidated)
    with pytest.raises(EngineError, match="CaptureInvalidated"):
        cuda.capture(lambda: None)


def test_without_cuda_python_the_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr("engines.cuda.MODULES", ("no_such_module",))
    with pytest.raises(EngineError, match=r"edgespec\[cuda\]"):
        CudaDevice()


@pytest.mark.skipif(importlib.util.find_spec("cuda") is None, reason="needs cuda-python")
def test_the_real_cuda_python_starts_or_says_why_not():
    try:
        assert CudaDevice().name
    except EngineError as error:
        assert "driver" in str(error) or "no NVIDIA GPU" in str(error)  # noqa: PT017


def held(host, slots=20, dtype=np.float32, capacities=(64, 256)):
    tensors = [CacheTensor("key", 2, 3, dtype), CacheTensor("value", 1, 3, np.float16)]
    return SlotCache(tensors, slots, capacities, device_pools(host))


def write(host, cache, slot, length, value):
    cache.reserve(slot, length)
    pool, index = cache.location(slot)
    for array in pool.arrays.values():
        host.numbers(array)[index, :, :length] = value
    cache.length[slot] = length


def holds(host, cache, slot, length, value):
    pool, index = cache.location(slot)
    return all(
        (host.numbers(array)[index, :, :length] == value).all() for array in pool.arrays.values()
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint16], ids=["fp32", "fp16", "bf16"])
def test_slots_in_a_devices_memory_keep_what_they_hold(dtype):
    host = HostDevice(lazy=True)
    cache = held(host, dtype=dtype)
    slots = [cache.open() for _ in range(9)]
    for number, slot in enumerate(slots):
        write(host, cache, slot, 30, number + 1)
    cache.reserve(slots[3], 200)
    cache.copy(slots[4], slots[5], 10, 30)
    assert all(holds(host, cache, slots[n], 30, n + 1) for n in (0, 1, 2, 3, 4, 6, 7, 8))
    assert holds(host, cache, slots[5], 10, 6)
    pool, index = cache.location(slots[5])
    assert (host.numbers(pool.arrays["key"])[index, :, 10:30] == 5).all()
    for slot in slots[1:]:
        cache.close(slot)
    assert holds(host, cache, slots[0], 30, 1)
    cache.rest(slots[0])
    assert holds(host, cache, slots[0], 30, 1)


def test_fresh_slots_are_zero_and_memory_comes_back():
    host = HostDevice(lazy=True)
    cache = held(host)
    slots = [cache.open() for _ in range(20)]
    for slot in slots:
        cache.reserve(slot, 1)
    pool, _ = cache.location(slots[0])
    assert not any(host.numbers(array).any() for array in pool.arrays.values())
    full = sum(host.live.values())
    assert host.most < 2 * full, "tensors move one after the other"
    for slot in slots[2:]:
        cache.close(slot)
    assert sum(host.live.values()) < full / 2


def test_a_device_without_room_for_another_slot_says_so_and_goes_on():
    host = HostDevice(lazy=True, total=64 * 3 * (2 * 4 + 2) * 7)
    cache = held(host)
    slots = [cache.open() for _ in range(9)]
    for number, slot in enumerate(slots[:4]):
        write(host, cache, slot, 30, number + 1)
    pool, _ = cache.location(slots[0])
    with pytest.raises(EngineError, match="--kv-memory"):
        cache.reserve(slots[4], 1)
    assert pool.occupants == slots[:4]
    assert all(holds(host, cache, slot, 30, n + 1) for n, slot in enumerate(slots[:4]))
    cache.close(slots[3])
    write(host, cache, slots[4], 30, 9)
    assert holds(host, cache, slots[4], 30, 9) and holds(host, cache, slots[0], 30, 1)
