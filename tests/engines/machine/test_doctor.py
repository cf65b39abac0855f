"""`edgespec doctor`: what is installed, the report, and what it advises."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cli.main import main
from engines.machine import profiles
from engines.machine.doctor import Machine, describe, report
from engines.machine.installed import Gpu
from engines.machine.system_files import Processor, SystemMemory

CPU = "CPUExecutionProvider"
ORIN = "nvidia,tegra234"


def test_nothing_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    machine = describe(tmp_path)
    assert machine.processor == Processor()
    assert machine.memory == SystemMemory()
    assert (machine.board, machine.compatible, machine.gpus) == ("", (), ())
    assert machine.profile == ("cpu-fp32", "nothing is known of the CPU, and fp32 runs on any")
    words = report(machine).split()
    assert words.count("unknown") == 3


@pytest.mark.parametrize(
    ("features", "memory_mb", "onnxruntime", "profile", "reason"),
    [
        (("asimd", "asimddp"), 8052, "1.31.1", "cpu-int8", "int8 dot products (asimddp)"),
        (("asimd", "asimddp"), 2048, "1.31.1", "cpu-int4", "2048 MB of memory are little"),
        (("asimd",), 8052, "1.31.1", "cpu-fp32", "no int8 dot products"),
        (("asimd", "asimddp"), 8052, "1.23.2", "cpu-compat", "1.23.2 has no opset 24"),
        (("asimd", "asimddp"), 8052, "", "cpu-int8", "int8 dot products"),
    ],
)
def test_hardware_that_nobody_knows_gets_a_generic_profile(
    features: tuple[str, ...], memory_mb: int, onnxruntime: str, profile: str, reason: str
) -> None:
    machine = Machine(
        processor=Processor("Cortex-A78", features),
        memory=SystemMemory(memory_mb, memory_mb),
        onnxruntime=onnxruntime,
    )
    assert machine.profile[0] == profile
    assert reason in machine.profile[1]
    assert machine.notes == () or profile == "cpu-compat"


def test_llama_cpp_is_reported() -> None:
    assert "llama.cpp     none\n" in report(Machine())
    assert "llama.cpp     bindings 0.3.36\n" in report(Machine(llamacpp="0.3.36"))


def test_what_does_instead_is_what_the_runtime_runs() -> None:
    pi = Machine(board="Raspberry Pi 5 Model B Rev 1.0", onnxruntime="1.31.1", providers=(CPU,))
    assert pi.instead == ("cpu-int4", "cpu-int8", "cpu-compat", "cpu-fp32")
    old = Machine(board="Raspberry Pi 5 Model B Rev 1.0", onnxruntime="1.23.2", providers=(CPU,))
    assert (old.profile[0], old.hardware, old.instead) == ("cpu-compat", "rpi5", ())
    assert "runs the compat graph alone (cpu-compat)" in old.notes[0]
    assert Machine(board="Raspberry Pi 5").instead == ()
    gpu = (Gpu("NVIDIA H200", capability="9.0"),)
    cuda = Machine(gpus=gpu, onnxruntime="1.31.1", providers=("CUDAExecutionProvider", CPU))
    assert cuda.profile[0] == "gpu-fp16"
    assert cuda.instead == ("cpu-int8", "cpu-fp32")
    assert "gpu-fp16" not in Machine(gpus=gpu, onnxruntime="1.31.1", providers=(CPU,)).instead


@pytest.mark.parametrize(
    ("tensorrt", "note"),
    [
        ({"tensorrt": "10.3.0"}, ""),
        ({"tensorrt": "11.4.1.49"}, ""),
        ({"tensorrt": "8.6.2"}, "TensorRT 8.6.2 is too old for engines, which need 10.3 or newer."),
        ({"tensorrt_rtx": "1.7.1"}, "Python finds no TensorRT"),
        ({}, "--system-site-packages"),
    ],
)
def test_a_jetson_needs_its_tensorrt(tensorrt: dict[str, str], note: str) -> None:
    machine = Machine(compatible=(ORIN,), release="36.4.3", tensorrt=tensorrt)
    assert machine.hardware == "jetson-orin"
    assert [note in found for found in machine.notes] == ([True] if note else [])


def test_tensorrt_rtx_serves_a_card_and_not_a_jetson() -> None:
    gpus = (Gpu("NVIDIA GeForce RTX 4090", capability="8.9"),)
    assert Machine(gpus=gpus, tensorrt={"tensorrt_rtx": "1.7.1"}).notes == ()
    assert "finds no TensorRT" in Machine(gpus=gpus).notes[0]


def test_the_compat_graph_is_what_an_old_onnx_runtime_runs() -> None:
    machine = Machine(compatible=(ORIN,), release="36.4.3", onnxruntime="1.23.2", providers=(CPU,))
    assert (machine.profile[0], machine.instead) == ("cpu-compat", ())
    assert "(cpu-compat or jetson-orin)" in machine.notes[0]
    assert "too old: the main graph needs 1.25" in report(machine)


PI_5 = Machine(board="Raspberry Pi 5 Model B Rev 1.0")
X86 = Machine(processor=Processor("AMD EPYC", ("avx2",)), memory=SystemMemory(8000, 7000))
ORIN_6 = Machine(board="Jetson Orin Nano", compatible=(ORIN,), release="36.4.3")
H200 = Machine(gpus=(Gpu("NVIDIA H200", capability="9.0"),))
OLD, NEW = {"onnxruntime": "1.23.2"}, {"onnxruntime": "1.31.1"}
CLASSIC, OLD_CLASSIC = {"tensorrt": "10.3.0"}, {"tensorrt": "8.6.2"}


@pytest.mark.parametrize(
    ("machine", "there", "hardware", "profile", "needs"),
    [
        (X86, OLD, "x86-cpu", "cpu-compat", "opset 24, which ONNX Runtime 1.23.2 does not have"),
        (PI_5, OLD, "rpi5", "cpu-compat", "opset 24, which ONNX Runtime 1.23.2 does not have"),
        (PI_5, NEW, "rpi5", "rpi5", ""),
        (PI_5, {}, "rpi5", "rpi5", ""),
        (ORIN_6, OLD, "jetson-orin", "cpu-compat", "TensorRT 10.3 or newer, and Python finds none"),
        (ORIN_6, OLD | {"tensorrt": OLD_CLASSIC}, "jetson-orin", "cpu-compat",
         "TensorRT 10.3 or newer, and the one here is 8.6.2"),
        (ORIN_6, OLD | {"tensorrt": CLASSIC}, "jetson-orin", "jetson-orin", ""),
        (ORIN_6, {}, "jetson-orin", "jetson-orin", ""),
        (H200, NEW, "cuda", "cpu-int8", "TensorRT 11.4 or newer, and Python finds none"),
        (H200, NEW | {"tensorrt": {"tensorrt_rtx": "1.7.1"}}, "cuda", "cuda", ""),
    ],
)  # fmt: skip
def test_what_is_recommended_is_what_runs(
    machine: Machine, there: dict[str, Any], hardware: str, profile: str, needs: str
) -> None:
    """And the hardware's own profile where nothing is installed that runs another."""
    machine = replace(machine, **there)
    name, reason = machine.profile
    figures = machine.as_dict()
    assert (figures["hardware"], name, figures["profile"]) == (hardware, profile, profile)
    assert name not in machine.instead
    own = machine.recognition.reason
    assert reason == (f"{own}, but profile {hardware} needs {needs}" if needs else own)


