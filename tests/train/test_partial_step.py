"""The last step of a pass, which has fewer examples than the others: weighed as itself."""

import pytest
import torch
from small_runs import metrics, recipe, run
from tiny import make_model, turn, write_data
from torch.nn.functional import cross_entropy

from foveal.data.dataset import read_dataset


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Six questions in words, with answers of one to six words."""
    place = tmp_path_factory.mktemp("place")
    make_model(place / "model")
    asked = [[turn(f"Count to {most}.", "word " * most + "end")] for most in range(1, 7)]
    write_data(place / "train.jsonl", asked)
    return place


def by_hand(place, chosen, weighting):
    """Loss and norm of the gradient of a step, each example by itself and in float64."""
    loaded = make_model(place / "model")
    _, dataset = read_dataset(place / "train.jsonl", loaded.processor)
    loaded.model.double().train()
    sums, counts = [], []
    for one in (dataset.examples[number] for number in chosen):
        ids, learnt = torch.tensor(one.entries), torch.tensor(one.learnt)
        logits = loaded.model(input_ids=ids[None].long()).logits[0]
        sums.append(
            cross_entropy(logits[:-1][learnt[1:]], ids[1:][learnt[1:]].long(), reduction="sum")
        )
        counts.append(int(learnt[1:].sum()))
    if weighting == "token":
        loss = sum(sums) / sum(counts)
    else:
        loss = sum(total / count for total, count in zip(sums, counts, strict=True)) / len(sums)
    loss.backward()
    gradients = [one.grad.norm() for one in loaded.model.parameters() if one.grad is not None]
    return loss.item(), torch.stack(gradients).norm().item()


@pytest.mark.parametrize("weighting", ["token", "example"])
def test_a_step_of_two_examples_is_the_mean_of_two_whatever_the_others_hold(place, weighting):
    chosen = recipe(
        place,
        weighting,
        data__order="as_is",
        train__epochs=1,
        train__learning_rate=1e-20,  # both steps see the model as it began
        train__loss_weighting=weighting,
    )
    run(chosen)
    first, last = metrics(place / weighting)
    assert (first["examples"], last["examples"]) == (4, 2)
    for line, examples in ((first, range(4)), (last, range(4, 6))):
        loss, norm = by_hand(place, examples, weighting)
        assert line["loss"] == pytest.approx(loss, rel=1e-5)
        assert line["gradient_norm"] == pytest.approx(norm, rel=1e-4)
