"""What the training loss promises."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from foveal.train import loss as loss_module
from foveal.train.loss import answer_loss


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
