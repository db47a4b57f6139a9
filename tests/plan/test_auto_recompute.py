"""Whether blocks are run again is decided by all that training will hold on its device."""

import pytest
import torch
from rich.console import Console
from tiny import SIZES, pages

from foveal.config import Recipe, ShardingSettings
from foveal.models.phi3_vision.tiny import write_tiny
from foveal.plan import auto_recompute
from foveal.run import TrainingRun


@pytest.fixture
def training(tmp_path):
    write_tiny(tmp_path / "model", 0, SIZES)
    pages(tmp_path, 4, 3, "train")
    tree = {
        "model": str(tmp_path / "model"),
        "run": str(tmp_path / "run"),
        "precision": "float32",
        "data": {"train": str(tmp_path / "train.jsonl"), "workers": 0, "num_crops": 4},
        "train": {"examples_per_step": 4, "tokens_per_pass": 600},
    }
    return TrainingRun(Recipe.model_validate(tree), Console(quiet=True))


def what_is_made_again(training):
    parts = (
        training.recipe,
        training.loaded,
        training._make_planner(),
        training.dataset,
        training.engine,
    )
    return auto_recompute.choose_recompute(*parts, print)


def most_with(training, monkeypatch, recompute="blocks") -> int:
    """Free bytes of the device at which only just so much is made again."""
    ways = ["blocks", "light", "none"]
    low, high = 0, 2**26
    while high - low > 1:
        free = (low + high) // 2
        monkeypatch.setattr(auto_recompute, "free_memory", lambda _device, free=free: free)
        chosen = ways.index(what_is_made_again(training))
        low, high = (free, high) if chosen <= ways.index(recompute) else (low, free)
    assert high < 2**26
    return low


@pytest.mark.slow
def test_a_gpu_needs_room_for_the_weights_that_its_host_holds(training, monkeypatch):
    monkeypatch.setattr(auto_recompute, "CPU_SLACK", 0.0)  # of glibc's heap, which a GPU has not
    training.engine.device = torch.device("cpu")
    here = most_with(training, monkeypatch)
    training.engine.device = torch.device("cuda")
    there = most_with(training, monkeypatch)
    weights = sum(one.nbytes for one in training.loaded.model.parameters())
    assert there - here == pytest.approx(weights / 0.95, abs=2)


def test_the_least_is_made_again_that_lets_a_run_fit(training, monkeypatch):
    whole_blocks, light = (most_with(training, monkeypatch, one) for one in ("blocks", "light"))
    assert 0 < whole_blocks < light
    for free, chosen in ((whole_blocks, "blocks"), (whole_blocks + 1, "light"), (light, "light")):
        monkeypatch.setattr(auto_recompute, "free_memory", lambda _device, free=free: free)
        assert what_is_made_again(training) == chosen
    monkeypatch.setattr(auto_recompute, "free_memory", lambda _device: light + 1)
    assert what_is_made_again(training) == "none"
    # Two processes of a machine without a GPU share its memory.
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    for free, chosen in ((2 * light, "light"), (2 * light + 2, "none")):
        monkeypatch.setattr(auto_recompute, "free_memory", lambda _device, free=free: free)
        assert what_is_made_again(training) == chosen


def test_what_is_cut_within_a_node_is_held_by_the_processes_of_one_node(training):
    sharding = ShardingSettings(group="node")
    recipe = training.recipe.model_copy(update={"engine": "fsdp2", "sharding": sharding})
    engine = training.engine
    engine.world_size, engine.copies = 16, 2
    setup = auto_recompute.run_setup(recipe, training.loaded, engine, "none")
    assert (setup.gpus, setup.nodes, setup.shares) == (8, 2, 8)
