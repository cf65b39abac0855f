"""What the files of a system tell, on recorded trees."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.machine.system_files import (
    Processor,
    SystemMemory,
    free_bytes,
    read_board,
    read_compatible,
    read_memory,
    read_processor,
    read_release,
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
    compatible = "raspberrypi,5-model-b\0brcm,bcm2712\0"
    return record(
        tmp_path,
        cpuinfo=PI,
        meminfo=memory,
        device_tree__model=model,
        device_tree__compatible=compatible,
    )


def test_x86_with_vnni(x86: Path) -> None:
    processor, memory = read_processor(x86), read_memory(x86)
    assert processor.model == "Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz"
    assert processor.features == ("avx2", "avx512f", "avx512_vnni")
    assert memory == SystemMemory(64000, 32000)
    assert (read_board(x86), read_compatible(x86)) == ("", ())


def test_raspberry_pi_5(pi: Path) -> None:
    assert read_processor(pi) == Processor("Cortex-A76", ("asimd", "asimddp", "asimdhp"))
    assert read_memory(pi) == SystemMemory(8052, 7168)
    assert read_board(pi) == "Raspberry Pi 5 Model B Rev 1.0"
    assert read_compatible(pi) == ("raspberrypi,5-model-b", "brcm,bcm2712")


def test_a_container_hides_the_device_tree_and_cpuinfo_still_names_a_pi(tmp_path: Path) -> None:
    assert read_board(record(tmp_path, cpuinfo=PI)) == "Raspberry Pi 5 Model B Rev 1.0"
    assert read_compatible(tmp_path) == ()


RELEASE = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n"
PACKAGES = """\
Package: nvidia-jetpack
Status: install ok installed
Architecture: arm64
Version: 6.2+b77

Package: nvidia-jetpack-dev
Status: deinstall ok config-files
Version: 5.1.1-b56

Package: nvidia-l4t-core
Status: install ok installed
Version: 36.4.4-20250616085344
"""


@pytest.mark.parametrize(
    ("release", "packages", "found"),
    [
        (RELEASE, "", ("36.4.3", "")),
        (RELEASE, PACKAGES, ("36.4.3", "6.2")),
        ("", PACKAGES, ("36.4.4", "6.2")),
        ("", PACKAGES.replace("install ok installed", "deinstall ok config-files"), ("", "")),
        ("# R32 (release), REVISION: 7.1, GCID: 29818004\n", "", ("32.7.1", "")),
        ("something else\n", "", ("", "")),
        ("", "", ("", "")),
    ],
)
def test_jetson_linux(tmp_path: Path, release: str, packages: str, found: tuple[str, str]) -> None:
    for name, text in (("etc/nv_tegra_release", release), ("var/lib/dpkg/status", packages)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert read_release(tmp_path) == found


def test_files_of_another_form_are_unknown(tmp_path: Path) -> None:
    record(tmp_path, cpuinfo="no colon\n: : :\nflags\n", meminfo="MemTotal:\nMemTotal: much kB\n")
    assert read_processor(tmp_path).features == ()
    assert read_memory(tmp_path) == SystemMemory()


def test_cores_that_differ_share_only_what_all_have(tmp_path: Path) -> None:
    big = PI.replace("0xd0b", "0xd41")
    little = PI.replace("0xd0b", "0xd05").replace(" asimddp", "")
    processor = read_processor(record(tmp_path, cpuinfo=little + big))
    assert processor == Processor("Cortex-A55 + Cortex-A78", ("asimd", "asimdhp"))


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
