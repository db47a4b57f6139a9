"""Our class in transformers' own Trainer learns what our loss says."""

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from published import make_config
from torch.nn.functional import log_softmax
from transformers import Trainer, TrainingArguments

from foveal.models.phi3_vision import Phi3VisionForConditionalGeneration

LABELS = [[-100, -100, 5, 7, 9, -100]]
SMOOTHING = 0.1


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Phi3VisionForConditionalGeneration(make_config())


def by_hand(model, inputs, smoothing):
    """Label smoothing over each next token that is to be learnt, word by word."""
    with torch.no_grad():
        numbers = log_softmax(model(input_ids=inputs["input_ids"]).logits[0].double(), -1)
    losses = [
        (1 - smoothing) * -numbers[place - 1, label] + smoothing * -numbers[place - 1].mean()
        for place, label in enumerate(LABELS[0])
        if label != -100
    ]
    assert len(losses) == 3
    return math.fsum(map(float, losses)) / len(losses)


# peft asks transformers for a name that it is about to lose.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("smoothing", [0.0, SMOOTHING])
@pytest.mark.parametrize("adapted", [False, True])
def test_its_labels_are_shifted_with_and_without_smoothing(model, tmp_path, smoothing, adapted):
    inputs = {
        "input_ids": torch.tensor([[1, 32010, 5, 7, 9, 32007]]),
        "labels": torch.tensor(LABELS),
    }
    expected = by_hand(model, inputs, smoothing)
    if adapted:
        model = get_peft_model(model, LoraConfig(target_modules=["o_proj"]))
    settings = TrainingArguments(
        str(tmp_path), label_smoothing_factor=smoothing, use_cpu=True, report_to=[]
    )
    loss = Trainer(model, settings).compute_loss(model, dict(inputs))
    assert loss.item() == pytest.approx(expected, rel=1e-5)
