"""A plan speaks of the very run: its steps, its examples, and what it holds and learns."""

import random
from dataclasses import replace

import pytest
import tiny
import torch
from rich.console import Console
from tiny_models import write_tiny as write_family

from foveal.config import Recipe
from foveal.errors import ConfigError
from foveal.models.phi3_vision.tiny import write_tiny
from foveal.plan.compare import Machines, decide
from foveal.plan.hardware import find_hardware
from foveal.plan.memory import shares_of
from foveal.plan.question import ask
from foveal.plan.this_machine import ASSUMED
from foveal.run import TrainingRun
from foveal.train.learner import make_learner
from foveal.train.optim import count_steps

PATTERNS = ("vision.*", "projector.*", "*.mlp.*", "*.bias", "*layers.1.*", "*.self_attn.*")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    write_tiny(folder / "model", 0, tiny.SIZES)
    tiny.pages(folder, 4, 3, "train")
    tiny.pages(folder, 3, 2, "more")
    return folder


def recipe_in(place, **tree):
    data = {"train": str(place / "train.jsonl"), "workers": 0, "num_crops": 4}
    train = {"examples_per_step": 4, "tokens_per_pass": 600}
    return Recipe.model_validate(
        {"model": str(place / "model"), "run": str(place / "run"), "precision": "float32"}
        | tree
        | {"data": data | tree.get("data", {}), "train": train | tree.get("train", {})}
    )


def random_rules(dice):
    def rule(pattern):
        adapter, learn = dice.random() < 0.5, dice.random() < 0.6
        tree = {"match": pattern, "learn": learn, "adapter": adapter}
        if adapter and dice.random() < 0.5:
            tree["rank"] = dice.choice([2, 4, 8])
        return tree

    chosen = dice.sample(PATTERNS, dice.randint(0, 3))
    return [*map(rule, chosen), {"match": "*", "learn": True, "adapter": dice.random() < 0.5}]


@pytest.mark.parametrize("weights", [(2, 1), (0.5, 3), (1, 1)])
def test_steps_and_examples_are_the_runs_where_files_have_weights(place, weights):
    files = [
        {"path": str(place / f"{name}.jsonl"), "weight": weight}
        for name, weight in zip(("train", "more"), weights, strict=True)
    ]
    recipe = recipe_in(place, data={"train": files}, train={"epochs": 2})
    question = ask(recipe, None)
    run = TrainingRun(recipe, Console(quiet=True), fresh=True)
    plan = run._plan()
    assert question.steps == count_steps(plan.steps_per_epoch, recipe.train)
    shown = sum(len(plan.examples(step)) for step in range(plan.steps_per_epoch))
    assert question.epoch(1).total.examples == shown == 12 * weights[0] + 6 * weights[1]


@pytest.mark.parametrize("seed", range(8))
def test_what_is_held_and_learnt_is_what_the_run_holds_and_learns(place, seed):
    recipe = recipe_in(
        place,
        strategy=random_rules(random.Random(seed)),
        lora={"rank": 6, "dora": seed % 4 == 3},
        precision=["float32", "bf16"][seed % 2],
        train={"optimizer": ["adamw", "muon", "adafactor", "adamw_8bit"][seed // 2]},
    )
    assert_equal(recipe)


def assert_equal(recipe):
    """Hold a plan's figures against those of a run that has taken an optimizer's step."""
    question = ask(recipe, None)
    setup = question.setup(find_hardware("a100-80gb"), 1, 1)
    run = TrainingRun(recipe, Console(quiet=True), fresh=True)
    learner = make_learner(
        run.engine, run.loaded, recipe.strategy, recipe.train, recipe.lora, "none"
    )
    optimizer = learner.make_optimizer()
    for group in optimizer.param_groups:
        for one in group["params"]:
            one.grad = torch.zeros_like(one)
    optimizer.step()
    shares = shares_of(setup.holdings, "single", 1, setup.fixed_bytes, setup.optimizer)
    parameters = list(run.loaded.model.parameters())
    learnt = [one for one in parameters if one.requires_grad]
    moments = [
        one
        for state in optimizer.state.values()
        for name, one in state.items()
        if isinstance(one, torch.Tensor) and not name.startswith("qmap")  # one table for all
    ]
    assert setup.holdings.learnt == sum(one.numel() for one in learnt)
    assert setup.holdings.learnt_tensors == len(learnt)
    assert shares.weights_bytes + shares.adapters_bytes == sum(one.nbytes for one in parameters)
    assert shares.gradients_bytes == sum(one.nbytes for one in learnt)
    assert shares.optimizer_bytes == sum(one.nbytes for one in moments)


@pytest.mark.parametrize(
    "rules",
    [
        # The bias of a layer with an adapter stays as it is, whatever its own rule says.
        [{"match": "*.weight", "adapter": True}, {"match": "*"}],
        # One without learns, although its rule is an adapter's.
        [{"match": "*.weight", "learn": False}, {"match": "*", "adapter": True}],
        [{"match": "language.*", "adapter": True, "rank": 16}, {"match": "*", "adapter": True}],
    ],
    ids=["bias beside an adapter", "bias beside none", "two ranks"],
)
def test_a_rule_of_its_own_means_to_a_plan_what_it_means_to_a_run(place, rules):
    assert_equal(recipe_in(place, strategy=rules, lora={"rank": 4}))


def test_a_rule_that_decides_for_nothing_is_refused_as_a_run_refuses_it(place):
    recipe = recipe_in(place, strategy=[{"match": "*"}, {"match": "vision.*", "learn": False}])
    with pytest.raises(ConfigError, match=r"rule 2 \(vision\.\*\) decides for no weight"):
        ask(recipe, None).setup(find_hardware("a100-80gb"), 1, 1)


def test_layers_in_4_bits_without_adapters_are_weighed_in_4_bits(place):
    whole = [{"match": "vision.*", "learn": False}, {"match": "*"}]
    small = [{"match": "vision.*", "learn": False, "quantize": True}, {"match": "*"}]
    here = find_hardware("a100-80gb")
    one, other = (
        ask(recipe_in(place, strategy=rules), None).setup(here, 1, 1).holdings
        for rules in (whole, small)
    )
    # Worked by hand: of each tower layer six linear ones, 4 of width squared and 2 to the mlp.
    tower = ask(recipe_in(place), None).config.vision_config
    width, mlp = tower.hidden_size, tower.intermediate_size
    packed = tower.num_hidden_layers * (4 * width**2 + 2 * width * mlp)
    assert other.four_bit == packed
    assert other.whole == one.whole - packed
    assert other.learnt == one.learnt


@pytest.mark.parametrize("name", ["qwen3_vl", "gemma3"])
def test_every_family_is_planned_and_holds_what_its_run_holds(tmp_path, place, name):
    write_family(name, tmp_path / "model")
    recipe = recipe_in(place, model=str(tmp_path / "model"))
    assert_equal(recipe)
    machines = Machines(find_hardware("a100-80gb"), ASSUMED, 1, 1)
    question = ask(recipe, None)
    kept = decide(question, machines)
    assert kept.fits
    assert kept.setup.recompute == "none"
    small = replace(machines.hardware, memory_bytes=kept.memory.total_bytes)
    assert decide(question, replace(machines, hardware=small)).setup.recompute == "blocks"
