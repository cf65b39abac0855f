"""Recorded trees: the files of machines that are not here."""

from __future__ import annotations

import ctypes
from pathlib import Path

INA = "sys/class/hwmon/hwmon1"
ORIN = {
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
    f"{INA}/name": "ina3221",
    f"{INA}/in1_label": "VDD_IN",
    f"{INA}/in1_input": "5000",
    f"{INA}/curr1_input": "1600",
    f"{INA}/in2_label": "VDD_CPU_GPU_CV",
    f"{INA}/in2_input": "5000",
    f"{INA}/curr2_input": "500",
    f"{INA}/in3_label": "VDD_SOC",
    f"{INA}/in3_input": "5000",
    f"{INA}/curr3_input": "300",
    f"{INA}/in7_label": "Sum of shunt voltages",
    f"{INA}/in7_input": "12000",
    "sys/class/hwmon/hwmon0/name": "tmp451",
    "sys/class/hwmon/hwmon3/name": "soctherm_oc",
    "sys/class/hwmon/hwmon3/oc1_event_cnt": "0",
    "sys/class/hwmon/hwmon3/oc1_throt_en": "1",
    "sys/class/hwmon/hwmon3/oc2_event_cnt": "4",
    "sys/class/hwmon/hwmon3/oc2_throt_en": "1",
    "sys/class/hwmon/hwmon3/oc3_event_cnt": "9",
    "sys/class/hwmon/hwmon3/oc3_throt_en": "0",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": "51250",
    "sys/class/thermal/thermal_zone1/type": "gpu-thermal",
    "sys/class/thermal/thermal_zone1/temp": "49000",
    "sys/class/thermal/thermal_zone2/type": "PMIC-Die",
    "sys/class/thermal/thermal_zone2/temp": "100000",
    "sys/class/thermal/thermal_zone3/type": "cv0-thermal",
    "sys/class/thermal/thermal_zone3/temp": "-256000",
}
"""Orin Nano, 8 W; rails by NVIDIA's device tree tegra234-p3767."""
AGX_ORIN = {
    "sys/class/hwmon/hwmon3/name": "ina3221",
    "sys/class/hwmon/hwmon3/in1_label": "VDD_GPU_SOC",
    "sys/class/hwmon/hwmon3/in1_input": "20000",
    "sys/class/hwmon/hwmon3/curr1_input": "200",
    "sys/class/hwmon/hwmon3/in2_label": "VDD_CPU_CV",
    "sys/class/hwmon/hwmon3/in2_input": "20000",
    "sys/class/hwmon/hwmon3/curr2_input": "50",
    "sys/class/hwmon/hwmon3/in3_label": "VIN_SYS_5V0",
    "sys/class/hwmon/hwmon3/in3_input": "5000",
    "sys/class/hwmon/hwmon3/curr3_input": "1000",
    "sys/class/hwmon/hwmon4/name": "ina3221",
    "sys/class/hwmon/hwmon4/in1_label": "NC",
    "sys/class/hwmon/hwmon4/in1_input": "0",
    "sys/class/hwmon/hwmon4/curr1_input": "0",
    "sys/class/hwmon/hwmon4/in2_label": "VDDQ_VDD2_1V8AO",
    "sys/class/hwmon/hwmon4/in2_input": "5000",
    "sys/class/hwmon/hwmon4/curr2_input": "200",
}
"""4 + 1 + 5 W, of which 1 W is memory."""
THOR = {
    "sys/class/hwmon/hwmon2/name": "ina238",
    "sys/class/hwmon/hwmon2/label": "VIN",
    "sys/class/hwmon/hwmon2/power1_input": "23000000",
    "sys/class/hwmon/hwmon3/name": "ina3221",
    "sys/class/hwmon/hwmon3/in1_label": "VDD_GPU",
    "sys/class/hwmon/hwmon3/in1_input": "12000",
    "sys/class/hwmon/hwmon3/curr1_input": "-33",
    "sys/class/hwmon/hwmon3/in2_label": "VDD_CPU_SOC_MSS",
    "sys/class/hwmon/hwmon3/in2_input": "12000",
    "sys/class/hwmon/hwmon3/curr2_input": "500",
    "sys/class/hwmon/hwmon3/in3_label": "VIN_SYS_5V0",
    "sys/class/hwmon/hwmon3/in3_input": "5000",
    "sys/class/hwmon/hwmon3/curr3_input": "1000",
}
"""Idle: the GPU's rail shows the offset of its sensor, below zero."""
PMIC = """\
 3V7_WL_SW_A current(0)=0.09466522A
   3V3_SYS_A current(1)=0.08197812A
   1V8_SYS_A current(2)=0.15029320A
  DDR_VDD2_A current(3)=0.00390372A
  DDR_VDDQ_A current(4)=0.00000000A
   1V1_SYS_A current(5)=0.20299340A
    0V8_SW_A current(6)=0.30546610A
  VDD_CORE_A current(7)=1.11625000A
   3V3_DAC_A current(17)=0.00000000A
   3V3_ADC_A current(18)=0.00018315A
   0V8_AON_A current(16)=0.00274725A
      HDMI_A current(22)=0.01660560A
 3V7_WL_SW_V volt(8)=3.62925200V
   3V3_SYS_V volt(9)=3.31652900V
   1V8_SYS_V volt(10)=1.79877700V
  DDR_VDD2_V volt(11)=1.10146400V
  DDR_VDDQ_V volt(12)=0.60622650V
   1V1_SYS_V volt(13)=1.10402800V
    0V8_SW_V volt(14)=0.79853400V
  VDD_CORE_V volt(15)=0.74944980V
   3V3_DAC_V volt(20)=3.31043600V
   3V3_ADC_V volt(21)=3.31684600V
   0V8_AON_V volt(19)=0.79794790V
      HDMI_V volt(23)=5.10138000V
     EXT5V_V volt(24)=5.08530000V
      BATT_V volt(25)=0.00000000V
"""
PMIC_WATTS = 2.28221
"""The twelve products of its pairs, added up beside this test."""
PI5 = {
    "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    "vcgencmd/pmic_read_adc": PMIC,
    "vcgencmd/get_throttled": "throttled=0x50000\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": "64750",
}
PI4 = {
    "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.5\0",
    "vcgencmd/pmic_read_adc": 'error=1 error_msg="Command not registered"\n',
    "sys/devices/platform/soc/soc:firmware/get_throttled": "0\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": "58426",
}
CAP = "sys/class/powercap"
SERVER = {
    f"{CAP}/intel-rapl:0/name": "package-0",
    f"{CAP}/intel-rapl:0/energy_uj": "262143000000",
    f"{CAP}/intel-rapl:0/max_energy_range_uj": "262143328850",
    f"{CAP}/intel-rapl:0:0/name": "dram",
    f"{CAP}/intel-rapl:0:0/energy_uj": "9000000",
    f"{CAP}/intel-rapl:0:0/max_energy_range_uj": "65712999613",
    f"{CAP}/intel-rapl:1/name": "package-1",
    f"{CAP}/intel-rapl:1/energy_uj": "1000000",
    f"{CAP}/intel-rapl:1/max_energy_range_uj": "262143328850",
    f"{CAP}/intel-rapl:2/name": "psys",
    f"{CAP}/intel-rapl:2/energy_uj": "5000000",
    f"{CAP}/intel-rapl:2/max_energy_range_uj": "262143328850",
    f"{CAP}/intel-rapl-mmio:0/name": "package-0",
    f"{CAP}/intel-rapl-mmio:0/energy_uj": "77",
    "sys/class/thermal/thermal_zone0/type": "x86_pkg_temp",
    "sys/class/thermal/thermal_zone0/temp": "71000",
    "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "3",
    "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count": "7",
    "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": "0",
    "sys/devices/system/cpu/cpu1/thermal_throttle/package_throttle_count": "7",
}
"""Two packages; the first is about to begin at 0 again."""


