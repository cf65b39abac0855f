"""`edgespec bench arm` without emulator and network; `.ci/run` runs the command itself."""

from __future__ import annotations

import sys
import zipfile

import pytest

from bench.arm.check import BoardResult, confirm
from bench.arm.emulator import BOARDS, Emulator, run
from bench.arm.wheels import Wheel, measured
from edgespec.errors import EdgespecError
from edgespec.telemetry import AnswerStats
from engines.machine.doctor import read_board, read_processor


@pytest.mark.parametrize(
    ("name", "core", "dot_products"), [("rpi4", "Cortex-A72", False), ("rpi5", "Cortex-A76", True)]
)
def test_the_doctor_recognises_an_emulated_board(tmp_path, name, core, dot_products):
    machine = Emulator(tmp_path)
    machine.become(BOARDS["rpi5"])
    machine.become(BOARDS[name])
    assert read_board(machine.root) == BOARDS[name].model
    processor = read_processor(machine.root)
    assert processor.model == core
    assert ("asimddp" in processor.features) == dot_products


def test_emulated_python_sees_its_own_packages_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("PYTHONSTARTUP", "/elsewhere/start.py")
    found = Emulator.environment(tmp_path)
    names = {name: value for name, value in found.items() if name.startswith("PYTHON")}
    assert names == {
        "PYTHONPATH": str(tmp_path), "PYTHONNOUSERSITE": "1", "PYTHONSAFEPATH": "1"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("identical", "drafted", "accepted", "hardware", "message_part"),
    [
        (True, 8, 3, "rpi4", ""),
        (True, 8, 3, None, "rpi4: the doctor takes the board for no known hardware"),
        (True, 8, 3, "rpi5", "rpi4: the doctor takes the board for rpi5"),
        (False, 8, 3, "rpi4", "rpi4: the answer differs"),
        (True, 8, 0, "rpi4", "rpi4: the device drafted nothing"),
        (True, 0, 0, "rpi4", "rpi4: the device drafted nothing"),
    ],
)
def test_what_counts_as_done(identical, drafted, accepted, hardware, message_part):
    answer = AnswerStats(drafted=drafted, accepted=accepted)
    results = [BoardResult("rpi4", {"hardware": hardware}, answer, identical, 0.0)]
    if not message_part:
        return confirm(results)
    with pytest.raises(EdgespecError, match=message_part):
        confirm(results)


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("W: slow\\nE: no route\\nE: no lists", "nothing came: E: no route"),
        ("WARNING: retrying\\nERROR: no such wheel", "nothing came: ERROR: no such wheel"),
        ("Traceback\\nOSError: disk full\\n", "nothing came: OSError: disk full"),
        ("", "nothing came: exit code 3"),
    ],
)
def test_a_failed_program_is_one_sentence(output, sentence):
    code = f"import sys; sys.stderr.write('{output}'); sys.exit(3)"
    with pytest.raises(EdgespecError) as caught:
        run([sys.executable, "-c", code], "nothing came")
    assert str(caught.value) == sentence


def test_a_wheel_is_measured(tmp_path):
    path = tmp_path / "some_thing-1.2-cp311-cp311-manylinux_2_28_aarch64.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("some_thing/a.py", "x" * 5000)
        archive.writestr("some_thing/b.py", "y" * 500)
    assert measured(path) == Wheel("some_thing", "1.2", path.stat().st_size, 5500)
    assert path.stat().st_size < 2000
