"""Pairs in shared rows learn what separate samples say that they should; the losses are papers'."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pairs import pair_pages
from tiny import make_model

from foveal.adapt.adapters import without_adapters
from foveal.adapt.strategy import assign, rules_of
from foveal.config import LoraSettings, PreferenceSettings
from foveal.data.batch import build_batch
from foveal.data.dataset import read_dataset
from foveal.data.forward_inputs import Pairs
from foveal.data.row_planning.groups import Group, Row
from foveal.data.rows import RowPlanner
from foveal.train.engines.one_process import Engine
from foveal.train.loss import RowLoss
from foveal.train.objective import Preferences, pair_losses
from foveal.train.step import backward_rows

SAME = 1e-5
LOSSES = {
    "dpo": PreferenceSettings(beta=0.3),
    "dpo+answers": PreferenceSettings(beta=0.3, answer_weight=0.7),
    "cdpo": PreferenceSettings(loss="cdpo", beta=0.3, label_smoothing=0.2),
    "ipo": PreferenceSettings(loss="ipo", beta=0.3),
    "orpo": PreferenceSettings(loss="orpo", beta=0.3),
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"))


def pair(chosen: float, rejected: float, of: tuple[float, float], lengths=(2, 4)):
    pairs = Pairs(lengths, torch.tensor([0]), torch.tensor([1]), torch.tensor(of), (0, 1))
    return torch.tensor([chosen, rejected]), pairs


def test_losses_are_those_that_are_worked_out_by_hand():
    # The chosen answer gained 1 nat over 2 tokens, the rejected one lost 2 over 4: h = 3.
    policy, pairs = pair(-3.0, -10.0, (-4.0, -8.0))

    def loss(name, **more):
        return pair_losses(policy, pairs, PreferenceSettings(loss=name, beta=0.5, **more)).item()

    against, with_it = math.log(1 + math.exp(-1.5)), math.log(1 + math.exp(1.5))
    assert loss("dpo") == pytest.approx(against)
    assert loss("cdpo", label_smoothing=0.1) == pytest.approx(0.9 * against + 0.1 * with_it)
    assert loss("ipo") == pytest.approx((0.5 - -0.5 - 1.0) ** 2, abs=1e-6)
    # Means of -1.5 and -2.5 nats: odds of p / (1 - p).
    odds = [math.exp(one) / (1 - math.exp(one)) for one in (-1.5, -2.5)]
    ratio = odds[0] / odds[1]
    assert loss("orpo") == pytest.approx(1.5 - 0.5 * math.log(ratio / (1 + ratio)))
    assert loss("dpo", answer_weight=2.0) == pytest.approx(against + 2 * 1.5)


@pytest.mark.parametrize("beta", [1e-6, 1e-2, 1.0, 1e4])
@pytest.mark.parametrize(("chosen", "rejected"), [(-3.0, -10.0), (-2000.25, -1.5), (-4.0, -8.0)])
def test_losses_of_any_beta_are_finite_and_right(beta, chosen, rejected):
    policy, pairs = pair(chosen, rejected, (-4.0, -8.0), (2, 40))
    policy.requires_grad_()
    gains = chosen + 4.0, rejected + 8.0
    height = beta * (gains[0] - gains[1])
    right, wrong = (max(one, 0.0) + math.log1p(math.exp(-abs(one))) for one in (-height, height))
    expected = {
        "dpo": right,
        "cdpo": 0.7 * right + 0.3 * wrong,
        "ipo": (gains[0] / 2 - gains[1] / 40 - 1 / (2 * beta)) ** 2,
    }
    for name, value in expected.items():
        smoothing = 0.3 if name == "cdpo" else 0.0
        how = PreferenceSettings(loss=name, beta=beta, label_smoothing=smoothing)
        total = pair_losses(policy, pairs, how).sum()
        (gradient,) = torch.autograd.grad(total, policy)
        assert total.item() == pytest.approx(value, rel=1e-5, abs=1e-30)
        assert gradient.isfinite().all()


def test_an_answer_that_is_certain_has_a_finite_orpo_loss_and_gradient():
    policy, pairs = pair(0.0, -50.0, (0.0, 0.0))
    policy.requires_grad_()
    total = pair_losses(policy, pairs, PreferenceSettings(loss="orpo")).sum()
    total.backward()
    assert math.isfinite(total.item())
    assert policy.grad.isfinite().all()


def rows_of(dataset, processor, reference, share, tokens_per_pass=100_000):
    plan = RowPlanner(
        dataset.sizes,
        examples_per_step=dataset.sizes.num_sets,
        tokens_per_pass=tokens_per_pass,
        share_images=share,
        long_context_tokens=processor.long_context_tokens,
    )
    rows = plan.step(0).ranks[0]
    return [build_batch(row, dataset, processor, reference=reference) for row in rows]


def step_of(loaded, dataset, reference, chosen, **how):
    """Loss, measures and gradients of one step that holds all pairs, and the tokens read."""
    loaded.model.zero_grad()
    rows = rows_of(dataset, loaded.processor, reference, **how)
    engine = Engine("float32", torch.device("cpu"))
    module = engine.prepare(RowLoss(loaded.model, loaded.family))
    seen = backward_rows(engine, module, rows, Preferences(chosen))
    return seen, gradients_of(loaded.model), sum(row.input_ids.numel() for row in rows)


def gradients_of(model):
    named = model.named_parameters()
    return {name: one.grad.clone() for name, one in named if one.grad is not None}


def separately(loaded, dataset, reference, chosen: PreferenceSettings):
    """The mean loss of all pairs, written plainly: each answer read by itself, its logits whole."""
    loaded.model.zero_grad()
    answers = []
    for place, encoded in enumerate(dataset.examples):
        alone = Row((Group((place,), int(dataset.sizes.tokens[place])),))
        batch = build_batch(alone, dataset, loaded.processor)
        module = RowLoss(loaded.model, loaded.family)
        kept = {}
        hook = loaded.model.model.register_forward_hook(
            lambda _module, _inputs, made, kept=kept: kept.update(states=made.last_hidden_state)
        )
        module(replace(batch, plainly=True))
        hook.remove()
        logits = loaded.model.lm_head(kept["states"][0]).double()
        learnt = torch.from_numpy(encoded.expand(shapes(dataset, place)).learnt)
        ids = batch.input_ids[0]
        each = logits.log_softmax(-1)[:-1].gather(1, ids[1:, None])[:, 0]
        answers.append(each[learnt[1:]])
    sums = [one.sum() for one in answers]
    gains = [one - before for one, before in zip(sums, reference.tolist(), strict=True)]
    starts = dataset.sizes.sets.tolist()
    losses = [
        one_loss(chosen, answers, gains, first, worse)
        for first, end in pairwise(starts)
        for worse in range(first + 1, end)
    ]
    mean = torch.stack(losses).mean()
    mean.backward()
    return mean.item(), gradients_of(loaded.model)


def one_loss(chosen, answers, gains, better, worse):
    margin = gains[better] - gains[worse]
    answer = -answers[better].mean()
    if chosen.loss == "orpo":
        p, q = (answers[one].mean().exp() for one in (better, worse))
        ratio = (p / (1 - p)) / (q / (1 - q))
        return answer - chosen.beta * torch.log(ratio / (1 + ratio))
    if chosen.loss == "ipo":
        each = gains[better] / len(answers[better]) - gains[worse] / len(answers[worse])
        loss = (each - 1 / (2 * chosen.beta)) ** 2
    else:
        right, wrong = (F.softplus(sign * chosen.beta * margin) for sign in (-1, 1))
        loss = (1 - chosen.label_smoothing) * right + chosen.label_smoothing * wrong
    return loss + chosen.answer_weight * answer


def shapes(dataset, place):
    return [dataset.images[number].shape for number in dataset.image_numbers(place)]


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        if not name.endswith("k_proj.bias"):  # zero but for rounding
            assert float((ours[name] - gradient).norm()) < 2 * SAME * float(gradient.norm()), name


def drawn_reference(dataset, seed=0):
    """Log-probabilities of a model that is not the one that learns."""
    drawn = torch.Generator().manual_seed(seed)
    return (-20 - 100 * torch.rand(len(dataset.examples), generator=drawn)).numpy()


@pytest.mark.parametrize("loss", LOSSES)
def test_pairs_of_a_shared_row_learn_what_separate_samples_do(tmp_path, loaded, loss):
    file = pair_pages(tmp_path, 2, 4, rejected=2)
    _, dataset = read_dataset(file, loaded.processor, pairs=True)
    reference = drawn_reference(dataset)
    mean, gradients = separately(loaded, dataset, reference, LOSSES[loss])
    seen, ours, read = step_of(loaded, dataset, reference, LOSSES[loss], share=True)
    assert seen.loss == pytest.approx(mean, rel=SAME)
    assert_same(ours, gradients)
    apart, others, read_apart = step_of(loaded, dataset, reference, LOSSES[loss], share=False)
    assert apart.loss == pytest.approx(mean, rel=SAME)
    assert_same(others, gradients)
    assert read < 0.6 * read_apart


@settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    places=st.lists(st.integers(0, 3), min_size=1, max_size=3),
    images=st.integers(0, 2),
    rejected=st.integers(1, 2),
    tokens_per_pass=st.sampled_from([60, 300, 1000]),
)
def test_however_pairs_are_cut_a_step_is_the_mean_of_its_pairs(
    tmp_path_factory, loaded, places, images, rejected, tokens_per_pass
):
    place = tmp_path_factory.mktemp("data")
    file = pair_pages(place, 2, len(places), "p", images, rejected, places)
    _, dataset = read_dataset(file, loaded.processor, pairs=True)
    reference = drawn_reference(dataset)
    mean, gradients = separately(loaded, dataset, reference, LOSSES["dpo"])
    for share in (True, False):
        seen, ours, _ = step_of(
            loaded, dataset, reference, LOSSES["dpo"], share=share, tokens_per_pass=tokens_per_pass
        )
        assert seen.loss == pytest.approx(mean, rel=SAME)
        assert_same(ours, gradients)


def test_a_step_says_how_its_pairs_stand(tmp_path, loaded):
    _, dataset = read_dataset(pair_pages(tmp_path, 2, 2), loaded.processor, pairs=True)
    reference = drawn_reference(dataset)
    seen, _, _ = step_of(loaded, dataset, reference, LOSSES["dpo"], share=True)
    with torch.no_grad():
        alone = [
            RowLoss(loaded.model, loaded.family)(
                build_batch(Row((Group((one,), int(tokens)),)), dataset, loaded.processor)
            ).item()
            for one, tokens in enumerate(dataset.sizes.tokens)
        ]
    gains = [one - before for one, before in zip(alone, reference.tolist(), strict=True)]
    margins = [better - worse for better, worse in zip(gains[::2], gains[1::2], strict=True)]
    assert seen.measures["margin"] == pytest.approx(sum(margins) / 4, rel=1e-4)
    assert seen.measures["preferred"] == sum(one > 0 for one in margins) / 4
    assert seen.measures["chosen_log_probability"] == pytest.approx(sum(alone[::2]) / 4, rel=1e-4)
    assert seen.measures["rejected_log_probability"] == pytest.approx(
        sum(alone[1::2]) / 4, rel=1e-4
    )
    assert seen.measures["distance"] == pytest.approx(sum(map(abs, gains)) / 8, rel=1e-4)


def test_without_its_adapters_a_model_answers_as_it_did_before_and_keeps_what_learns(tmp_path):
    loaded = make_model(tmp_path / "model")
    _, dataset = read_dataset(pair_pages(tmp_path, 1, 1), loaded.processor, pairs=True)
    (batch,) = rows_of(dataset, loaded.processor, None, True)
    module = RowLoss(loaded.model, loaded.family)
    with torch.no_grad():
        before = module(batch)
        rules = rules_of("lora")
        assign(loaded.model, loaded.family, rules, 1e-3, 0.0, LoraSettings(rank=4, alpha=8))
        for name, one in loaded.model.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(one, std=0.02)
        learning = [one.requires_grad for one in loaded.model.parameters()]
        with without_adapters(loaded.model):
            assert module(batch).tolist() == before.tolist()
            assert [one.requires_grad for one in loaded.model.parameters()] == learning
        assert (module(batch) - before).abs().max() > 0.01
    assert [one.requires_grad for one in loaded.model.parameters()] == learning
