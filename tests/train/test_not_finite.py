"""A training step whose numbers are not finite names the first layer where they are not."""

import json
import math

import pytest
import torch
from daily import daily
from rich.console import Console
from small_runs import recipe

from foveal.errors import RunError
from foveal.run import TrainingRun
from foveal.train.records.log import RunLog


def spoiled_run(place, monkeypatch, spoil, **changes):
    """Spoil the model behind step 1; returns the incidents, and what ended the run."""
    training = TrainingRun(recipe(place, train__max_bad_steps=2, **changes), Console(quiet=True))
    write = RunLog.write

    def writes(log, taken, *rest):
        write(log, taken, *rest)
        if taken == 1:
            spoil(training.loaded.model)

    monkeypatch.setattr(RunLog, "write", writes)
    with pytest.raises(RunError, match="not finite 2 times in a row: ") as error:
        training.go()
    lines = (place / "run" / "incidents.jsonl").read_text().splitlines()
    return [json.loads(line)["cause"] for line in lines], str(error.value)


@pytest.mark.parametrize("precision", daily("float32", beside=["bf16", "fp16"]))
@pytest.mark.parametrize("strategy", ["full", "lora"])
def test_a_weight_that_is_no_number_is_named(place, monkeypatch, precision, strategy):
    def spoil(model):
        with torch.no_grad():
            layer = model.model.layers[1].mlp.down_proj
            getattr(layer, "base_layer", layer).weight[3, 3] = math.nan

    causes, said = spoiled_run(place, monkeypatch, spoil, precision=precision, strategy=strategy)
    assert len(causes) == 2
    for cause in causes:
        assert cause.startswith("language.layers.1.mlp.down_proj")
        assert f" gives numbers that are not finite in {precision}: its weights are not" in cause
    assert causes[1] in said


def test_where_a_gradient_alone_is_not_finite_the_block_nearest_to_the_loss_is_named(
    place, monkeypatch
):
    def spoil(model):
        model.model.layers[0].mlp.down_proj.register_full_backward_pre_hook(
            lambda _, gradients: (gradients[0] * math.inf,)
        )

    causes, _ = spoiled_run(place, monkeypatch, spoil)
    sentence = "the gradient of language.layers.0 is not finite; all layers' numbers are"
    assert [cause.startswith(sentence) for cause in causes] == [True, True]


def test_an_overflow_of_fp16_tells_the_scale(place, monkeypatch):
    original = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *_, **__: original("cpu", 2.0**40))
    causes, _ = spoiled_run(place, monkeypatch, lambda model: None, precision="fp16")
    assert "is not finite, with the loss multiplied by 1.09951e+12" in causes[0]
    assert "is not finite, with the loss multiplied by 5.49756e+11" in causes[1]
