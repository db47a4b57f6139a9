"""What a run took is told in units, and what was assumed is told with it."""

import numpy as np
import pytest

from foveal.report.cost import cost
from foveal.report.run_folder import Curves

HOUR = Curves(np.arange(3.0), {"examples": np.full(3, 8.0)}, seconds=3600.0, repeated_steps=0)


def test_eight_boards_for_an_hour_are_eight_gpu_hours_at_their_limit():
    machine = {"device": "cuda", "device_name": "NVIDIA A100-SXM4-80GB", "devices": 8}
    found = cost(HOUR, machine)
    assert found["GPU hours"] == "8"
    assert found.keys() >= {"Time in steps", "Steps", "Examples", "Pictures", "Tokens"}
    assert found["Energy, estimated"].startswith("3.2 kWh, assuming each board's limit of 400 W")


@pytest.mark.parametrize(
    ("name", "used"),
    [
        ("NVIDIA H100 PCIe", "0.35 kWh"),
        ("NVIDIA H100 80GB HBM3", "0.7 kWh"),
        ("Tesla V100-SXM2-32GB", "0.3 kWh"),
        ("NVIDIA L40S", "0.35 kWh"),
        ("NVIDIA L4", "0.072 kWh"),
    ],
)
def test_the_longest_name_that_fits_a_board_decides(name, used):
    found = cost(HOUR, {"device": "cuda", "device_name": name, "devices": 1})
    assert found["Energy, estimated"].startswith(f"{used}, ")


def test_processes_on_one_processor_share_its_power():
    found = cost(HOUR, {"device": "cpu", "devices": 2})
    assert found["Processor hours"] == "2"
    assert found["Energy, estimated"] == "0.1 kWh, assuming 100 W for the machine throughout"


def test_what_is_not_known_is_not_guessed():
    assert (
        "no power figure for Board of Tomorrow"
        in (cost(HOUR, {"device": "cuda", "device_name": "Board of Tomorrow"})["Energy, estimated"])
    )
    unrecorded = cost(HOUR, {})
    assert unrecorded["Device hours"] == "1"
    assert unrecorded["Energy, estimated"].startswith("unknown")
