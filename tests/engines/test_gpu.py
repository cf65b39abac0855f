"""What only a GPU can prove: run these where there is one. They are skipped elsewhere."""

import shutil

import numpy as np
import onnxruntime
import pytest

from edgespec.errors import EngineError
from engines.base import Row, final_choices
from engines.cache.device_memory import DeviceStore
from engines.cuda import CudaDevice
from engines.exactness import measure, report_cases
from engines.machine.profiles import precisions
from engines.onnxruntime_backend.engine import OrtSettings, load_target
from engines.tensorrt_backend.target import open_draft, open_target
from export.bundle import ExportSettings, export
from export.tensorrt.build import BuildSettings, build
from tests.engines.host_device import HostDevice

IDS = [(7 * number) % 290 + 5 for number in range(200)]


def gpu():
    try:
        return CudaDevice()
    except EngineError as error:
        pytest.skip(str(error))


@pytest.fixture(params=[HostDevice, gpu], ids=["host", "gpu"])
def device(request):
    return request.param()


def test_memory_of_a_device_is_written_copied_and_read(device):
    store = DeviceStore(device)
    source, target = store.zeros((2, 3, 8, 4), np.float16), store.zeros((2, 3, 16, 4), np.float16)
    sent = device.host(source.shape, np.float16)
    sent[:] = np.arange(sent.size).reshape(sent.shape)
    device.write(source.address, sent)
    store.copy(target, 1, source, 0, 2, 7)
    got = device.host(target.shape, np.float16)
    device.read(got, target.address)
    device.finish()
    expected = np.zeros(target.shape, np.float16)
    expected[1, :, 2:7] = sent[0, :, 2:7]
    assert np.array_equal(got, expected)
    free, total = device.memory()
    assert 0 < free < total


def test_what_is_recorded_reads_what_is_there_when_it_is_replayed(device):
    store = DeviceStore(device)
    first, second = store.zeros((1, 1, 4, 2), np.float32), store.zeros((1, 1, 4, 2), np.float32)
    sent, got = (device.host(first.shape, np.float32) for _ in range(2))

    def record():
        device.write(first.address, sent)
        store.copy(second, 0, first, 0, 0, 4)
        device.read(got, second.address)

    replay = device.capture(record)
    device.finish()
    assert not got.any(), "recording does nothing"
    for number in (3, 5):
        sent[:] = number
        replay()
        device.finish()
        assert (got == number).all()


@pytest.fixture(scope="module")
def half(tmp_path_factory, tiny_llama_folder):
    settings = ExportSettings(
        str(tiny_llama_folder),
        tmp_path_factory.mktemp("half") / "bundle",
        precisions=precisions("fp16"),
        segments=2,
        drafts=(("gpu-fp16", "self"),),
    )
    return export(settings)


def logits(engine):
    slot = engine.open()
    (choices,) = final_choices(engine, [Row(slot, 0, IDS, len(IDS))])
    engine.close(slot)
    return np.asarray(choices.logits, np.float32)


def close(engine, plain):
    """Whether two engines agree but for rounding, and what exactness finds in the first."""
    found, expected = logits(engine), logits(plain)
    assert np.abs(found - expected).max() < 0.02 * np.ptp(expected)
    cases = measure(lambda threads: engine, threads=(1,))
    print(report_cases(cases))
    assert max(case.largest for case in cases) < 0.02 * np.ptp(expected)


@pytest.mark.parametrize("floats", ["fp32", "fp16"])
def test_onnx_runtime_on_the_gpu_computes_what_it_does_on_the_cpu(tiny_bundle, half, floats):
    device = gpu()
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("needs onnxruntime-gpu")
    bundle = tiny_bundle if floats == "fp32" else half
    engine = load_target(bundle, OrtSettings(), device)
    close(engine, load_target(bundle, OrtSettings()))


def test_tensorrt_computes_what_onnx_runtime_does_and_replays(half, tmp_path):
    device = gpu()
    shutil.copytree(half.folder, tmp_path / "bundle")
    bundle = build(type(half).open(tmp_path / "bundle"), BuildSettings("cuda"), print)
    plain = load_target(half, OrtSettings())
    target = open_target(bundle, device=device)
    close(target, plain)
    close(open_draft(bundle, "gpu-fp16", 4, device=gpu()), plain)
    assert target._runner.records and len(target._runner.recorded)
    assert not any(engine.unaliased for engine in target._runner.engines())
