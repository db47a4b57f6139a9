"""Several processes give what one gives, whatever rows each of them gets and however they share."""

import os
import re
import sys
import time

import pytest
import torch
import torch.distributed as dist
from bitsandbytes.nn import Linear4bit
from daily import daily
from launched import ACCELERATE, Job, Place, launch, make_place, stop_in_the_middle
from safetensors.torch import load_file
from tiny import pages
from torch import nn
from torch.distributed.tensor import DTensor

from foveal.errors import ConfigError
from foveal.train.engines import LAUNCHERS_SAY, make_engine
from foveal.train.engines.fsdp2 import ShardedEngine
from foveal.train.engines.one_process import norm_of

A_RANK_DIES = """
import os, signal, sys
import foveal.train.loop as loop
from foveal.cli import main
take_step, taken = loop.train_step, []
def dying(*arguments):
    taken.append(1)
    if len(taken) == 3 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return take_step(*arguments)
loop.train_step = dying
main()
"""

A_SLOW_THREAD = """
import sys, torch
import torch.distributed as dist
from foveal.train.engines.several_processes import DataParallelEngine
engine = DataParallelEngine()
sys.keeps = dist.group.WORLD  # as DTensor's caches do
sent = torch.ones(10)
sys.setswitchinterval(1000)  # no other thread has Python's lock unless it is given
engine._companions = None  # they give the lock away too, now and then
work = dist.all_reduce(sent, async_op=True)
while not work.is_completed():
    pass
del work, sent
"""


SHORT = {"train__max_steps": 6, "train__save_every_steps": 3}

BAD = {"train__learning_rate": 1e30, "train__max_steps": 4, "train__warmup_steps": 1}
"""The second step, the first with a rate, throws every weight away."""

LORA = {
    "strategy": "lora",
    "lora__rank": 4,
    "train__recompute": "blocks",
    "train__max_steps": 3,
    "train__evaluate_every_steps": 2,
    "evaluate__max_new_tokens": 4,
}


def job(made: Place, run: str, begun_by: str = "", **changes: object) -> Job:
    recipe = made.recipe(run, **changes)
    return Job(str(recipe), begun_by=str(made.folder / begun_by) if begun_by else "")


def go_on_alone(made: Place, begun_by: str) -> None:
    stop_in_the_middle(made.folder / begun_by, made.folder / f"{begun_by}-one")
    made.run_alone(made.recipe(f"{begun_by}-one", **SHORT))


@pytest.fixture(scope="module")
def torch_alone(tmp_path_factory) -> Place:
    """Runs of one process and of two, and some that go on with what others began."""
    made = make_place(tmp_path_factory.mktemp("runs"))
    folder = made.folder
    pages(folder, 3, 1, "validation")
    lora = LORA | {"data__validation": str(folder / "validation.jsonl")}
    made.run_alone(made.recipe("one", **SHORT))
    made.run_alone(made.recipe("one-broken", **made.broken))
    made.run_alone(made.recipe("one-lora", **lora))
    made.run_together(
        [
            *(job(made, name, engine=name, **SHORT) for name in ("ddp", "fsdp2")),
            job(made, "fsdp2-lora", engine="fsdp2", **lora),
            job(made, "fsdp2-broken", engine="fsdp2", **made.broken),
            job(made, "fsdp2-fsdp2", "fsdp2", engine="fsdp2", **SHORT),
        ]
    )
    go_on_alone(made, "fsdp2")
    return made


@pytest.fixture(scope="module")
def with_deepspeed(torch_alone) -> Place:
    """The same under ZeRO-2, launched by accelerate, and more of the others."""
    made = torch_alone
    made.run_alone(made.recipe("one-bad", **BAD))
    apart = made.recipe("fsdp2-apart", engine="fsdp2", **SHORT)
    jobs = [
        Job(str(apart), ranks_of_a_block=1),
        job(made, "fsdp2-bad", engine="fsdp2", **BAD),
        job(made, "one-fsdp2", "one", engine="fsdp2", **SHORT),
        job(made, "zero2", engine="zero2", **SHORT),
    ]
    for name in ("ddp", "zero2"):
        jobs.append(job(made, f"{name}-broken", engine=name, **made.broken))
        jobs.append(job(made, f"{name}-bad", engine=name, **BAD))
    pairs = (("fsdp2", "zero2"), ("zero2", "zero2"), ("zero2", "fsdp2"), ("zero2", "ddp"))
    for before, after in (("ddp", "fsdp2"), *pairs):
        jobs.append(job(made, f"{before}-{after}", before, engine=after, **SHORT))
    made.run_together(jobs, launcher=ACCELERATE)
    for before in ("ddp", "zero2"):
        go_on_alone(made, before)
    return made


@pytest.fixture
def place(request) -> Place:
    marks = {mark.name for mark in request.node.iter_markers()}
    return request.getfixturevalue("with_deepspeed" if "slow" in marks else "torch_alone")


