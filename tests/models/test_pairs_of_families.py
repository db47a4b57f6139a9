"""Pairs are learnt by models of every route as answers that are read by themselves say."""

from dataclasses import replace

import pytest
import tiny_models_more  # noqa: F401  # enters its families
import torch
from pairs import pair_pages
from tiny_models import write_tiny

from foveal.config import PreferenceSettings
from foveal.data.batch import build_batch
from foveal.data.dataset import read_dataset
from foveal.data.row_planning.groups import Group, Row
from foveal.data.rows import RowPlanner
from foveal.models.loading import load
from foveal.train.loss import RowLoss
from foveal.train.objective import Preferences, pair_losses

CHOSEN = PreferenceSettings(beta=0.2, answer_weight=0.3)
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
ROUTES = {"qwen2_5_vl": "rows", "gemma3": "rows", "qwen3_5": "cache", "paligemma": "plain"}


def doubled(batch):
    pixels = {n: p.double() if p.is_floating_point() else p for n, p in batch.pixels.items()}
    return replace(batch, pixels=pixels)


def gradients_of(model):
    named = model.named_parameters()
    return {name: one.grad.clone() for name, one in named if one.grad is not None}


@pytest.mark.parametrize("name", ROUTES)
def test_rows_of_pairs_are_what_separate_answers_are(tmp_path, name, in_double):
    loaded = load(str(write_tiny(name, tmp_path / "model")), None, "blocks")
    assert loaded.family.route == ROUTES[name]
    model = loaded.model.double()  # what is left then is no rounding
    _, dataset = read_dataset(pair_pages(tmp_path, 2, 2, images=1), loaded.processor, pairs=True)
    count = len(dataset.examples)
    reference = (-5 - 3 * torch.rand(count, generator=torch.Generator().manual_seed(0))).numpy()
    loss = RowLoss(model, loaded.family)
    alone = ROUTES[name] == "plain"
    plan = RowPlanner(
        dataset.sizes,
        examples_per_step=4,
        tokens_per_pass=1 if alone else 10**6,
        share_images=not alone,
    )
    total = 0.0
    for row in plan.step(0).ranks[0]:
        batch = doubled(build_batch(row, dataset, loaded.processor, reference=reference))
        value = Preferences(CHOSEN).total(loss(batch), batch)
        value.backward()
        total += value.item()
    ours = gradients_of(model)
    model.zero_grad(set_to_none=True)
    said = []
    for place, tokens in enumerate(dataset.sizes.tokens.tolist()):
        row = Row((Group((place,), tokens),))
        batch = doubled(build_batch(row, dataset, loaded.processor, reference=reference))
        said.append((batch, loss(replace(batch, plainly=True))))
    answers = torch.cat([one for _, one in said])
    lengths = tuple(one.pairs.lengths[0] for one, _ in said)
    first = torch.arange(0, count, 2)
    pairs = replace(
        said[0][0].pairs,
        lengths=lengths,
        chosen=first,
        rejected=first + 1,
        reference=torch.from_numpy(reference),
    )
    whole = pair_losses(answers, pairs, CHOSEN).sum()
    whole.backward()
    assert total == pytest.approx(whole.item(), rel=1e-9)
    for weight, gradient in gradients_of(model).items():
        if not weight.endswith("k_proj.bias"):  # zero but for rounding
            difference = float((ours[weight] - gradient).norm())
            # Some models turn positions in float32 whatever they are asked.
            assert difference < 1e-6 * float(gradient.norm()) + 1e-9, weight