def test_refused_hardware_is_reported_all_the_same() -> None:
    nano = Machine(board="NVIDIA Jetson Nano Developer Kit", release="32.7.1")
    assert (nano.as_dict()["profile"], nano.as_dict()["hardware"]) == (None, None)
    assert (nano.instead, nano.notes) == ((), ())
    assert "use a Jetson Orin Nano (profile jetson-orin)" in nano.profile[1]
    assert "profile       none: the first Jetson Nano" in report(nano)
    assert "Jetson Linux  32.7.1" in report(nano)


def script(folder: Path, text: str) -> None:
    folder.mkdir()
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)


def test_gpus_are_what_nvidia_smi_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path / "bin", "echo 'NVIDIA H200, 143771 MiB, 570.86, 9.0'")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    machine = describe(tmp_path)
    assert machine.gpus == (Gpu("NVIDIA H200", "143771 MiB", "570.86", "9.0"),)
    assert "NVIDIA H200, 143771 MiB, driver 570.86, compute capability 9.0" in report(machine)


def test_a_failing_nvidia_smi_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path / "bin", "echo 'NVIDIA-SMI has failed'; exit 9")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert describe(tmp_path).gpus == ()


def test_a_driver_that_does_not_know_capabilities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = 'case "$1" in *compute_cap*) exit 2;; esac; echo "NVIDIA A100-PCIE-40GB, 40536 MiB, 450"'
    script(tmp_path / "bin", old)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert describe(tmp_path).gpus == (Gpu("NVIDIA A100-PCIE-40GB", "40536 MiB", "450"),)


def test_what_a_driver_does_not_tell_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(tmp_path / "bin", "echo 'Orin (nvgpu), [N/A], 540.4.0, [N/A]'")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert describe(tmp_path).gpus == (Gpu("Orin (nvgpu)", "", "540.4.0", ""),)


def test_jetson_is_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    board = "NVIDIA Jetson Orin Nano Developer Kit"
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_text(board + "\0")
    machine = describe(tmp_path)
    assert (machine.board, machine.gpus) == (board, (Gpu(board),))


@pytest.mark.parametrize(
    ("version", "enough"),
    [
        ("1.23.2", False),
        ("1.24.4", False),
        ("1.25.0", True),
        ("1.31.1", True),
        ("2.0", True),
        ("", False),
    ],
)
def test_opset_24_needs_onnx_runtime_1_25(version: str, enough: bool) -> None:
    assert Machine(onnxruntime=version).runs_opset_24 is enough


def test_tensorrt_is_found_without_importing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "tensorrt" or None)
    found = describe().tensorrt
    assert list(found) == ["tensorrt"]
    assert found["tensorrt"]


def test_this_machine() -> None:
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 0, result.output
    assert "profile" in result.stdout
    figures = json.loads(CliRunner().invoke(main, ["doctor", "--json"]).stdout)
    assert figures["cores"] > 0
    assert figures["runs_opset_24"]
    assert "CPUExecutionProvider" in figures["providers"]
    assert figures["profile"] in profiles.names()