ENGINES = daily("ddp", "fsdp2", beside=["zero2"])
SPOILT = daily("fsdp2", beside=["ddp", "zero2"])
RESUMED = daily(
    *(("fsdp2", "one"), ("fsdp2", "fsdp2")),
    beside=[
        ("one", "fsdp2"),
        *(("ddp", "one"), ("ddp", "fsdp2"), ("fsdp2", "zero2")),
        *(("zero2", "one"), ("zero2", "fsdp2"), ("zero2", "zero2"), ("zero2", "ddp")),
    ],
)


@pytest.mark.slow
def test_a_process_ends_well_whose_last_tensor_is_still_held_by_the_thread_that_sent_it(tmp_path):
    done = launch(tmp_path, A_SLOW_THREAD)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("run", [*ENGINES, *daily(beside=["fsdp2-apart"])])
def test_two_processes_log_the_losses_of_one(place, run):
    one, two = place.metrics("one"), place.metrics(run)
    assert len(one) == 6
    for key in ("loss", "gradient_norm"):
        assert [line[key] for line in two] == pytest.approx([line[key] for line in one], rel=1e-5)
    for key in ("examples", "tokens", "step"):
        assert [line[key] for line in two] == [line[key] for line in one]


@pytest.mark.parametrize("run", [*ENGINES, *daily(beside=["fsdp2-apart"])])
def test_two_processes_end_with_the_weights_of_one(place, run):
    ours, theirs = place.weights("one"), place.weights(run)
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        if name.endswith("k_proj.bias"):  # moved by rounding alone
            continue
        assert float((weight - theirs[name]).norm() / (weight.norm() + 1e-9)) < 1e-4, name


@pytest.mark.parametrize(("before", "after"), RESUMED)
def test_a_run_goes_on_under_another_engine_and_number_of_processes(place, before, after):
    whole, resumed = place.metrics("one"), place.metrics(f"{before}-{after}")
    assert [line["step"] for line in resumed] == list(range(1, 7))
    for key in ("loss", "gradient_norm"):
        expected = [line[key] for line in whole]
        assert [line[key] for line in resumed] == pytest.approx(expected, rel=1e-5)


def test_a_run_says_that_another_number_of_processes_goes_on_with_it(place):
    assert (
        "It ran on 2 processes, now on 1: each step still has the same examples"
        in (place.said["fsdp2-one"])
    )
    assert "It ran on" not in place.said["one"]


@pytest.mark.parametrize("run", daily("fsdp2", beside=["zero2"]))
def test_a_sharded_run_that_was_stopped_equals_one_that_was_not_to_the_bit(place, run):
    whole, resumed = place.weights(run), place.weights(f"{run}-{run}")
    assert whole.keys() == resumed.keys()
    for name, weight in whole.items():
        assert torch.equal(weight, resumed[name]), name
    for line, again in zip(place.metrics(run), place.metrics(f"{run}-{run}"), strict=True):
        measured = {"seconds": 0, "memory_bytes": 0}
        assert {**line, **measured} == {**again, **measured}


@pytest.mark.parametrize("run", daily("fsdp2", beside=["zero2"]))
def test_a_sharded_checkpoint_holds_whole_tensors_under_the_models_names(place, run):
    for file in ("weights", "optimizer"):
        one, sharded = (
            load_file(place.folder / run / "checkpoints" / "step-6" / f"{file}.safetensors")
            for run in ("one", run)
        )
        assert {name: tensor.shape for name, tensor in one.items()} == {
            name: tensor.shape for name, tensor in sharded.items()
        }


def test_sharded_adapters_learn_and_answer_as_on_one_process(place):
    one, sharded = place.metrics("one-lora"), place.metrics("fsdp2-lora")
    assert len(one) == 3
    for key in ("loss", "gradient_norm"):
        expected = [line[key] for line in one]
        assert [line[key] for line in sharded] == pytest.approx(expected, rel=1e-5)
    for folder in ("before", "step-2", "after"):
        files = [
            place.folder / run / "evaluation" / folder / "predictions.jsonl"
            for run in ("one-lora", "fsdp2-lora")
        ]
        answers = [sorted(file.read_text().splitlines()) for file in files]
        assert len(answers[0]) == 3
        assert answers[0] == answers[1]
    ours, theirs = place.weights("one-lora"), place.weights("fsdp2-lora")
    assert ours.keys() == theirs.keys()  # merged
    for name, weight in ours.items():
        torch.testing.assert_close(theirs[name], weight, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("engine", SPOILT)
def test_processes_leave_out_the_same_examples_and_learn_the_same(place, engine):
    one, several = place.metrics("one-broken"), place.metrics(f"{engine}-broken")
    assert sum(line["examples"] for line in one) < 12
    for key in ("loss", "gradient_norm", "examples"):
        expected = [line[key] for line in one]
        assert [line[key] for line in several] == pytest.approx(expected, rel=1e-5)
    named = [
        sorted((line["step"], line["what"], *line["examples"]) for line in place.incidents(run))
        for run in ("one-broken", f"{engine}-broken")
    ]
    assert named[0] == named[1] != []


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["fsdp2", "ddp", "zero2"])
def test_a_step_that_is_not_finite_names_the_examples_of_every_process(place, engine):
    one, several = place.incidents("one-bad"), place.incidents(f"{engine}-bad")
    assert [line["step"] for line in several] == [line["step"] for line in one] == [3, 4]
    for ours, theirs in zip(one, several, strict=True):
        assert sorted(ours["examples"]) == sorted(theirs["examples"])
        assert len(ours["examples"]) == 4
        assert ours["cause"] == theirs["cause"]
        assert " gives numbers that are not finite in float32" in ours["cause"]


