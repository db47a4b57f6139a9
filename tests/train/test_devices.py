"""A step gives what it should on any device: each promise is held on a processor and on a GPU.

A new family of models joins with a line in `FAMILIES`.
"""

import math

import pytest
import torch
from daily import daily
from devices import CPU, CUDA, DEVICES, GPU_ALONE, places
from pretend_gpu import pretend_gpu
from tiny import make_model, pages
from tiny_models import write_tiny

from foveal.config import LoraSettings, TrainSettings
from foveal.data.batch import build_batch
from foveal.data.dataset import read_dataset
from foveal.data.loader import RowBatches, StepLoader
from foveal.data.rows import RowPlanner
from foveal.machine import pick_device
from foveal.models.generation.generator import Generator, Request, generate
from foveal.models.generation.prompt import Prompt, PromptImage
from foveal.models.generation.sampling import Sampling
from foveal.models.loading import load
from foveal.train.audit import StepAudit, audit_sharing
from foveal.train.engines import several_processes as engines
from foveal.train.engines.one_process import Engine
from foveal.train.learner import make_learner
from foveal.train.step import backward_rows, train_step


def make_qwen3_vl(folder, seed=0, attention="auto"):
    if not (folder / "config.json").exists():
        write_tiny("qwen3_vl", folder, seed)
    return load(str(folder), None, attention)


FAMILIES = {"phi3_vision": make_model, "qwen3_vl": make_qwen3_vl}
"""Name -> (folder, seed, attention) -> a small model of that family."""

PHI_ALONE = pytest.mark.parametrize("family", [make_model], ids=["phi3_vision"])
# What pretends to be a GPU does not pass through transformers' own masks; and a tower that takes an
# image patch by patch rounds alike however samples are packed, so nothing is to be compared with.

STRATEGIES = ["full", "frozen_vision", "lora"]
# Flex attention has no backward pass on a processor.
ATTENTIONS = places(["blocks", "sdpa"], ["blocks", "sdpa", "flex"])
LORA = LoraSettings(rank=4, alpha=8)


FIRST, *OTHERS = FAMILIES.values()


@pytest.fixture(params=daily(FIRST, beside=OTHERS), ids=FAMILIES)
def family(request):
    return request.param


class Trial:
    """A small model that is ready to learn, and the rows of a step over three pages."""

    def __init__(self, folder, family, device, precision="float32", strategy="full", **more):
        self.loaded = family(folder / "model", attention=more.get("attention", "blocks"))
        data = folder / "data.jsonl"
        if not data.exists():
            pages(folder, 3, 4)
        _, self.dataset = read_dataset(data, self.loaded.processor)
        self.engine = Engine(precision, torch.device(device))
        self.settings = TrainSettings(
            learning_rate=1e-3, optimizer=more.get("optimizer", "adamw"), warmup_steps=0
        )
        torch.manual_seed(0)
        recompute = more.get("recompute", "none")
        learner = make_learner(
            self.engine, self.loaded, strategy, self.settings, LORA, recompute=recompute
        )
        for name, one in self.loaded.model.named_parameters():
            if ".lora_B." in name:  # else the first matrices would have no gradient
                torch.nn.init.normal_(one.data, std=0.02)
        self.assignments = learner.assignments
        self.optimizer = learner.optimizer
        self.loss = learner.loss.train()

    def rows(self, *, share=True, tokens_per_pass=100_000):
        plan = RowPlanner(
            self.dataset.sizes,
            examples_per_step=len(self.dataset.examples),
            tokens_per_pass=tokens_per_pass,
            share_images=share,
            long_context_tokens=self.loaded.processor.long_context_tokens,
        )
        return plan.step(0).ranks[0]

    def batches(self, **how):
        rows = self.rows(**how)
        return [build_batch(row, self.dataset, self.loaded.processor) for row in rows]

    def gradients(self, **how):
        """Mean loss of a step, and the gradient of each weight, (numbers,), float64."""
        seen = backward_rows(self.engine, self.loss, self.batches(**how))
        scale = self.engine.loss_scale["scale"] if self.engine.loss_scale else 1.0
        found = {
            name: one.grad.detach().double().flatten().cpu() / scale
            for name, one in self.loaded.model.named_parameters()
            if one.grad is not None and not name.endswith("k_proj.bias")  # zero but for rounding
        }
        self.optimizer.zero_grad(set_to_none=True)
        return seen.loss, found

    def step(self, audit=None):
        clip = self.settings.gradient_clip
        return train_step(self.engine, self.loss, self.optimizer, self.batches(), clip, audit)