def record(root: Path, files: dict[str, str]) -> Path:
    """Writes them below `root`."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


class Driver:
    """NVML as the driver exports it, for cards without counters too. Pointers are ctypes' own."""

    def __init__(self, *names: str, counting: tuple[bool, ...] = (), refuses: int = 0) -> None:
        self.names = names
        self.counting = counting or (True,) * len(names)
        self.refuses = refuses
        self.millijoules = [1_000_000] * len(names)
        self.milliwatts = [250_000] * len(names)
        self.celsius = [60] * len(names)
        self.reasons = [0x1] * len(names)

    def nvmlInit_v2(self):  # noqa: N802
        return self.refuses

    def nvmlDeviceGetCount_v2(self, count):  # noqa: N802
        count._obj.value = len(self.names)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index, handle):  # noqa: N802
        handle._obj.value = index.value + 1
        return 0

    def nvmlDeviceGetName(self, handle, name, length):  # noqa: N802
        name.value = self.names[handle.value - 1].encode()[: length.value - 1]
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle, energy):  # noqa: N802
        place = handle.value - 1
        energy._obj.value = self.millijoules[place]
        return 0 if self.counting[place] else 3

    def nvmlDeviceGetPowerUsage(self, handle, power):  # noqa: N802
        power._obj.value = self.milliwatts[handle.value - 1]
        return 0

    def nvmlDeviceGetTemperature(self, handle, sensor: ctypes.c_int, value):  # noqa: N802
        value._obj.value = self.celsius[handle.value - 1]
        return sensor.value

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle, mask):  # noqa: N802
        mask._obj.value = self.reasons[handle.value - 1]
        return 0
