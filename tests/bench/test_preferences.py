"""Our losses of pairs are TRL's, number by number, where TRL has them; it need not be installed."""

import importlib.util
import sys
import warnings
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from pairs import pair_pages
from tiny import make_model

from foveal.config import PreferenceSettings
from foveal.data.batch import build_batch
from foveal.data.dataset import read_dataset
from foveal.data.rows import RowPlanner
from foveal.train.engines.one_process import Engine
from foveal.train.loss import RowLoss
from foveal.train.objective import Preferences, pair_losses
from foveal.train.step import backward_rows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not importlib.util.find_spec("trl"), reason="TRL is not installed"),
    pytest.mark.filterwarnings("ignore"),  # of TRL and what it imports
]

SAME = 1e-5


@pytest.fixture(scope="module")
def benchmark():
    folder = Path(__file__).parents[2] / "benchmarks"
    sys.path.insert(0, str(folder))
    try:
        import preferences

        return preferences
    finally:
        sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    place = tmp_path_factory.mktemp("data")
    loaded = make_model(place / "model")
    files = [pair_pages(place, 2, 3, "many", 2), pair_pages(place, 1, 1, "one", 2, 1, (1,))]
    many, alone = (read_dataset(file, loaded.processor, pairs=True)[1] for file in files)
    before = deepcopy(loaded.model)
    torch.manual_seed(1)
    with torch.no_grad():  # as if the policy had learnt already
        for one in before.parameters():
            one.add_(0.02 * torch.randn_like(one))
    return loaded, before, {"many": many, "one": alone}


def rows_of(loaded, dataset, reference=None):
    plan = RowPlanner(
        dataset.sizes, examples_per_step=dataset.sizes.num_sets, tokens_per_pass=100_000
    )
    rows = plan.step(0).ranks[0]
    return [build_batch(row, dataset, loaded.processor, reference=reference) for row in rows]


def likelihoods(model, loaded, dataset):
    found = np.zeros(len(dataset.examples), np.float32)
    with torch.no_grad():
        for batch in rows_of(loaded, dataset):
            found[list(batch.pairs.examples)] = RowLoss(model, loaded.family)(batch).numpy()
    return found


@pytest.mark.parametrize(
    ("pairs", "ours", "theirs"),
    [
        ("many", PreferenceSettings(beta=0.3), {"loss_type": ["sigmoid"]}),
        ("many", PreferenceSettings(loss="ipo", beta=0.3), {"loss_type": ["ipo"]}),
        # Of a single pair alone: theirs sorts the gains of all pairs, which changes nothing then.
        (
            "one",
            PreferenceSettings(loss="cdpo", beta=0.3, label_smoothing=0.2),
            {"loss_type": ["aot"], "label_smoothing": 0.2},
        ),
        # Theirs is a mean over the tokens of all answers, ours of each answer, as in RPO's paper.
        (
            "one",
            PreferenceSettings(beta=0.3, answer_weight=0.7),
            {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7]},
        ),
    ],
    ids=["dpo", "ipo", "cdpo", "dpo and answers"],
)
def test_loss_and_gradients_are_those_of_trls_trainer(
    tmp_path, benchmark, case, pairs, ours, theirs
):
    from datasets import Dataset as Table
    from trl import DPOConfig, DPOTrainer

    loaded, before, datasets = case
    dataset = datasets[pairs]
    policy, reference = deepcopy(loaded.model), deepcopy(before)
    for one in (policy, reference):
        one.set_attn_implementation("sdpa")
    listed = benchmark.PairList(dataset, list(range(dataset.sizes.num_sets)))
    trainer = DPOTrainer(
        model=policy,
        ref_model=reference,
        args=DPOConfig(
            output_dir=str(tmp_path),
            beta=ours.beta,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            max_length=None,
            **theirs,
        ),
        train_dataset=Table.from_list(
            [{"images": ["x"], "prompt": "x", "chosen": "x", "rejected": "x"}]
        ),
        processing_class=loaded.processor,
        data_collator=benchmark.PairCollator(dataset, loaded.processor),
    )
    inputs = trainer.data_collator([listed[place] for place in range(len(listed))])
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    expected = {name: one.grad for name, one in policy.named_parameters() if one.grad is not None}
    known = likelihoods(before, loaded, dataset)
    engine = Engine("float32", torch.device("cpu"))
    loaded.model.zero_grad()
    module = engine.prepare(RowLoss(loaded.model, loaded.family))
    seen = backward_rows(engine, module, rows_of(loaded, dataset, known), Preferences(ours))
    assert seen.loss == pytest.approx(loss.item(), rel=SAME)
    gradients = {name: one.grad for name, one in loaded.model.named_parameters()}
    for name, gradient in expected.items():
        if not name.endswith("k_proj.bias") and gradient.norm():
            assert float((gradients[name] - gradient).norm() / gradient.norm()) < SAME, name


def test_the_odds_of_orpo_are_those_of_trl(case):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.experimental.orpo import ORPOTrainer

    loaded, _, datasets = case
    (batch,) = rows_of(loaded, datasets["many"])
    with torch.no_grad():
        policy = RowLoss(loaded.model, loaded.family)(batch)
    means = policy / policy.new_tensor(batch.pairs.lengths)
    chosen, rejected = means[batch.pairs.chosen], means[batch.pairs.rejected]

    class Asked:
        beta = 0.3
        accelerator = type("Accelerator", (), {"device": torch.device("cpu")})

    odds = ORPOTrainer.odds_ratio_loss(Asked, chosen, rejected)[0]
    ours = pair_losses(policy, batch.pairs, PreferenceSettings(loss="orpo", beta=0.3))
    torch.testing.assert_close(ours, -chosen - odds, rtol=SAME, atol=SAME)
