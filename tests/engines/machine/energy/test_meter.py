"""A window of measuring: exact on a made-up clock, and with its thread on recorded trees."""

from __future__ import annotations

import json
import threading
import time

import msgspec
import pytest

from edgespec.energy_report import Energy, combined
from edgespec.telemetry import AnswerStats
from engines.machine.energy.heat import Thermometer
from engines.machine.energy.meter import EnergyMeter
from engines.machine.energy.nvml import Nvml
from engines.machine.energy.sensor import Sensor
from engines.machine.energy.sensors import Sensors, find
from tests.engines.machine.energy import trees

NEVER = 3600.0


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def meters():
    return [thread for thread in threading.enumerate() if thread.name == "meter"]


@pytest.fixture
def still(tmp_path):
    """Sensors that are read when a test says so: 6 W on rail `in`, a counter, nothing of heat."""
    watts, count = {"in": 6.0, "part": 2.0}, {"cpu": 900.0}
    sensors = (
        Sensor("INA", "module", "power", ("in",), lambda: watts, NEVER, 100.0, ("part",)),
        Sensor(
            "RAPL",
            "CPU",
            "counter",
            ("cpu",),
            lambda: count,
            NEVER,
            500.0,
            wrap_joules={"cpu": 1e3},
        ),
    )
    return Sensors(sensors, (), Thermometer(tmp_path)), watts, count


def test_figures_on_a_made_up_clock(still):
    sensors, watts, count = still
    clock = Clock()
    with EnergyMeter(sensors, clock) as meter:
        clock.now += 2.0
        watts["in"], watts["part"] = 10.0, 4.0
        meter.sample()
        clock.now += 3.0
        count["cpu"] = 50.0  # it began at 0 again
    energy = meter.energy(tokens=40)
    assert energy.rails == {"in": 2 * 8.0 + 3 * 10.0, "cpu": 150.0}
    assert energy.inside == {"part": 2 * 3.0 + 3 * 4.0}
    assert (energy.joules, energy.seconds, energy.samples) == (196.0, 5.0, 6)
    assert (energy.watts, energy.joules_per_token) == (196.0 / 5, 4.9)
    assert energy.complete and energy.why == [] and energy.reading_seconds == 0.0
    assert energy.lines() == [
        "energy: 196 J, 4.9 J a token, 39.2 W on average; module and CPU only (INA, RAPL), 6 "
        "samples, idle power included",
        "heat: not measured; nothing here tells whether it was throttled",
    ]


def test_a_rail_that_disappears_makes_the_figure_a_lower_bound(still):
    sensors, watts, _ = still
    clock = Clock()
    with EnergyMeter(sensors, clock) as meter:
        clock.now += 1.0
        gone = watts.pop("in")
        meter.sample()
        clock.now += 1.0
        watts["in"] = gone
        meter.sample()
        clock.now += 2.0
    energy = meter.energy(tokens=1)
    assert energy.rails["in"] == 12.0 and not energy.complete
    assert energy.unmeasured_seconds == 2.0
    said = energy.lines()[0]
    assert said.startswith("energy: at least 12 J, ")
    assert "2.0 of 4.0 s were not measured" in said
    assert "in (INA) gave no reading for 2.0 s" in said


def test_where_nothing_is_readable_that_is_said(tmp_path):
    with EnergyMeter(find(tmp_path)) as meter:
        pass
    energy = meter.energy(tokens=5)
    assert energy.joules is None and energy.joules_per_token is None and energy.watts is None
    assert energy.lines()[0].startswith("energy: not measured: this machine shows none")
    figures = energy.figures()
    assert figures["measured"] is False and figures["joules"] is None


def test_sensors_that_never_answer_again_are_not_measured(still):
    sensors, watts, count = still
    clock = Clock()
    with EnergyMeter(sensors, clock) as meter:
        clock.now += 4.0
        watts.clear()
        count.clear()
    energy = meter.energy()
    assert energy.joules is None
    assert energy.why[0] == "in (INA) gave no reading for 4.0 s"


def test_the_thread_samples_a_recorded_orin(tmp_path):
    sensors = find(trees.record(tmp_path, trees.ORIN))
    (sensor,) = sensors.energy
    with EnergyMeter(sensors) as meter:
        deadline = time.monotonic() + 10.0
        while meter.energy().samples < 4 and time.monotonic() < deadline:
            time.sleep(sensor.interval_s / 4)
        (tmp_path / "sys/class/thermal/thermal_zone1/temp").write_text("70500")
    energy = meter.energy(tokens=16)
    assert energy.samples >= 4 and energy.complete
    assert energy.watts == pytest.approx(8.0, rel=1e-2)
    assert energy.inside["VDD_SOC"] == pytest.approx(energy.joules * 1.5 / 8.0)
    assert (energy.highest_celsius, energy.hottest) == (70.5, "gpu-thermal")
    assert energy.throttled is False
    assert "whole module (INA3221)" in energy.lines()[0]
    assert "without what its carrier feeds" in energy.lines()[0]
    assert energy.lines()[1] == "heat: at most 70.5 °C (gpu-thermal); not throttled"