def distance(one, other):
    """How far all gradients together are apart, as a share of their length."""
    assert one.keys() == other.keys()
    apart, whole = (torch.cat(list(some.values())) for some in (one, other))
    return float((apart - whole).norm() / whole.norm())


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("place", ATTENTIONS)
def test_a_shared_row_gives_the_gradients_of_its_separate_samples(
    tmp_path, family, place, strategy
):
    device, attention = place
    trial = Trial(tmp_path, family, device, strategy=strategy, attention=attention)
    loss, shared = trial.gradients()
    loss_apart, apart = trial.gradients(share=False, tokens_per_pass=1)
    assert len(trial.rows()) == 1
    assert len(trial.rows(share=False, tokens_per_pass=1)) == 12
    assert loss == pytest.approx(loss_apart, rel=1e-5)
    assert shared.keys() == apart.keys()
    for name, gradient in apart.items():
        assert float((shared[name] - gradient).norm() / gradient.norm()) < 1e-5, name


@PHI_ALONE
@pytest.mark.parametrize("place", ATTENTIONS)
def test_in_bf16_sharing_is_no_further_off_than_packing_the_same_samples_in_another_way(
    tmp_path, family, place
):
    device, attention = place
    exact = Trial(tmp_path, family, CPU).gradients(share=False, tokens_per_pass=1)[1]
    trial = Trial(tmp_path, family, device, "bf16", attention=attention)
    shared = trial.gradients()[1]
    apart = trial.gradients(share=False, tokens_per_pass=1)[1]
    side_by_side = trial.gradients(share=False)[1]
    rounding = max(distance(apart, exact), distance(side_by_side, exact))
    assert 1e-4 < rounding < 0.1  # it did compute in bf16
    assert distance(shared, exact) < 1.25 * rounding
    assert distance(shared, apart) < 2 * distance(side_by_side, apart)


@pytest.mark.parametrize("device", DEVICES)
def test_fp16_learns_as_float32_does(tmp_path, family, device):
    losses, norms = {}, {}
    for precision in ("float32", "fp16"):
        trial = Trial(tmp_path, family, device, precision)
        steps = [trial.step() for _ in range(4)]
        assert all(one.applied for one in steps)
        losses[precision] = [one.loss for one in steps]
        norms[precision] = [one.gradient_norm for one in steps]
    assert losses["fp16"] == pytest.approx(losses["float32"], rel=1e-2)
    assert norms["fp16"] == pytest.approx(norms["float32"], rel=1e-2)
    assert losses["fp16"][3] < losses["fp16"][0]


@pytest.mark.parametrize("device", DEVICES)
def test_a_step_whose_scaled_gradients_overflow_is_left_out_and_the_scale_halves(
    tmp_path, family, device
):
    trial = Trial(tmp_path, family, device, "fp16")
    trial.step()
    trial.engine.loss_scale = {**trial.engine.loss_scale, "scale": 2.0**40}
    before = [one.detach().clone() for one in trial.engine.parameters]
    seen = trial.step()
    assert not seen.applied
    assert math.isfinite(seen.loss)
    assert trial.engine.loss_scale["scale"] == 2.0**39
    assert all(one.equal(old) for one, old in zip(trial.engine.parameters, before, strict=True))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("device", DEVICES)
def test_the_first_steps_audits_pass(tmp_path, family, device, strategy):
    trial = Trial(tmp_path, family, device, strategy=strategy)
    audit_sharing(trial.engine, trial.loss, trial.rows()[0], trial.dataset, trial.loaded, "token")
    audit = StepAudit(trial.engine, trial.loaded, trial.assignments, True)
    assert trial.step(audit).applied
    assert not audit.pending


@pytest.mark.parametrize("place", places(["float32"], ["float32", "bf16"]))
@pytest.mark.parametrize(
    ("recompute", "strategy"),
    [("blocks", "full"), ("light", "full"), ("light", "frozen_vision"), ("light", "lora")],
)
def test_what_is_made_again_in_the_backward_pass_gives_the_same_gradients(
    tmp_path, family, place, recompute, strategy
):
    device, precision = place
    kept = Trial(tmp_path, family, device, precision, strategy)
    again = Trial(tmp_path, family, device, precision, strategy, recompute=recompute)
    wanted = kept.gradients()[1]
    for _ in range(2):  # the second step knows what the first one's backward pass asked for
        found = again.gradients()[1]
        assert distance(found, wanted) < (1e-6 if precision == "float32" else 1e-2)


@pytest.mark.parametrize(
    ("optimizer", "tolerance"),
    # The others round to 8 bits, or make much of what is nearly nothing.
    [("adamw", 1e-4), ("adamw_8bit", 1e-3), ("adafactor", 1e-3), ("muon", 1e-3)],
)
@pytest.mark.parametrize("device", [GPU_ALONE])
def test_steps_on_a_gpu_are_those_of_a_processor(tmp_path, family, device, optimizer, tolerance):
    if optimizer == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    losses = []
    for place in (CPU, device):
        trial = Trial(tmp_path, family, place, optimizer=optimizer)
        losses.append([trial.step().loss for _ in range(4)])
    assert losses[1] == pytest.approx(losses[0], rel=tolerance)
    assert losses[0][3] < losses[0][0]


