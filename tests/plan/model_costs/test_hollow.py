"""What a pass holds is counted by who holds it, for as long as it lives."""

import torch

from foveal.plan.model_costs.hollow import Hollow


def test_what_stands_where_a_tensor_that_was_left_out_had_stood_counts():
    mode = Hollow()
    for _ in range(50):  # a place in memory is given to another soon
        given = mode.hollowed(torch.zeros(8))
        with mode:
            copied = given * 2
            assert mode.held_bytes == 32
            del given, copied
            made = torch.ones(100)
            assert mode.held_bytes == 400
            del made
        assert mode.held_bytes == 0
    assert mode._storages == {}


def test_a_copy_counts_where_a_weight_that_is_gone_had_stood():
    mode = Hollow()
    for _ in range(50):
        weight = mode.hollowed(torch.zeros(8))
        mode.leave_out(weight, with_copies=True)
        with mode:
            copied = weight.to(torch.bfloat16)
            assert mode.held_bytes == 0  # a weight's copies are counted elsewhere
            del weight, copied
            made = torch.ones(100)
            copied = made.to(torch.bfloat16)
            assert mode.held_bytes == 600
            del made, copied
        assert mode.held_bytes == 0
    assert mode._storages == {}