def test_a_part_that_was_not_read_is_left_out_and_spoils_nothing(tmp_path):
    with EnergyMeter(find(trees.record(tmp_path, trees.THOR))) as meter:
        time.sleep(0.01)
    energy = meter.energy()
    assert energy.complete and energy.why == [] and set(energy.rails) == {"VIN"}
    assert set(energy.inside) == {"VDD_CPU_SOC_MSS", "VIN_SYS_5V0"}, "the GPU's was below zero"


def test_a_server_with_a_gpu(tmp_path):
    driver = trees.Driver("NVIDIA A100")
    sensors = find(trees.record(tmp_path, trees.SERVER), Nvml(driver))
    clock = Clock()
    with EnergyMeter(sensors, clock) as meter:
        clock.now += 10.0
        (tmp_path / trees.CAP / "intel-rapl:0/energy_uj").write_text("999671150")  # wrapped
        (tmp_path / trees.CAP / "intel-rapl:1/energy_uj").write_text("501000000")
        driver.millijoules = [3_500_000]
        driver.celsius = [83]
        driver.reasons = [0x20]
    energy = meter.energy(tokens=1000)
    assert energy.rails == pytest.approx(
        {"package-0": 1000.0, "package-1": 500.0, "GPU 0 NVIDIA A100": 2500.0}
    )
    assert energy.joules_per_token == pytest.approx(4.0)
    assert energy.covers == "CPU packages and GPU only (RAPL, NVML)"
    assert energy.throttling == {"GPU too warm": 0}
    assert energy.lines()[1] == "heat: at most 83.0 °C (GPU 0 NVIDIA A100); throttled: GPU too warm"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_the_thread_ends_with_the_block_however_that_ends(tmp_path, error):
    sensors = find(trees.record(tmp_path, trees.ORIN))
    meter = EnergyMeter(sensors)

    def measured():
        with meter:
            assert len(meters()) == 1
            raise error

    with pytest.raises(error):
        measured()
    assert meters() == []
    assert meter.energy().samples >= 2


def test_a_slow_sensor_does_not_hold_up_whoever_asks(tmp_path):
    begun, release = threading.Event(), threading.Event()
    calls = []

    def slow():
        calls.append(0)
        if len(calls) == 4:
            begun.set()
            release.wait(10.0)
        return {"in": 1.0}

    sensor = Sensor("slow", "all", "power", ("in",), slow, 0.001, 10.0)
    with EnergyMeter(Sensors((sensor,), (), Thermometer(tmp_path))) as meter:
        assert begun.wait(10.0)
        assert meter.energy().samples == 3
        release.set()
    assert meter.energy().samples >= 5


def test_an_answers_figures_carry_it_and_come_back():
    energy = Energy(joules=12.0, seconds=3.0, tokens=24, covers="whole module (INA3221)", samples=9)
    stats = AnswerStats(tokens=24, seconds=3.0, energy=energy)
    figures = json.loads(stats.as_json())
    assert figures["energy"]["joules_per_token"] == 0.5 and figures["energy"]["complete"]
    assert msgspec.json.decode(stats.as_json(), type=AnswerStats, strict=False).energy == energy
    assert "energy: 12 J, 0.5 J a token, 4 W on average" in stats.as_text()
    plain = AnswerStats(tokens=24)
    assert "energy" not in json.loads(plain.as_json()) and "energy" not in plain.as_text()


def test_windows_add_up_and_a_missing_one_is_missed():
    one = Energy(
        joules=1.0, seconds=1.0, tokens=2, covers="x", rails={"a": 1.0}, highest_celsius=50.0,
        hottest="cpu", throttled=False,
    )  # fmt: skip
    two = Energy(
        joules=3.0, seconds=1.0, tokens=2, covers="x", rails={"a": 3.0}, highest_celsius=70.0,
        hottest="gpu", throttled=True, throttling={"hot": 2}, unmeasured_seconds=0.5,
    )  # fmt: skip
    both = combined([one, two])
    assert (both.joules, both.joules_per_token, both.covers) == (4.0, 1.0, "x")
    assert (both.highest_celsius, both.hottest, both.throttled) == (70.0, "gpu", True)
    assert both.rails == {"a": 4.0} and both.throttling == {"hot": 2} and not both.complete
    dead = Energy(why=["no sensor"])
    lacking = combined([one, dead])
    assert lacking.joules is None and lacking.why == ["no sensor"] and lacking.throttled is None
    assert combined([]).joules is None
