"""What is said of a machine, and of the size of a process."""

import torch

from foveal import machine
from foveal.machine import describe_machine, machine_name
from foveal.plan.this_machine import resident_bytes


def test_a_run_notes_the_processor_by_the_name_that_a_plan_gives_it(monkeypatch, tmp_path):
    told = tmp_path / "cpuinfo"
    told.write_text("processor\t: 0\nmodel name\t: Abacus 9000\n")
    monkeypatch.setattr(machine, "Path", lambda _: told)
    assert describe_machine()["device_name"] == machine_name() == "Abacus 9000"


def test_the_most_a_process_held_stays_after_it_is_given_back():
    before = resident_bytes("VmHWM")
    held = torch.ones(2**24 + before // 4)
    size = held.nbytes
    assert resident_bytes("VmRSS") >= size
    del held
    assert resident_bytes("VmHWM") >= size
