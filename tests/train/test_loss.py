"""What the training loss promises."""

import math

import pytest
import torch
from tiny import make_image, make_model, turn, write_data
from torch import nn
from torch.nn.functional import cross_entropy

from foveal.adapt.strategy import assign, rules_of
from foveal.config import LoraSettings
from foveal.data.batch import build_batch
from foveal.data.dataset import read_dataset
from foveal.data.row_planning.groups import Group, Row
from foveal.train import loss as loss_module
from foveal.train.learner import blank_pixels
from foveal.train.loss import RowLoss, answer_loss


def test_an_unsure_model_pays_log_vocab_for_each_target():
    head = nn.Linear(4, 8, bias=False)
    nn.init.zeros_(head.weight)
    total = answer_loss(torch.randn(3, 4), head, torch.tensor([1, 2, 7]), torch.ones(3))
    assert total.item() == pytest.approx(3 * math.log(8))


def test_a_weight_scales_its_targets_share():
    torch.manual_seed(0)
    head, hidden, targets = nn.Linear(4, 8), torch.randn(2, 4), torch.tensor([1, 2])
    first = answer_loss(hidden[:1], head, targets[:1], torch.ones(1))
    second = answer_loss(hidden[1:], head, targets[1:], torch.ones(1))
    both = answer_loss(hidden, head, targets, torch.tensor([0.5, 2.0]))
    torch.testing.assert_close(both, 0.5 * first + 2.0 * second)


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_chunks_change_neither_loss_nor_gradients(monkeypatch, chunk):
    torch.manual_seed(0)
    monkeypatch.setattr(loss_module, "POSITIONS_PER_CHUNK", chunk)
    head, hidden = nn.Linear(6, 11), torch.randn(7, 6, requires_grad=True)
    targets = torch.randint(0, 11, (7,))
    answer_loss(hidden, head, targets, torch.ones(7)).backward()
    plain = hidden.detach().clone().requires_grad_()
    weight = head.weight.detach().clone().requires_grad_()
    logits = plain @ weight.T + head.bias.detach()
    cross_entropy(logits, targets, reduction="sum").backward()
    torch.testing.assert_close(hidden.grad, plain.grad)
    torch.testing.assert_close(head.weight.grad, weight.grad)


def test_no_target_is_no_loss_but_still_a_graph():
    head, hidden = nn.Linear(4, 8), torch.randn(0, 4, requires_grad=True)
    total = answer_loss(hidden, head, torch.zeros(0, dtype=torch.long), torch.zeros(0))
    total.backward()
    assert total.item() == 0
    assert float(head.weight.grad.abs().sum()) == 0


def test_lengths_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match="3 states, 2 targets, 2 weights"):
        answer_loss(torch.zeros(3, 4), nn.Linear(4, 8), torch.zeros(2).long(), torch.ones(2))


def test_words_alone_ask_the_same_layers_for_gradients_as_pictures_do(tmp_path):
    # Where layers are cut over processes, one that is asked on one of them alone waits for ever.
    make_image(tmp_path / "images" / "0.png", 0)
    data = write_data(tmp_path / "d.jsonl", [[turn("What?", "It.", ["0.png"])], [turn("a", "b")]])
    loaded = make_model(tmp_path / "model")
    assign(loaded.model, loaded.family, rules_of("lora"), 1e-3, 0.0, LoraSettings(rank=4))
    _, dataset = read_dataset(data, loaded.processor)
    blank = blank_pixels(loaded.processor)
    loss, asked = RowLoss(loaded.model, loaded.family, blank), []
    loaded.model.model.layers[0].register_forward_pre_hook(
        lambda _, inputs: asked.append(inputs[0].requires_grad)
    )
    for example in range(2):
        row = Row((Group((example,), int(dataset.sizes.tokens[example])),))
        loss(build_batch(row, dataset, loaded.processor)).backward()
    assert asked == [True, True]
    with torch.no_grad():
        loss(build_batch(row, dataset, loaded.processor))
    assert asked[2] is False
