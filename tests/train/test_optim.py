"""Rates follow the schedule that the recipe names."""

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from foveal.config import TrainSettings
from foveal.train.optim import rate_scale, set_rate


@pytest.mark.parametrize(
    ("schedule", "theirs"),
    [("linear", get_linear_schedule_with_warmup), ("cosine", get_cosine_schedule_with_warmup)],
)
def test_the_rate_is_that_of_transformers_at_every_step(schedule, theirs):
    settings = TrainSettings(schedule=schedule, warmup_steps=5)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = theirs(optimizer, 5, 30)
    for step in range(30):
        expected = optimizer.param_groups[0]["lr"]
        assert 0.5 * rate_scale(step, 30, settings) == pytest.approx(expected)
        optimizer.step()
        scheduler.step()


def test_each_group_keeps_its_own_peak():
    one, two = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD(
        [{"params": [one], "lr": 1.0, "peak": 1.0}, {"params": [two], "lr": 0.1, "peak": 0.1}]
    )
    assert set_rate(optimizer, 0.5) == 0.5
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.05]
