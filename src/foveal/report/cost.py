"""Curves + machine -> what a run took: time, device hours, and an estimate of its energy."""

import re
from collections.abc import Mapping

from foveal.report.html import duration
from foveal.report.run_folder import Curves

BOARD_WATTS = {
    "B200": 1000,
    "GB200": 1200,
    "H200": 700,
    "H100 PCIe": 350,
    "H100": 700,
    "A100-PCIE": 250,
    "A100": 400,
    "V100": 300,
    "L40S": 350,
    "A10G": 300,
    "L4": 72,
    "T4": 70,
    "RTX 3090": 350,
    "RTX 4090": 450,
    "RTX 5090": 575,
}
"""Most that a board may draw, from its maker's data sheet; the longest name that fits counts."""

CPU_WATTS = 100
"""Assumed of a machine without accelerators: nobody states what a core draws."""


def cost(measures: Curves, machine: Mapping[str, object]) -> dict[str, str]:
    """Tell what the steps took, in words."""
    found = {
        "Time in steps": duration(measures.seconds),
        "Steps": f"{len(measures.steps):,}",
        "Examples": f"{measures.total('examples'):,.0f}",
        "Pictures": f"{measures.total('images'):,.0f}",
        "Tokens": f"{measures.total('tokens'):,.0f}",
    }
    if measures.repeated_steps:
        found["Steps done again after a resume"] = f"{measures.repeated_steps:,}"
    if (most := measures.highest("memory_bytes")) is not None:
        found["Most memory of a process"] = f"{most / 1e9:,.3g} GB"
    devices = machine.get("devices")
    count = devices if isinstance(devices, int) and devices > 0 else 1
    hours = count * measures.seconds / 3600
    device = str(machine.get("device", ""))
    on_cpu = device == "cpu"
    name = "Processor hours" if on_cpu else "GPU hours" if device else "Device hours"
    found[name] = f"{hours:,.3g}"
    found["Energy, estimated"] = energy(hours, count, machine, on_cpu)
    return found


def energy(hours: float, devices: int, machine: Mapping[str, object], on_cpu: bool) -> str:
    """Estimate the energy of some device hours, and say what was assumed.

    Args:
        hours: of all devices together.
        devices: that shared them.
        machine: what is known of it.
        on_cpu: whether it ran without an accelerator.
    """
    if on_cpu:  # several processes share one machine
        used = kilowatt_hours(hours / devices * CPU_WATTS)
        return f"{used}, assuming {CPU_WATTS} W for the machine throughout"
    name = str(machine.get("device_name", ""))
    fitting = [one for one in BOARD_WATTS if re.search(rf"\b{one}\b", name, re.IGNORECASE)]
    if not fitting:
        return f"unknown: no power figure for {name or 'a device of unrecorded kind'}"
    watts = BOARD_WATTS[max(fitting, key=len)]
    used = kilowatt_hours(hours * watts)
    return f"{used}, assuming each board's limit of {watts} W throughout, the rest not counted"


def kilowatt_hours(watt_hours: float) -> str:
    """Write an energy with its unit."""
    return f"{watt_hours / 1000:,.2g} kWh" if watt_hours >= 10 else f"{watt_hours:.2g} Wh"
