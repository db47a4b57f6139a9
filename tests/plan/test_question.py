"""A plan speaks of the very run: its steps, its examples, and what it holds and learns."""

import json
import math
import os
import re
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import pytest
import tiny
import tiny_models_more  # noqa: F401  # enters its families
import torch
import torch.distributed as dist
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pairs import pair_pages
from rich.console import Console
from tiny_models import write_tiny as write_family
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from foveal.config import Recipe
from foveal.errors import ConfigError
from foveal.inputs import load_in_passing
from foveal.models.phi3_vision.tiny import write_tiny
from foveal.plan.estimate import Machines, decide
from foveal.plan.hardware import find_hardware
from foveal.plan.memory import shares_of
from foveal.plan.question import ask
from foveal.plan.setup import engines_of
from foveal.run import TrainingRun
from foveal.train.engines import make_engine
from foveal.train.learner import make_learner
from foveal.train.optim import count_steps

PATTERNS = ("vision.*", "projector.*", "*.mlp.*", "*.bias", "*layers.1.*", "*.self_attn.*")
KINDS = [
    ("answers", ["train", "more"]),
    ("answers", ["more"]),
    ("preferences", ["pairs", "better"]),
]
"""What is learnt, and the files that it is learnt from."""

OTHERS = ["qwen3_vl", "gemma3", "smolvlm", "llava", "internvl", "qwen3_vl_moe"]
"""Models beside Phi-3-vision; the last is a mixture of experts."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    write_tiny(folder / "phi3_v", 0, tiny.WHOLE_BLOCKS)
    for name in OTHERS:
        write_family(name, folder / name)
    tiny.pages(folder, 4, 3, "train")
    tiny.pages(folder, 3, 2, "more")
    pair_pages(folder, 2, 3)
    pair_pages(folder, 3, 1, "better", rejected=2)
    return folder


def recipe_in(place, **tree):
    data = {"train": str(place / "train.jsonl"), "workers": 0}
    if "model" not in tree:
        data["num_crops"] = 4
    train = {"examples_per_step": 4, "tokens_per_pass": 600}
    return Recipe.model_validate(
        {"model": str(place / "phi3_v"), "run": str(place / "run"), "precision": "float32"}
        | tree
        | {"data": data | tree.get("data", {}), "train": train | tree.get("train", {})}
    )


@st.composite
def rules(draw):
    """Up to three parts that are decided about by themselves, and all else."""

    def rule(pattern):
        tree = {"match": pattern, "learn": draw(st.booleans()), "adapter": draw(st.booleans())}
        if tree["adapter"]:
            tree["rank"] = draw(st.sampled_from([None, 2, 5, 8]))
        if tree["adapter"] or not tree["learn"]:
            tree["quantize"] = draw(st.booleans())
        return tree

    chosen = draw(st.lists(st.sampled_from(PATTERNS), max_size=3, unique=True))
    return [*map(rule, chosen), rule("*")]


@st.composite
def runs(draw, models):
    """A recipe's tree, and how many processes run it."""
    engine = draw(st.sampled_from(["single", "ddp", "fsdp2", "zero2"]))
    world = 1 if engine == "single" else draw(st.sampled_from([2, 3, 16]))
    optimizers = ["adamw", "muon", "adafactor", "adamw_8bit"]
    if engine in ("fsdp2", "zero2"):
        optimizers = ["adamw"]
    kind, names = draw(st.sampled_from(KINDS))
    weight = st.sampled_from([0.5, 1, 2, 3.5])
    model = draw(st.sampled_from(models))
    tree = {
        **({} if model == "phi3_v" else {"model": model}),
        "objective": kind,
        "engine": engine,
        "data": {"train": [(name, draw(weight)) for name in names]},
        "train": {
            "epochs": draw(st.sampled_from([0.3, 1, 2.5])),
            "max_steps": draw(st.sampled_from([None, 1, 7])),
            "examples_per_step": draw(st.sampled_from([1, 4, 5])),
            "tokens_per_pass": draw(st.sampled_from([1, 300, 900])),
            "optimizer": draw(st.sampled_from(optimizers)),
        },
        "precision": draw(st.sampled_from(["float32", "bf16", "fp16"])),
        "strategy": draw(st.sampled_from(["full", "frozen_vision", "lora", "qlora"]) | rules()),
        "lora": {
            "rank": draw(st.sampled_from([2, 6])),
            "dora": draw(st.booleans()),
            "dropout": draw(st.sampled_from([0, 0.1])),
        },
        "quantization": {"double": draw(st.booleans())},
    }
    return tree, world