@pytest.mark.parametrize("device", [GPU_ALONE])
def test_a_batch_of_the_loader_is_pinned_and_arrives_whole(tmp_path, family, device):
    trial = Trial(tmp_path, family, device)
    plan = RowPlanner(trial.dataset.sizes, examples_per_step=4, tokens_per_pass=1000)
    rows = RowBatches(trial.dataset, trial.loaded.processor, "token")
    for workers in (0, 2):
        loader = StepLoader(plan, rows, workers=workers, pin_memory=True)
        for work in loader.steps(0, 3):
            for batch in work.batches:
                there = batch.to(trial.engine.device)
                assert batch.pixels["pixel_values"].is_pinned()
                assert there.pixels["pixel_values"].device.type == CUDA
                for name, one in vars(there).items():
                    if isinstance(one, torch.Tensor):
                        assert one.cpu().equal(getattr(batch, name)), name


def ask(trial, **how):
    """Answer every question of the pages, eight tokens each."""
    requests = []
    for number, example in enumerate(trial.dataset.examples):
        (image,) = trial.dataset.image_numbers(number)
        fact = trial.dataset.images[image]
        pixels = build_batch(
            trial.rows(share=False, tokens_per_pass=1)[number],
            trial.dataset,
            trial.loaded.processor,
        ).pixels
        shown = PromptImage(image, fact.shape, lambda pixels=pixels: pixels)
        entries = tuple(example.entries[: example.prompt_entries].tolist())
        requests.append(Request(Prompt(entries, (shown,)), 8, Sampling(**how)))
    trial.loaded.model.eval()
    return generate(Generator(trial.loaded), requests)


@pytest.mark.parametrize("device", DEVICES)
def test_answers_are_those_of_a_processor_and_draws_come_again(tmp_path, family, device):
    here, there = Trial(tmp_path, family, CPU), Trial(tmp_path, family, device)
    assert ask(here) == ask(there)
    drawn = [ask(there, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def totals(trial, **how):
    return [float(trial.loss(batch.to(trial.engine.device))) for batch in trial.batches(**how)]


@PHI_ALONE
@pytest.mark.parametrize("attention", ["blocks", "sdpa", "eager"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_pass_mixes_tensors_of_a_gpu_with_others(
    tmp_path, family, monkeypatch, strategy, attention
):
    here = Trial(tmp_path, family, CPU, strategy=strategy, attention=attention)
    with torch.no_grad():
        expected = totals(here), totals(here, share=False)
    with pretend_gpu(monkeypatch) as gpu:
        there = Trial(tmp_path, family, gpu, strategy=strategy, attention=attention)
        assert {one.device for one in there.loaded.model.parameters()} == {gpu}
        found = totals(there), totals(there, share=False)
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    assert found[1] == pytest.approx(expected[1], rel=1e-6)


@PHI_ALONE
def test_no_answer_mixes_tensors_of_a_gpu_with_others(tmp_path, family, monkeypatch):
    expected = ask(Trial(tmp_path, family, CPU))
    with pretend_gpu(monkeypatch) as gpu:
        assert ask(Trial(tmp_path, family, gpu)) == expected


def test_a_pretended_gpu_refuses_what_a_real_one_would(monkeypatch):
    with pretend_gpu(monkeypatch) as gpu:
        one = torch.arange(4.0, device=gpu)
        for mix in (lambda: one + torch.ones(4), lambda: one.__setitem__(0, torch.ones(1))):
            with pytest.raises(RuntimeError, match="one tensor is on the GPU and another is not"):
                mix()
        assert (one + torch.ones(())).tolist() == [1, 2, 3, 4]
        assert one[torch.tensor([2])].cpu().tolist() == [2]


def test_processes_tell_nccl_which_gpu_is_theirs(monkeypatch):
    # Left to guess, it takes a rank for the number of a GPU.
    asked = []
    monkeypatch.setattr(engines, "pick_device", lambda: torch.device(CUDA, 1))
    monkeypatch.setattr(engines, "Companions", lambda *_: None)
    monkeypatch.setattr(engines.atexit, "register", lambda *_: None)
    group = {"is_initialized": lambda: False, "get_rank": lambda: 9, "get_world_size": lambda: 16}
    for name, value in group.items():
        monkeypatch.setattr(engines.dist, name, value)
    monkeypatch.setattr(
        engines.dist, "init_process_group", lambda *words, **more: asked.append((words, more))
    )
    assert engines.DataParallelEngine().rank == 9
    assert asked == [(("nccl",), {"device_id": torch.device(CUDA, 1)})]


def test_float32_on_a_gpu_is_float32_in_convolutions_too(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(CUDA))
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda index: None)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert pick_device() == torch.device(CUDA, 0)
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
