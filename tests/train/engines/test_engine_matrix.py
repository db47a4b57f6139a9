"""Every strategy, number format and optimizer on every engine, and handed from one to another."""

from pathlib import Path

import pytest
import torch
from launched import Job, Place, make_place
from safetensors.torch import load_file

from foveal.config import load_recipe
from foveal.data.dataset import read_dataset
from foveal.models.loading import find_family
from foveal.plan.epoch import make_row_planner
from foveal.train.checkpoint import checkpoints, read_progress

pytestmark = pytest.mark.slow

ENGINES = ("ddp", "fsdp2", "zero2")
STRATEGIES = {
    "frozen_vision": {"strategy": "frozen_vision"},
    "lora": {"strategy": "lora", "lora__rank": 4},
    "qlora": {"strategy": "qlora", "lora__rank": 4},
}
"""Besides `full`, which is in test_engine.py."""

RELAY = (("ddp", 4), ("fsdp2", 6), ("zero2", 8))
"""Engines that have a run after one process, and the step at which each gives it on."""

FP16 = {"precision": "fp16", "train__max_steps": 8, "train__max_bad_steps": 100}
BF16 = {"precision": "bf16", "train__max_steps": 3, **STRATEGIES["qlora"]}
PACKED = {"train__max_steps": 4, "train__save_every_steps": 2}
"""Of runs whose optimizer does not keep plain moments."""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    """Runs on one process, on two, and on one after the other."""
    made = make_place(tmp_path_factory.mktemp("matrix"))

    def on_each_engine(name: str, settings: dict[str, object]) -> list[Job]:
        runs = [made.recipe(f"{one}-{name}", engine=one, **settings) for one in ENGINES]
        return [Job(str(run)) for run in runs]

    together, relays = [], []
    for name, settings in STRATEGIES.items():
        made.run_alone(made.recipe(f"one-{name}", **settings))
        relay = made.recipe(f"relay-{name}", **settings)
        made.run_alone(relay, stop_at=2)
        together += on_each_engine(name, settings)
        relays += [Job(str(relay), (f"engine={engine}",), stop_at=step) for engine, step in RELAY]
    for name, settings in (("fp16", FP16), ("bf16", BF16)):
        made.run_alone(made.recipe(f"one-{name}", **settings))
        together += on_each_engine(name, settings)
    for optimizer in ("adamw_8bit", "adafactor"):
        settings = {"engine": "ddp", "train__optimizer": optimizer, **PACKED}
        together.append(Job(str(made.recipe(f"whole-{optimizer}", **settings))))
        halves = str(made.recipe(f"halves-{optimizer}", **settings))
        together += [Job(halves, stop_at=2), Job(halves)]
    made.run_together(together + relays)
    for name in STRATEGIES:
        made.run_alone(made.folder / f"relay-{name}.yaml")
    return made


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_log_the_losses_of_one(place, engine, strategy):
    one, two = place.metrics(f"one-{strategy}"), place.metrics(f"{engine}-{strategy}")
    assert len(one) == 10
    assert one[-1]["loss"] < one[0]["loss"]
    for key in ("loss", "gradient_norm"):
        assert [line[key] for line in two] == pytest.approx([line[key] for line in one], rel=1e-5)
    for key in ("examples", "tokens", "step"):
        assert [line[key] for line in two] == [line[key] for line in one]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_end_with_the_weights_of_one(place, engine, strategy):
    ours, theirs = place.weights(f"one-{strategy}"), place.weights(f"{engine}-{strategy}")
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(theirs[name], weight, rtol=1e-4, atol=1e-5, msg=name)


def test_some_passes_have_text_alone_on_one_process_and_pictures_on_the_other(place):
    recipe = load_recipe(place.folder / "one-lora.yaml")
    family = find_family(recipe.model)
    processor = family.load_processor(recipe.model, recipe.data.num_crops)
    _, dataset = read_dataset([recipe.data.train], processor)
    plan = make_row_planner(recipe, dataset, 2, family, processor)
    passes = [rows for step in range(10) for rows in zip(*plan.step(step).ranks, strict=True)]
    kinds = [{bool(row.images(dataset.sizes)) for row in rows if row.groups} for rows in passes]
    assert {True, False} in kinds


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_may_be_handed_from_engine_to_engine(place, strategy):
    whole, handed = place.metrics(f"one-{strategy}"), place.metrics(f"relay-{strategy}")
    assert [line["step"] for line in handed] == list(range(1, 11))
    for key in ("loss", "gradient_norm"):
        expected = [line[key] for line in whole]
        assert [line[key] for line in handed] == pytest.approx(expected, rel=1e-5)
    sizes = [read_progress(one).world_size for one in saved(place, f"relay-{strategy}")]
    assert sizes == [2, 1]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_checkpoint_holds_the_same_tensors_whoever_writes_it(place, engine, strategy):
    for file in ("weights", "optimizer"):
        one, other = (
            load_file(saved(place, f"{run}-{strategy}")[-1] / f"{file}.safetensors")
            for run in ("one", engine)
        )
        assert {name: (held.shape, held.dtype) for name, held in one.items()} == {
            name: (held.shape, held.dtype) for name, held in other.items()
        }


@pytest.mark.parametrize("engine", ENGINES)
def test_a_loss_scale_that_is_too_high_falls_and_grows_again_as_on_one_process(place, engine):
    one, two = place.metrics("one-fp16"), place.metrics(f"{engine}-fp16")
    bad = [{line["step"] for line in place.incidents(f"{run}-fp16")} for run in ("one", engine)]
    assert bad[0] == bad[1]
    assert 1 in bad[0]
    assert len(bad[0]) <= 5
    scales = [read_progress(saved(place, f"{run}-fp16")[-1]).loss_scale for run in ("one", engine)]
    assert scales[0] == scales[1]
    for ours, theirs in zip(one, two, strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-2)
        if ours["step"] not in bad[0]:
            assert theirs["gradient_norm"] == pytest.approx(ours["gradient_norm"], rel=5e-2)


@pytest.mark.parametrize("engine", ENGINES)
def test_four_bits_and_bf16_go_together_on_each_engine(place, engine):
    one, two = place.metrics("one-bf16"), place.metrics(f"{engine}-bf16")
    assert len(one) == 3
    for key in ("loss", "gradient_norm"):
        expected = [line[key] for line in one]
        assert [line[key] for line in two] == pytest.approx(expected, rel=2e-2)


@pytest.mark.parametrize("optimizer", ["adamw_8bit", "adafactor"])
def test_packed_moments_of_two_processes_go_on_to_the_bit(place, optimizer):
    for file in ("weights", "optimizer"):
        whole, halves = (
            load_file(saved(place, f"{run}-{optimizer}")[-1] / f"{file}.safetensors")
            for run in ("whole", "halves")
        )
        assert whole.keys() == halves.keys()
        assert all(torch.equal(tensor, halves[name]) for name, tensor in whole.items())


def saved(place: Place, run: str) -> list[Path]:
    """List the checkpoints of a run."""
    return checkpoints(place.folder / run / "checkpoints")
