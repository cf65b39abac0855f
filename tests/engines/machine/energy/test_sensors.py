"""Which sensors a machine has, and what they say, on recorded trees."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess

import pytest

from engines.machine.energy.nvml import Nvml, find_nvml
from engines.machine.energy.pmic import firmware, rails
from engines.machine.energy.sensors import NONE, find
from tests.engines.machine.energy import trees


def only(root, **options):
    (sensor,) = find(root, **options).energy
    return sensor


def test_orin_nano_is_measured_at_its_input(tmp_path):
    sensors = find(trees.record(tmp_path, trees.ORIN))
    assert sensors.describe() == "whole module (INA3221)"
    (sensor,) = sensors.energy
    assert sensor.rails == ("VDD_IN",) and sensor.inside == ("VDD_CPU_GPU_CV", "VDD_SOC")
    assert sensor.read() == pytest.approx({"VDD_IN": 8.0, "VDD_CPU_GPU_CV": 2.5, "VDD_SOC": 1.5})


def test_the_older_path_of_the_same_chip_does_not_count_it_twice(tmp_path):
    trees.record(tmp_path, trees.ORIN)
    bus = tmp_path / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon"
    bus.mkdir(parents=True)
    (bus / "hwmon1").symlink_to(tmp_path / trees.INA)
    assert only(tmp_path).read()["VDD_IN"] == 8.0
    moved = tmp_path / "elsewhere"
    (tmp_path / trees.INA).rename(moved)
    (bus / "hwmon1").unlink()
    (bus / "hwmon1").symlink_to(moved)
    assert only(tmp_path).read()["VDD_IN"] == 8.0


def test_agx_orin_adds_up_its_inputs_and_memory_is_inside_them(tmp_path):
    sensor = only(trees.record(tmp_path, trees.AGX_ORIN))
    assert sensor.rails == ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
    assert sensor.inside == ("VDDQ_VDD2_1V8AO",)
    watts = sensor.read()
    assert sum(watts[rail] for rail in sensor.rails) == pytest.approx(10.0)


def test_thor_is_measured_at_the_input_of_its_board(tmp_path):
    sensor = only(trees.record(tmp_path, trees.THOR))
    assert (sensor.name, sensor.covers, sensor.rails) == (
        "INA238 and INA3221", "whole board", ("VIN",),
    )  # fmt: skip
    assert sensor.read()["VIN"] == pytest.approx(23.0)
    (tmp_path / "sys/class/hwmon/hwmon2/power1_input").unlink()
    sensor = only(tmp_path)
    assert sensor.rails == ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0")


def test_rails_that_nobody_knows_are_not_added_up(tmp_path):
    tree = {f"{trees.INA}/name": "ina3221", f"{trees.INA}/in1_label": "MYSTERY"}
    tree |= {f"{trees.INA}/in1_input": "5000", f"{trees.INA}/curr1_input": "1"}
    sensors = find(trees.record(tmp_path, tree))
    assert not sensors.energy and "MYSTERY" in sensors.describe()


def test_rails_that_nobody_knows_do_not_hide_other_sensors(tmp_path):
    """As of a battery that is plugged on."""
    battery = {f"{trees.INA}/name": "ina3221", f"{trees.INA}/in1_label": "BATTERY"}
    battery |= {f"{trees.INA}/in1_input": "5000", f"{trees.INA}/curr1_input": "1"}
    sensors = find(trees.record(tmp_path, trees.SERVER | battery))
    assert [sensor.name for sensor in sensors.energy] == ["RAPL"]
    assert "BATTERY" in sensors.describe()


def test_pi_5_by_its_firmware(tmp_path):
    sensors = find(trees.record(tmp_path, trees.PI5))
    (sensor,) = sensors.energy
    assert sensors.covers == "rails of the power management chip only (PMIC)"
    assert "USB" in sensor.leaves_out
    watts = sensor.read()
    assert len(watts) == 12 and "EXT5V" not in watts and "BATT" not in watts
    assert watts["VDD_CORE"] == pytest.approx(1.11625 * 0.7494498)
    assert sum(watts.values()) == pytest.approx(trees.PMIC_WATTS, abs=1e-5)


def test_a_pi_without_a_sensor_or_without_the_tool_says_so(tmp_path):
    pi4 = find(trees.record(tmp_path / "4", trees.PI4))
    assert not pi4.energy
    assert pi4.describe() == "Raspberry Pi 4 Model B Rev 1.5 has no power sensor"
    bare = {name: text for name, text in trees.PI5.items() if "vcgencmd" not in name}
    assert "vcgencmd, which is not installed" in find(trees.record(tmp_path / "5", bare)).describe()
    silent = trees.PI5 | {"vcgencmd/pmic_read_adc": "error=1"}
    assert "tells no currents" in find(trees.record(tmp_path / "s", silent)).describe()
    folder = trees.record(tmp_path / "f", trees.PI5)
    (folder / "vcgencmd/pmic_read_adc").unlink()
    assert "group video" in find(folder).describe()


def test_pairs_without_a_partner_or_a_number_do_not_count():
    text = "A_A current(0)=1.5A\nA_V volt(8)=2.0V\nB_A current(1)=1.0A\nC_V volt(9)=5.0V\n"
    assert rails(text + "D_A current(2)=1.2.3A\nD_V volt(3)=1.0V\n") == {"A": 3.0}
    assert rails("") == {}


def test_the_real_tool_is_a_process_whose_words_are_kept(tmp_path, monkeypatch):
    tool = tmp_path / "vcgencmd"
    tool.write_text('#!/bin/sh\n[ "$1" = get_throttled ] && echo throttled=0x0 && exit 0\n'
                    "echo no such device >&2\nexit 2\n")  # fmt: skip
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    from engines.machine.energy.files import ROOT

    ask = firmware(ROOT)
    assert ask("get_throttled") == "throttled=0x0\n"
    with pytest.raises(OSError, match="no such device"):
        ask("pmic_read_adc")


def test_a_server_counts_its_packages_and_nothing_twice(tmp_path):
    sensors = find(trees.record(tmp_path, trees.SERVER))
    assert sensors.describe() == "CPU packages only (RAPL)"
    (sensor,) = sensors.energy
    assert sensor.kind == "counter"
    assert sensor.read() == pytest.approx({"package-0": 262143.0, "package-1": 1.0})
    assert sensor.wrap_joules["package-0"] == pytest.approx(262143.32885)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_counter_for_root_alone(tmp_path):
    trees.record(tmp_path, trees.SERVER)
    (tmp_path / trees.CAP / "intel-rapl:1/energy_uj").chmod(0)
    check_forbidden(find(tmp_path))


def test_a_counter_that_refuses(tmp_path, monkeypatch):
    trees.record(tmp_path, trees.SERVER)
    from pathlib import Path

    whole = Path.read_text

    def read_text(path, *about, **more):
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path, *about, **more)

    monkeypatch.setattr(Path, "read_text", read_text)
    check_forbidden(find(tmp_path))


def check_forbidden(sensors):
    assert not sensors.energy
    assert "readable for root only" in sensors.describe()
    assert "energy_uj" in sensors.describe()


def test_gpus_that_count_and_gpus_that_only_tell_watts():
    driver = trees.Driver("NVIDIA H200", "NVIDIA A100", "Tesla P40", counting=(True, True, False))
    counter, power = find_nvml(Nvml(driver))
    assert (counter.kind, counter.covers) == ("counter", "GPUs")
    assert counter.read() == {"GPU 0 NVIDIA H200": 1000.0, "GPU 1 NVIDIA A100": 1000.0}
    assert power.kind == "power" and power.read() == {"GPU 2 Tesla P40": 250.0}


def test_a_driver_that_refuses_or_lacks_a_function():
    with pytest.raises(OSError, match="NVML error 9"):
        Nvml(trees.Driver(refuses=9))
    assert find_nvml(None) == [] and find_nvml(Nvml(trees.Driver())) == []

    class Old(trees.Driver):
        nvmlDeviceGetTotalEnergyConsumption = None  # noqa: N815
        nvmlDeviceGetPowerUsage = None  # noqa: N815

    assert find_nvml(Nvml(Old("GeForce"))) == ["GPU 0 GeForce tells no power (NVML)"]


NVML_C = """
typedef unsigned long long count;
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **h) { *h = (void *)0x123456789abcUL; return i; }
int nvmlDeviceGetName(void *h, char *s, unsigned n) { s[0] = 'X'; s[1] = 0; return n != 96; }
int nvmlDeviceGetTotalEnergyConsumption(void *h, count *e) {
    *e = 5000000000000ULL; return h != (void *)0x123456789abcUL; }
