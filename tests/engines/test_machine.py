"""`edgespec doctor`, on recorded trees and on the machine that runs the tests."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgespec import profiles
from edgespec.cli import main
from engines.machine import (
    Machine,
    Memory,
    Processor,
    describe,
    free_bytes,
    read_board,
    read_memory,
    read_processor,
    report,
)

X86 = """\
processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz
flags\t\t: fpu sse4_2 avx avx2 avx512f avx512_vnni

processor\t: 1
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz
flags\t\t: fpu sse4_2 avx avx2 avx512f avx512_vnni
"""
PI = """\
processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd0b

Revision\t: c04170
Model\t\t: Raspberry Pi 5 Model B Rev 1.0
"""


def record(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / "proc" / name.replace("__", "/").replace("_", "-")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def x86(tmp_path: Path) -> Path:
    memory = "MemTotal:       65536000 kB\nMemFree: 1 kB\nMemAvailable:   32768000 kB\n"
    return record(tmp_path, cpuinfo=X86, meminfo=memory)


@pytest.fixture
def pi(tmp_path: Path) -> Path:
    memory = "MemTotal:        8245920 kB\nMemAvailable:    7340032 kB\n"
    model = "Raspberry Pi 5 Model B Rev 1.0\0"
    return record(tmp_path, cpuinfo=PI, meminfo=memory, device_tree__model=model)


def test_x86_with_vnni(x86: Path) -> None:
    processor, memory = read_processor(x86), read_memory(x86)
    assert processor.model == "Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz"
    assert processor.features == ("avx2", "avx512f", "avx512_vnni")
    assert memory == Memory(64000, 32000)
    assert read_board(x86) == ""
    machine = Machine(processor=processor, memory=memory)
    assert machine.profile == ("cpu-int8", "the CPU has int8 dot products (avx512_vnni)")


def test_raspberry_pi_5(pi: Path) -> None:
    processor, memory = read_processor(pi), read_memory(pi)
    assert processor == Processor("Cortex-A76", ("asimd", "asimddp", "asimdhp"))
    assert memory == Memory(8052, 7168)
    assert read_board(pi) == "Raspberry Pi 5 Model B Rev 1.0"
    assert Machine(processor=processor, memory=memory).profile[0] == "cpu-int8"
    assert Machine(processor=processor, memory=Memory(2048, 900)).profile[0] == "cpu-int4"


def test_nothing_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    machine = describe(tmp_path)
    assert machine.processor == Processor()
    assert machine.memory == Memory()
    assert (machine.board, machine.gpus) == ("", ())
    assert machine.profile == ("cpu-fp32", "nothing is known of the CPU, and fp32 runs on any")
    words = report(machine).split()
    assert words.count("unknown") == 3


def test_files_of_another_form_are_unknown(tmp_path: Path) -> None:
    record(tmp_path, cpuinfo="no colon\n: : :\nflags\n", meminfo="MemTotal:\nMemTotal: much kB\n")
    assert read_processor(tmp_path).features == ()
    assert read_memory(tmp_path) == Memory()


def test_cores_that_differ_share_only_what_all_have(tmp_path: Path) -> None:
    big = PI.replace("0xd0b", "0xd41")
    little = PI.replace("0xd0b", "0xd05").replace(" asimddp", "")
    processor = read_processor(record(tmp_path, cpuinfo=little + big))
    assert processor == Processor("Cortex-A55 + Cortex-A78", ("asimd", "asimdhp"))


def script(folder: Path, text: str) -> None:
    folder.mkdir()
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)


def test_gpus_are_what_nvidia_smi_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path / "bin", "echo 'NVIDIA H200, 143771 MiB, 570.86'")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    machine = describe(tmp_path)
    assert machine.gpus == ("NVIDIA H200, 143771 MiB, 570.86",)
    assert "NVIDIA H200" in report(machine)


def test_a_failing_nvidia_smi_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path / "bin", "echo 'NVIDIA-SMI has failed'; exit 9")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert describe(tmp_path).gpus == ()


def test_jetson_is_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    board = "NVIDIA Jetson Orin Nano Developer Kit"
    machine = describe(record(tmp_path, device_tree__model=board + "\0"))
    assert (machine.board, machine.gpus) == (board, (board,))


def test_a_gpu_needs_its_provider() -> None:
    providers = ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert Machine(gpus=("RTX",), providers=providers).profile[0] == "gpu-fp16"
    assert Machine(gpus=("RTX",), providers=providers[1:]).profile[0] == "cpu-fp32"
    assert Machine(providers=providers).profile[0] == "cpu-fp32"


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


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 7168 << 20),
        ({"sys/fs/cgroup/memory.max": "max\n", "sys/fs/cgroup/memory.current": "5\n"}, 7168 << 20),
        (
            {
                "proc/self/cgroup": "0::/system.slice/edgespec.service\n",
                "sys/fs/cgroup/system.slice/edgespec.service/memory.max": "1000\n",
                "sys/fs/cgroup/system.slice/edgespec.service/memory.current": "900\n",
                "sys/fs/cgroup/system.slice/edgespec.service/memory.stat": "inactive_file 300\n",
            },
            400,
        ),
        (
            {
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "1000\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "2000\n",
            },
            1,
        ),
    ],
)
def test_free_memory_is_what_system_and_control_group_leave(
    pi: Path, files: dict[str, str], free: int
) -> None:
    for name, text in files.items():
        (pi / name).parent.mkdir(parents=True, exist_ok=True)
        (pi / name).write_text(text)
    assert free_bytes(pi) == free


def test_free_memory_that_nobody_tells_is_guessed(tmp_path: Path) -> None:
    assert free_bytes(tmp_path) == 1 << 30