@pytest.mark.slow
def test_a_rank_that_dies_takes_the_others_down_with_a_message(place):
    recipe = place.recipe("dies", engine="fsdp2")
    started = time.monotonic()
    done = launch(place.folder, A_RANK_DIES, "train", str(recipe))
    assert done.returncode != 0
    assert time.monotonic() - started < 60 + 30  # half a minute to start
    assert "Signal 9 (SIGKILL)" in done.stderr
    assert re.search(r"foveal: process 1 \(pid \d+ on .*\) died, so process 0", done.stderr)
    assert "the same command goes on from the last checkpoint" in done.stderr
    assert len(place.metrics("dies")) == 2


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "zero2"])
def test_engines_of_several_processes_ask_for_a_launcher(name, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError, match=f"engine={name} needs a launcher"):
        make_engine(name, "float32")


@pytest.mark.parametrize(
    ("written", "said"),
    [("2", "WORLD_SIZE=2 without RANK is none"), ("two", "no number; unset it")],
)
def test_a_number_of_processes_that_nobody_launched_is_named(monkeypatch, written, said):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", written)
    with pytest.raises(ConfigError, match=said):
        make_engine("auto", "float32")


def test_zero2_says_what_it_needs(monkeypatch):
    for one in LAUNCHERS_SAY:
        monkeypatch.setenv(one, "0")
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(ConfigError, match=r"needs DeepSpeed .* pip install 'foveal\[deepspeed\]'"):
        make_engine("zero2", "float32")


@pytest.fixture
def sharded(monkeypatch):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    engine = ShardedEngine("float32")
    yield engine
    engine.close()
    assert "RANK" not in os.environ


def test_weights_in_four_bits_are_cut_too_and_come_back_as_they_were(sharded):
    layer, inputs = Linear4bit(64, 32, quant_type="nf4").to("cpu"), torch.randn(3, 64)
    expected, packed = layer(inputs).detach(), layer.weight.data.clone()
    module = sharded.prepare(nn.Sequential(layer), [layer])
    assert isinstance(layer.weight, DTensor)
    for _ in range(2):
        assert torch.equal(module(inputs), expected)
    with sharded.gathered_weights():
        assert torch.equal(layer(inputs), expected)
    sharded.release()
    assert torch.equal(layer.weight, packed)
    assert torch.equal(layer(inputs), expected)


def test_a_released_module_is_plain_and_keeps_its_ties(sharded):
    block, module = nn.Linear(4, 4), nn.Sequential()
    module.append(block).append(nn.Linear(4, 4)).append(nn.Linear(4, 4))
    module[2].weight = module[1].weight
    before = {name: one.detach().clone() for name, one in module.named_parameters()}
    sharded.prepare(module, [block])
    sharded.release()
    assert module[2].weight is module[1].weight
    assert {type(one) for one in module.parameters()} == {nn.Parameter}
    for name, one in module.named_parameters():
        assert torch.equal(one, before[name])


def test_the_norm_of_many_numbers_is_exact():
    values = torch.full((3_000_000,), 0.1)
    expected = float(values[0]) * 4_000_000**0.5
    assert float(norm_of([values, values[:1_000_000]])) == pytest.approx(expected, rel=1e-9)


def test_the_norm_of_a_matrix_is_that_of_its_rows_wherever_they_are():
    matrix = torch.randn(3_000, 1_000, generator=torch.Generator().manual_seed(0))
    whole = float(norm_of([matrix]))
    assert whole == pytest.approx(float(matrix.double().square().sum().sqrt()), rel=1e-7)
    assert float(norm_of(matrix.split(700))) == pytest.approx(whole, rel=1e-14)


def test_the_norm_of_16_bit_numbers_is_not_rounded_to_16_bits():
    matrix = torch.randn(300, 1_000, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = float(matrix.double().square().sum().sqrt())
    assert float(norm_of([matrix])) == pytest.approx(expected, rel=1e-6)