int nvmlDeviceGetTemperature(void *h, int sensor, unsigned *t) { *t = 55; return sensor; }
int nvmlDeviceGetCurrentClocksThrottleReasons(void *h, count *r) { *r = 0x44; return 0; }
"""


@pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler")
def test_pointers_and_widths_are_those_of_the_c_interface(tmp_path):
    (tmp_path / "nvml.c").write_text(NVML_C)
    library = tmp_path / "libnvml.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "nvml.c"], check=True)
    nvml = Nvml(ctypes.CDLL(str(library)))
    (gpu,) = nvml.gpus
    assert gpu.name == "GPU 0 X"
    assert nvml.energy(gpu) == 5e9 and nvml.celsius(gpu) == 55.0 and nvml.power(gpu) is None
    assert nvml.slowed(gpu) == {"GPU power cap", "GPU too hot (hardware)"}


def test_cpu_and_gpu_are_added_a_jetsons_gpu_is_not(tmp_path):
    nvml = Nvml(trees.Driver("NVIDIA A100"))
    server = find(trees.record(tmp_path / "server", trees.SERVER), nvml)
    assert server.covers == "CPU packages and GPU only (RAPL, NVML)"
    orin = find(trees.record(tmp_path / "orin", trees.ORIN), nvml)
    assert orin.covers == "whole module (INA3221)"


def test_a_machine_without_sensors(tmp_path):
    sensors = find(tmp_path)
    assert sensors.energy == () and sensors.describe() == NONE
