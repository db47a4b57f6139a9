"""The first step's audit stops a run that would silently learn nothing, or the wrong thing."""

import dataclasses

import numpy as np
import pytest
import torch
from tiny import make_model, pages

from foveal.adapt.strategy import assign, rules_of
from foveal.config import LoraSettings
from foveal.data.batch import build_batch
from foveal.data.dataset import read_dataset
from foveal.data.encoded.packed import EncodedExamples, pack
from foveal.data.rows import RowPlanner
from foveal.errors import RunError
from foveal.models.row_view import RowView
from foveal.train.audit import audit_gradients, audit_sharing, audit_targets
from foveal.train.engines.one_process import Engine
from foveal.train.loss import RowLoss


@pytest.fixture
def setup(tmp_path):
    loaded = make_model(tmp_path / "model")
    _, dataset = read_dataset(pages(tmp_path, 1, 3), loaded.processor)
    plan = RowPlanner(dataset.sizes, examples_per_step=3, tokens_per_pass=10_000)
    return loaded, dataset, plan.step(0).ranks[0][0]


def backward(loaded, dataset, row):
    RowLoss(loaded.model, loaded.family)(build_batch(row, dataset, loaded.processor)).backward()


@pytest.mark.parametrize("strategy", ["full", "frozen_vision", "lora"])
def test_a_sound_first_step_passes(setup, strategy):
    loaded, dataset, row = setup
    rules = rules_of(strategy)
    chosen = assign(loaded.model, loaded.family, rules, 1e-3, 0.0, LoraSettings(rank=4))
    backward(loaded, dataset, row)
    audit_gradients(loaded.model, chosen, saw_images=True)


def test_a_weight_that_no_gradient_reaches_is_named(setup):
    loaded, dataset, row = setup
    chosen = assign(loaded.model, loaded.family, rules_of("full"), 1e-3, 0.0)
    layer = loaded.model.model.layers[1].mlp
    original = layer.forward
    layer.forward = lambda hidden: original(hidden).detach()
    backward(loaded, dataset, row)
    with pytest.raises(RunError, match=r"no gradient reaches model\.layers\.1\.mlp\."):
        audit_gradients(loaded.model, chosen, saw_images=True)


def test_reentrant_checkpointing_under_a_frozen_tower_is_caught(setup):
    """What the published recipe's frozen rows do: the decoder's blocks learn nothing."""
    loaded, dataset, row = setup
    rules = rules_of("frozen_vision")
    chosen = assign(loaded.model, loaded.family, rules, 1e-3, 0.0)
    loaded.model.train()
    loaded.model.activation_checkpointing_enable({"use_reentrant": True})
    loaded.model.model.embed_tokens.weight.requires_grad_(False)
    for one in loaded.model.model.vision_embed_tokens.parameters():
        one.requires_grad_(False)
    backward(loaded, dataset, row)
    with pytest.raises(RunError, match="no gradient reaches"):
        audit_gradients(loaded.model, chosen, saw_images=True)


def test_an_example_without_an_answer_is_named(setup):
    _, dataset, _ = setup
    silent = dataclasses.replace(
        dataset.examples[1], learnt=np.zeros_like(dataset.examples[1].learnt)
    )
    three = pack([[one]] for one in (dataset.examples[0], silent, dataset.examples[2]))
    broken = dataclasses.replace(dataset, examples=EncodedExamples([three]))
    with pytest.raises(RunError, match="example example-1 has no learnt token"):
        audit_targets(broken)


def test_a_shared_row_agrees_with_its_samples_and_leaves_no_gradient(setup):
    loaded, dataset, row = setup
    engine = Engine()
    module = engine.prepare(RowLoss(loaded.model, loaded.family))
    assert audit_sharing(engine, module, row, dataset, loaded, "token") < 1e-5
    assert all(one.grad is None for one in loaded.model.parameters())


def leak(view, group, window):
    """A mask that lets every branch see its elder siblings."""
    size = group.end - group.start
    seen = torch.ones(size, size, dtype=torch.bool, device=view.device).tril()
    return seen[group.prefix_end - group.start :][None, None]


def test_a_leaking_mask_stops_the_run(setup, monkeypatch):
    loaded, dataset, row = setup
    monkeypatch.setattr(RowView, "branch_mask", leak)
    engine = Engine()
    module = engine.prepare(RowLoss(loaded.model, loaded.family))
    with pytest.raises(RunError, match="differs from its separate samples"):
        audit_sharing(engine, module, row, dataset, loaded, "token")


def test_wrong_positions_stop_the_run(setup, monkeypatch):
    from foveal.train import audit

    def shifted(row, dataset, processor, weighting, reference):
        batch = build_batch(row, dataset, processor, weighting, reference)
        if not batch.groups[0].branch_starts:
            return batch
        positions = batch.positions.clone()
        positions[0, :, batch.groups[0].branch_starts[1] :] += 3
        return dataclasses.replace(batch, positions=positions)

    loaded, dataset, row = setup
    monkeypatch.setattr(audit, "build_batch", shifted)
    engine = Engine()
    module = engine.prepare(RowLoss(loaded.model, loaded.family))
    with pytest.raises(RunError, match="differs from its separate samples"):
        audit_sharing(engine, module, row, dataset, loaded, "token")
