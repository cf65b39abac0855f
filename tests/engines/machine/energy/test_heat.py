"""Temperatures, and whether the machine was slowed."""

from __future__ import annotations

from engines.machine.energy.heat import HeatTally, Look, Thermometer
from engines.machine.energy.nvml import Nvml
from engines.machine.energy.pmic import firmware
from tests.engines.machine.energy import trees


def tallied(*looks):
    tally = HeatTally()
    for look in looks:
        tally.add(look)
    return tally


def test_the_warmest_zone_counts_and_dummies_do_not(tmp_path):
    look = Thermometer(trees.record(tmp_path, trees.ORIN)).look()
    assert look.celsius == {"cpu-thermal": 51.25, "gpu-thermal": 49.0}
    tally = tallied(look, Look({"gpu-thermal": 60.0}), look)
    assert (tally.highest, tally.hottest) == (60.0, "gpu-thermal")


def test_a_zone_that_sleeps_is_left_out(tmp_path):
    trees.record(tmp_path, trees.ORIN)
    thermometer = Thermometer(tmp_path)
    (tmp_path / "sys/class/thermal/thermal_zone0/temp").unlink()
    assert thermometer.look().celsius == {"gpu-thermal": 49.0}


def test_amd_shows_its_own_sensor(tmp_path):
    chip = "sys/class/hwmon/hwmon2"
    tree = {f"{chip}/name": "k10temp", f"{chip}/temp1_input": "61500", f"{chip}/temp3_input": "58"}
    assert Thermometer(trees.record(tmp_path, tree)).look().celsius == {"k10temp": 61.5}


def test_over_currents_of_a_jetson_are_counted_where_they_slow_it(tmp_path):
    thermometer = Thermometer(trees.record(tmp_path, trees.ORIN))
    first = thermometer.look()
    assert tallied(first, thermometer.look()).throttled is False
    (tmp_path / "sys/class/hwmon/hwmon3/oc2_event_cnt").write_text("6")
    (tmp_path / "sys/class/hwmon/hwmon3/oc3_event_cnt").write_text("99")  # does not throttle
    tally = tallied(first, thermometer.look())
    assert tally.throttled is True and tally.reasons == {"average over-current": 2}


def test_throttle_counts_of_x86_are_from_before_to_after(tmp_path):
    thermometer = Thermometer(trees.record(tmp_path, trees.SERVER))
    first = thermometer.look()
    for cpu in ("cpu0", "cpu1"):
        place = tmp_path / f"sys/devices/system/cpu/{cpu}/thermal_throttle"
        (place / "package_throttle_count").write_text("12")
    tally = tallied(first, thermometer.look())
    assert tally.reasons == {"CPU package too hot": 5}
    assert tally.highest == 71.0


def test_pi_bits_by_file_and_by_the_tool(tmp_path):
    flags = tmp_path / "4/sys/devices/platform/soc/soc:firmware/get_throttled"
    pi4 = Thermometer(trees.record(tmp_path / "4", trees.PI4))
    assert pi4.look() == Look({"cpu-thermal": 58.426}, {}, set(), set(), True)
    flags.write_text("50005\n")
    look = pi4.look()
    assert look.states == {"under-voltage", "throttled"} == look.marks
    root = trees.record(tmp_path / "5", trees.PI5)
    look = Thermometer(root, firmware(root)).look()
    assert (look.states, look.marks) == (set(), {"under-voltage", "throttled"})


def test_marks_from_before_are_told_apart_from_new_ones():
    old = Look(marks={"throttled"}, reports=True)
    tally = tallied(old, old)
    assert tally.throttled is False and tally.earlier_marks == ("throttled",)
    tally = tallied(old, Look(marks={"throttled", "under-voltage"}, reports=True), old)
    assert tally.reasons == {"under-voltage": 0} and tally.earlier_marks == ("throttled",)
    cleared = Look(reports=True)  # the kernel's driver clears marks as it looks
    tally = tallied(old, cleared, old)
    assert tally.reasons == {"throttled": 0} and tally.earlier_marks == ()


def test_a_state_between_two_quiet_moments_is_kept():
    quiet = Look(reports=True)
    tally = tallied(quiet, Look(states={"frequency capped"}, reports=True), quiet)
    assert tally.throttled is True and tally.reasons == {"frequency capped": 0}


def test_gpu_reasons_that_are_no_lack_of_cooling_do_not_count(tmp_path):
    driver = trees.Driver("NVIDIA H200")
    thermometer = Thermometer(tmp_path, None, Nvml(driver))
    look = thermometer.look()
    assert look.reports and look.states == set() and look.celsius == {"GPU 0 NVIDIA H200": 60.0}
    driver.reasons = [0x1 | 0x2 | 0x4]
    assert thermometer.look().states == {"GPU power cap"}


def test_nothing_that_tells_is_not_the_same_as_not_throttled(tmp_path):
    tally = tallied(Thermometer(tmp_path).look())
    assert tally.throttled is None and tally.highest is None and tally.earlier_marks == ()