ANY = settings(
    max_examples=14, deadline=None, derandomize=True, database=None, phases=[Phase.generate]
)


@ANY
@given(asked=runs(["phi3_v", "phi3_v", "qwen3_vl"]))
def test_a_plan_is_its_run(place, asked):
    assert_planned(place, *asked)


@pytest.mark.slow
@settings(ANY, max_examples=120)
@given(asked=runs(["phi3_v", *OTHERS]))
def test_a_plan_is_its_run_whatever_the_model(place, asked):
    assert_planned(place, *asked)


def assert_planned(place, tree, world):
    files = [
        {"path": str(place / f"{name}.jsonl"), "weight": weight}
        for name, weight in tree["data"]["train"]
    ]
    if "model" in tree:
        tree = {**tree, "model": str(place / tree["model"])}
    assert_equal(recipe_in(place, **{**tree, "data": {"train": files}}), world)


@contextmanager
def engine_of(recipe, world):
    """The engine of the first of so many processes, which waits for none of the others."""
    if world == 1:
        yield make_engine("single", recipe.precision)
        return
    launched = {"RANK": "0", "WORLD_SIZE": str(world), "MASTER_ADDR": "x", "MASTER_PORT": "1"}
    with patch.dict(os.environ, launched):
        dist.init_process_group("fake", rank=0, world_size=world, store=FakeStore())
        try:
            # DeepSpeed keeps one group for good; what it cuts is worked out below.
            name = "ddp" if recipe.engine == "zero2" else recipe.engine
            engine = make_engine(name, recipe.precision)
            engine.cuts_state = recipe.engine in ("zero2", "fsdp2")
            yield engine
        finally:
            dist.destroy_process_group()


def assert_equal(recipe, world=1):
    """Hold a plan's figures against those of a run that has taken an optimizer's step."""
    alone = recipe.model_copy(update={"engine": "single"})
    try:
        run = TrainingRun(alone, Console(quiet=True), fresh=True)
    except ConfigError as error:
        with pytest.raises(ConfigError, match=re.escape(str(error))):
            ask(recipe, None)
        return
    question = ask(recipe, None)
    run.engine.world_size = world
    planner = run._make_planner()
    assert question.steps == count_steps(planner.steps_per_epoch, recipe.train)
    steps = [planner.step(index) for index in range(planner.steps_per_epoch)]
    assert [question.planner(world).step(index) for index in range(len(steps))] == steps
    rows = [row for step in steps for rank in step.ranks for row in rank]
    # A step counts a question once, however many answers it has.
    counted = sum(planner.sizes.is_first(one) for row in rows for one in row.examples)
    assert question.epoch(world).total.examples == counted
    # As here: what this machine would compute wrongly in 4 bits stays whole in the run.
    hardware = replace(find_hardware("a100-80gb"), is_cpu=True, measured=True)
    try:
        setup = question.setup(hardware, world, 1)
    except ConfigError as error:
        with (
            pytest.raises(ConfigError, match=re.escape(str(error))),
            engine_of(recipe, 1) as engine,
        ):
            learner_of(recipe, run, engine)
        return
    with engine_of(recipe, world) as engine:
        learner = learner_of(recipe, run, engine)
        assert setup.holdings.learnt == sum(
            one.numel() for one in learner.model.parameters() if one.requires_grad
        )
        held = held_by_torch(learner, recipe.engine, world)
        brought = brought_together(learner) if recipe.engine == "fsdp2" and world > 1 else None
    shares = shares_of(
        setup.holdings, setup.engine, setup.shares, setup.frozen_bytes, setup.optimizer
    )
    assert brought in (None, shares.buckets_bytes)
    assert held == (
        shares.weights_bytes + shares.adapters_bytes,
        shares.gradients_bytes,
        shares.optimizer_bytes,
    )


def learner_of(recipe, run, engine):
    return make_learner(engine, run.loaded, recipe.strategy, recipe.train, recipe.lora, "none")


