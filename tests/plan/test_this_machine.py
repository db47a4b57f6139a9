"""What the size of a process promises."""

import torch

from foveal.plan.this_machine import resident_bytes


def test_the_most_a_process_held_stays_after_it_is_given_back():
    before = resident_bytes("VmHWM")
    held = torch.ones(2**24 + before // 4)
    size = held.nbytes
    assert resident_bytes("VmRSS") >= size
    del held
    assert resident_bytes("VmHWM") >= size
