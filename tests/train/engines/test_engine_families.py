"""Models of other families give on several processes what they give on one."""

import pytest
import torch
from launched import Job, Place, make_place

pytestmark = pytest.mark.slow

FAMILIES = ("qwen3_vl", "gemma3", "smolvlm", "qwen3_5")
STRATEGIES = {
    "full": {"strategy": "full"},
    "frozen_vision": {"strategy": "frozen_vision"},
    "lora": {"strategy": "lora", "lora__rank": 4},
    "qlora": {"strategy": "qlora", "lora__rank": 4},
}
RUNS = (
    *((engine, strategy) for engine in ("ddp", "fsdp2", "zero2") for strategy in ("full", "qlora")),
    ("fsdp2", "frozen_vision"),
    ("zero2", "lora"),
)
"""Each engine with all weights and with none of them but adapters; the others in between once."""

FEW = {
    "train__examples_per_step": 3,  # processes have rows that differ
    "train__max_steps": 4,
    "train__save_every_steps": 2,
    "train__tokens_per_pass": 1000,
    "train__learning_rate": 1e-4,
    "data__num_crops": 16,
}


@pytest.fixture(scope="module", params=FAMILIES)
def place(request, tmp_path_factory) -> Place:
    """Runs on one process and on two, and some of two that were stopped and went on."""
    made = make_place(tmp_path_factory.mktemp(request.param), request.param)
    for name, settings in STRATEGIES.items():
        made.run_alone(made.recipe(f"one-{name}", **settings, **FEW))
    jobs = []
    for engine, name in RUNS:
        settings = {"engine": engine, **STRATEGIES[name], **FEW}
        jobs.append(Job(str(made.recipe(f"{engine}-{name}", **settings))))
    halves = str(made.recipe("halves", engine="fsdp2", **STRATEGIES["qlora"], **FEW))
    made.run_together([*jobs, Job(halves, stop_at=2), Job(halves)])
    return made


@pytest.mark.parametrize(("engine", "strategy"), RUNS)
def test_two_processes_give_the_losses_and_weights_of_one(place, engine, strategy):
    one, two = place.metrics(f"one-{strategy}"), place.metrics(f"{engine}-{strategy}")
    assert len(one) == 4
    assert one[-1]["loss"] != one[0]["loss"]
    assert [line["loss"] for line in two] == pytest.approx([x["loss"] for x in one], rel=1e-6)
    for key in ("examples", "tokens"):
        assert [line[key] for line in two] == [line[key] for line in one]
    ours, theirs = place.weights(f"one-{strategy}"), place.weights(f"{engine}-{strategy}")
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        # Adam's first steps are as long where a gradient is rounding alone.
        difference = (weight - theirs[name]).norm() / (weight.norm() + 1e-9)
        assert float(difference) < 1e-4 or name.endswith("k_proj.bias"), name


def test_a_run_that_was_stopped_equals_one_that_was_not_to_the_bit(place):
    whole, halves = place.weights("fsdp2-qlora"), place.weights("halves")
    assert all(torch.equal(weight, halves[name]) for name, weight in whole.items())
    steps = [(line["step"], line["loss"]) for line in place.metrics("halves")]
    assert steps == [(line["step"], line["loss"]) for line in place.metrics("fsdp2-qlora")]
