"""Kernels that add in one order, for those who ask for the same bits on a GPU."""

import os

import pytest
import torch
from daily import daily
from rich.console import Console
from small_runs import losses, recipe, run, same_bits, weights

from foveal.errors import RunError
from foveal.run import TrainingRun

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@pytest.fixture
def place(place, monkeypatch):
    monkeypatch.delenv(WORKSPACE, raising=False)
    return place


def hooked(chosen, hook):
    training = TrainingRun(chosen, Console(quiet=True))
    training.loaded.model.model.layers[0].register_forward_pre_hook(lambda *_: hook())
    return training


def in_order():
    return torch.are_deterministic_algorithms_enabled(), os.environ.get(WORKSPACE)


@pytest.mark.parametrize("strategy", daily("lora", beside=["full"]))
def test_a_run_that_asks_for_one_order_has_it_in_every_pass_and_ends_in_the_same_bits(
    place, strategy
):
    seen = set()
    chosen = {"strategy": strategy, "train__max_steps": 3}
    run(recipe(place, "plain", **chosen))
    assert in_order() == (False, None)
    hooked(
        recipe(place, "ordered", train__deterministic=True, **chosen), lambda: seen.add(in_order())
    ).go()
    assert seen == {(True, ":4096:8")}
    assert not torch.are_deterministic_algorithms_enabled()
    assert losses(place / "plain") == losses(place / "ordered")
    assert same_bits(weights(place / "plain"), weights(place / "ordered"))


def test_a_run_may_go_on_with_or_without_it(place):
    run(recipe(place, train__max_steps=2))
    assert run(recipe(place, train__max_steps=2, train__deterministic=True)).steps == 2


def test_an_operation_that_adds_in_any_order_is_named_in_one_line(place):
    def put():
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))

    run(recipe(place, "plain", train__max_steps=1))
    hooked(recipe(place, "plain", train__max_steps=1), put).go()  # nobody asked
    training = hooked(recipe(place, "ordered", train__deterministic=True), put)
    with pytest.raises(RunError) as refused:
        training.go()
    assert str(refused.value) == (
        "train.deterministic=true: put_ has no kernel that adds in one order here; try "
        "attention=blocks, or go on with train.deterministic=false"
    )
    assert not torch.are_deterministic_algorithms_enabled()