def held_by_torch(learner, engine, world):
    """Bytes of weights, gradients and moments of the first process behind a step."""
    optimizer = learner.optimizer
    learnt = [one for group in optimizer.param_groups for one in group["params"]]
    for one in learnt:
        one.grad = torch.zeros_like(one)
    optimizer.step()
    states = [
        one
        for state in optimizer.state.values()
        for name, one in state.items()
        if isinstance(one, torch.Tensor) and not name.startswith("qmap")  # one table for all
    ]
    packed = {id(one): one for one in map(_packing, learner.model.modules()) if one}
    held = _bytes(learner.model.parameters())
    held += sum(_bytes(_scales(one)) for one in packed.values())
    if engine != "zero2":
        return held, _bytes(one.grad for one in learnt), _bytes(states)
    # DeepSpeed (runtime/zero/stage_1_and_2.py) lays the weights of a group end to end, fills up to
    # a multiple of two numbers a process, and gives each its part, with one count of steps.
    groups = [sum(one.numel() for one in group["params"]) for group in optimizer.param_groups]
    share = sum(4 * math.ceil(one / (2 * world)) * 2 for one in groups)
    return held, share, 3 * share + 4 * len(groups)


def brought_together(learner):
    """Bytes that FSDP2 holds of its own: the root's weights, two blocks', and their gradients."""
    root, *blocks = (
        [one for group in part._get_fsdp_state()._fsdp_param_groups for one in group.fsdp_params]
        for part in learner.loss.modules()
        if isinstance(part, FSDPModule)
    )

    def weights(part):
        return sum(one._orig_size.numel() * one.sharded_param.dtype.itemsize for one in part)

    def gradients(part):
        return sum(4 * one._orig_size.numel() for one in part if one.sharded_param.requires_grad)

    largest = max(blocks, key=weights)
    return 2 * weights(largest) + weights(root) + gradients(largest) + gradients(root)


def _packing(module):
    """How a layer's weight is packed: its scales stand beside a weight that is cut."""
    weight = getattr(module, "weight", None)
    return getattr(weight, "quant_state", None) or getattr(module, "quant_state", None)


def _scales(state):
    scales = [state.absmax, state.code]
    if state.nested:
        scales += [state.offset, state.state2.absmax, state.state2.code]
    return scales


def _bytes(tensors):
    local = (one.to_local() if isinstance(one, DTensor) else one for one in tensors)
    return sum(one.nbytes for one in local)


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


def test_sharding_of_an_engine_that_cuts_otherwise_is_refused_as_a_run_refuses_it(place):
    question = ask(recipe_in(place, engine="ddp", sharding={"group": "node"}), None)
    with pytest.raises(ConfigError) as planned:
        question.setup(find_hardware("a100-80gb"), 8, 1)
    with pytest.raises(ConfigError, match=re.escape(str(planned.value))):
        make_engine("ddp", "float32", question.recipe.sharding)


def test_one_process_on_several_gpus_is_refused_as_a_run_refuses_it(place, monkeypatch):
    with pytest.raises(ConfigError) as planned:
        ask(recipe_in(place, engine="single"), None).setup(find_hardware("a100-80gb"), 4, 2)
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(ConfigError, match=re.escape(str(planned.value))):
        make_engine("single", "float32")


@pytest.mark.parametrize("engine", ["fsdp2", "zero2"])
def test_an_optimizer_that_takes_no_cuts_is_refused_as_a_run_refuses_it(place, engine):
    question = ask(recipe_in(place, engine=engine, train={"optimizer": "muon"}), None)
    with pytest.raises(ConfigError, match=r"train\.optimizer=muon needs whole weights"):
        question.setup(find_hardware("a100-80gb"), 8, 1)
    assert engines_of("muon", 8) == ("ddp",)  # all that a comparison or advice offers


def test_a_model_in_fewer_bits_is_refused_as_a_run_refuses_it(place, tmp_path):
    config = json.loads((place / "phi3_v" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "compressed-tensors"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    told = []
    for look in (partial(ask, load_model=None), load_in_passing):
        with pytest.raises(ConfigError, match=r"weights are in fewer bits; give the whole") as one:
            look(recipe_in(place, model=str(tmp_path)))
        told.append(str(one.value))
    assert told[0] == told[1]


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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3_vl", "gemma3"])
def test_every_family_is_planned_and_holds_what_its_run_holds(place, name):
    recipe = recipe_in(place, model=str(place / name))
    assert_equal(recipe)
    machines = Machines(find_hardware("a100-80gb"), 1, 1)
    question = ask(recipe, None)
    kept = decide(question, machines)
    assert kept.fits
    assert kept.setup.recompute == "none"
    small = replace(machines.hardware, memory_bytes=kept.memory.total_bytes)
    assert decide(question, replace(machines, hardware=small)).setup.recompute == "blocks"
