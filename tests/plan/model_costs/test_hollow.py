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
