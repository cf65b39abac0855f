"""The arithmetic fingerprint names software, processor and precision."""

import platform

import pytest

from edgespec.manifest import Precisions
from engines.machine import installed
from engines.machine.arithmetic import fingerprint
from engines.machine.installed import Gpu

FP32 = Precisions("fp32", "fp32", "fp32")


@pytest.fixture
def cpu(tmp_path, monkeypatch):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("model name : a CPU\nflags : avx2 avx512f avx512_vnni\n")
    monkeypatch.setattr(installed, "onnxruntime", lambda: ("1.31.1", ("CPUExecutionProvider",)))
    monkeypatch.setattr(installed, "gpus", lambda: (Gpu("NVIDIA X"),))
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    return tmp_path


def test_onnx_runtime_on_a_cpu(cpu):
    assert fingerprint("onnxruntime", FP32, cpu) == "onnxruntime 1.31.1, x86_64 avx512_vnni, fp32"
    mixed = Precisions("int4", "int8", "int8")
    assert fingerprint("onnxruntime", mixed, cpu).endswith("avx512_vnni, int4 with head int8")


def test_a_gpu_where_the_back_end_uses_one(cpu, monkeypatch):
    monkeypatch.setattr(installed, "tensorrt", lambda: {"tensorrt_rtx": "1.7.1"})
    assert fingerprint("tensorrt", FP32, cpu) == "tensorrt_rtx 1.7.1, NVIDIA X, fp32"
    monkeypatch.setattr(installed, "gpus", lambda: ())
    (cpu / "proc/device-tree").mkdir()
    (cpu / "proc/device-tree/model").write_text("NVIDIA Jetson Y\0")
    assert fingerprint("tensorrt", FP32, cpu) == "tensorrt_rtx 1.7.1, NVIDIA Jetson Y, fp32"
    assert fingerprint("onnxruntime", FP32, cpu).endswith("x86_64 avx512_vnni, fp32")


def test_onnx_runtime_on_a_gpu(cpu, monkeypatch):
    monkeypatch.setattr(installed, "onnxruntime", lambda: ("1.31", ("CUDAExecutionProvider",)))
    assert fingerprint("onnxruntime", FP32, cpu) == "onnxruntime 1.31, NVIDIA X, fp32"
