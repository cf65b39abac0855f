"""Hardware is recognised on recorded trees, from the files to the profile."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.machine import profiles
from engines.machine.doctor import Machine, describe
from engines.machine.installed import Gpu
from engines.machine.recognise import HardwareFacts, numbers, recognise

A72 = ("0x41", "0xd08", "fp asimd evtstrm crc32 cpuid")
A76 = ("0x41", "0xd0b", "fp asimd evtstrm aes fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp")
A78AE = ("0x41", "0xd42", "fp asimd aes fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp uscat")
V3AE = ("0x41", "0xd83", "fp asimd aes fphp asimdhp asimddp sve sve2 i8mm bf16")
A57 = ("0x41", "0xd07", "fp asimd evtstrm aes pmull sha1 sha2 crc32")
CARMEL = ("0x4e", "0x004", "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp")
ORIN_NANO = "nvidia,p3768-0000+p3767-0005"


def board(
    root: Path,
    model: str,
    compatible: tuple[str, ...],
    cpu: tuple[str, str, str],
    release: str = "",
) -> Path:
    """Writes the files by which a board is known."""
    implementer, part, features = cpu
    files = {
        "proc/device-tree/model": model + "\0",
        "proc/device-tree/compatible": "".join(name + "\0" for name in compatible),
        "proc/cpuinfo": f"Features\t: {features}\nCPU implementer\t: {implementer}\n"
        f"CPU part\t: {part}\n",
        "proc/meminfo": "MemTotal: 8000000 kB\nMemAvailable: 7000000 kB\n",
    }
    if release:
        major, _, rest = release.partition(".")
        files["etc/nv_tegra_release"] = (
            f"# R{major} (release), REVISION: {rest}, GCID: 1, BOARD: generic, EABI: aarch64\n"
        )
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


BOARDS = [
    ("Raspberry Pi 4 Model B Rev 1.4", ("raspberrypi,4-model-b", "brcm,bcm2711"), A72, "", "rpi4"),
    ("Raspberry Pi 400 Rev 1.0", ("raspberrypi,400", "brcm,bcm2711"), A72, "", "rpi4"),
    (
        "Raspberry Pi Compute Module 4 Rev 1.1",
        ("raspberrypi,4-compute-module", "brcm,bcm2711"),
        A72,
        "",
        "rpi4",
    ),
    ("Raspberry Pi 5 Model B Rev 1.0", ("raspberrypi,5-model-b", "brcm,bcm2712"), A76, "", "rpi5"),
    (
        "NVIDIA Jetson Orin Nano Developer Kit",
        (ORIN_NANO, "nvidia,tegra234"),
        A78AE,
        "36.4.0",
        "jetson-orin",
    ),
    (
        "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        (ORIN_NANO + "-super", "nvidia,tegra234"),
        A78AE,
        "36.4.3",
        "jetson-orin",
    ),
    (
        "NVIDIA Jetson Orin Nano Developer Kit",
        (ORIN_NANO, "nvidia,tegra234"),
        A78AE,
        "39.2.0",
        "jetson-orin",
    ),
    (
        "NVIDIA Jetson AGX Orin Developer Kit",
        ("nvidia,p3737-0000+p3701-0005", "nvidia,tegra234"),
        A78AE,
        "39.2.2",
        "jetson-orin-jp7",
    ),
    (
        "NVIDIA Jetson AGX Thor Developer Kit",
        ("nvidia,p3971-0089+p3834-0008", "nvidia,tegra264"),
        V3AE,
        "39.2.2",
        "jetson-thor",
    ),
]


@pytest.mark.parametrize(("model", "compatible", "cpu", "release", "profile"), BOARDS)
def test_boards(
    tmp_path: Path,
    model: str,
    compatible: tuple[str, ...],
    cpu: tuple[str, str, str],
    release: str,
    profile: str,
) -> None:
    machine = describe(board(tmp_path, model, compatible, cpu, release))
    assert machine.hardware == profile
    reason = machine.profile[1]
    assert model in reason
    assert release in reason
    assert not machine.processor.model.startswith("ARM part")


@pytest.mark.parametrize(
    ("model", "compatible", "cpu", "release", "instead"),
    [
        (
            "NVIDIA Jetson Nano Developer Kit",
            ("nvidia,p3449-0000-b00+p3448-0000-b00", "nvidia,jetson-nano", "nvidia,tegra210"),
            A57,
            "32.7.1",
            "use a Jetson Orin Nano",
        ),
        (
            "Jetson-AGX",
            ("nvidia,p2972-0000", "nvidia,tegra194"),
            CARMEL,
            "35.4.1",
            "use a Jetson Orin",
        ),
    ],
)
def test_boards_that_are_refused(
    tmp_path: Path,
    model: str,
    compatible: tuple[str, ...],
    cpu: tuple[str, str, str],
    release: str,
    instead: str,
) -> None:
    machine = describe(board(tmp_path, model, compatible, cpu, release))
    assert machine.profile[0] == ""
    assert instead in machine.profile[1]
    assert machine.release == release


@pytest.mark.parametrize(
    ("chip", "release", "sentence"),
    [
        ("tegra234", "35.4.1", "jetson-orin from 36.4 to below 39.2.2, or jetson-orin-jp7 from 39"),
        ("tegra234", "36.3.0", "this one has 36.3.0"),
        ("tegra264", "38.4.0", "jetson-thor from 39.2.2 on, and this one has 38.4.0"),
        ("tegra234", "", "cannot be read (a container needs /etc/nv_tegra_release)"),
    ],
)
def test_a_jetson_of_another_release_gets_a_generic_profile_and_the_reason(
    tmp_path: Path, chip: str, release: str, sentence: str
) -> None:
    root = board(tmp_path, "NVIDIA Jetson", (f"nvidia,{chip}",), A78AE, release)
    name, reason = describe(root).profile
    assert name in profiles.names() and not any(profiles.profile(name).signs.boards)
    assert sentence in reason
    assert "until then, the CPU has int8 dot products (asimddp)" in reason


H200 = Gpu("NVIDIA H200", "143771 MiB", "570.86", "9.0")


@pytest.mark.parametrize(
    ("gpus", "features", "memory_mb", "profile"),
    [
        ((H200,), ("avx2", "avx512_vnni"), 65536, "cuda"),
        ((Gpu("NVIDIA GeForce GTX 1080", capability="6.1"), H200), (), 0, "cuda"),
        ((Gpu("NVIDIA A100-SXM4-40GB"),), (), 0, "cuda"),
        ((Gpu("NVIDIA GeForce GTX 1080", capability="6.1"),), ("avx2",), 65536, "x86-cpu"),
        ((Gpu("Quadro K620"),), (), 0, ""),
        ((Gpu("Orin (nvgpu)", capability="8.7"),), (), 0, ""),
        ((), ("avx2", "avx512_vnni"), 65536, "x86-cpu"),
        ((), ("avx2",), 0, "x86-cpu"),
        ((), ("avx2",), 2048, ""),
        ((), ("asimd", "asimddp"), 65536, ""),
        ((), (), 0, ""),
    ],
)
def test_machines_without_a_board(
    gpus: tuple[Gpu, ...], features: tuple[str, ...], memory_mb: int, profile: str
) -> None:
    found = recognise(HardwareFacts(gpus=gpus, features=features, memory_mb=memory_mb))
    assert (found.profile, found.refused) == (profile, False)
    assert bool(found.reason) is bool(profile)


def test_the_board_decides_before_gpu_and_cpu() -> None:
    seen = HardwareFacts(("Jetson", "nvidia,tegra234"), "36.4", (H200,), features=("avx2",))
    assert recognise(seen).profile == "jetson-orin"


def test_the_reason_names_the_gpu() -> None:
    name, reason = Machine(gpus=(H200,)).profile
    assert (name, reason) == ("cuda", f"there is a GPU ({H200})")


@pytest.mark.parametrize(
    ("version", "found"),
    [("36.4.0", (36, 4)), ("10.16.1.7", (10, 16, 1, 7)), ("of unknown version", ()), ("", ())],
)
def test_numbers_of_a_version(version: str, found: tuple[int, ...]) -> None:
    assert numbers(version) == found
