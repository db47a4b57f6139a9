"""Runs that learn preferences: the reference is of before the first step, and nothing is lost."""

import json
import math
import signal
from unittest.mock import patch

import numpy as np
import pytest
from daily import daily
from pairs import pair_pages
from rich.console import Console
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from small_runs import losses, metrics, recipe, run, run_until, same_bits, weights
from tiny import pages, write_model

from foveal.errors import DataError, RunError
from foveal.evaluate.prediction import read_predictions, read_scores
from foveal.run import TrainingRun
from foveal.train import checkpoint
from foveal.train import reference_answers as reference_module
from foveal.train.reference_answers import REFERENCE, VALUES


@pytest.fixture
def place(tmp_path):
    write_model(tmp_path / "model")
    pair_pages(tmp_path, 3, 3, "train")
    pair_pages(tmp_path, 2, 2, "validation")
    return tmp_path


def preferring(place, name="run", **changes):
    loss = changes.pop("loss", "dpo")
    more = {"label_smoothing": 0.2} if loss == "cdpo" else {}
    return recipe(
        place, name, objective="preferences", preference={"loss": loss, **more}, **changes
    )


def known(run_folder):
    return load_file(run_folder / REFERENCE)[VALUES].numpy()


@pytest.mark.parametrize("strategy", daily("full", beside=["lora"]))
def test_the_first_loss_is_log_2_and_the_last_is_lower(place, strategy):
    folder = run(preferring(place, strategy=strategy)).run
    lines = metrics(folder)
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert lines[0]["margin"] == pytest.approx(0, abs=1e-4)
    assert lines[0]["distance"] == pytest.approx(0, abs=1e-4)
    assert lines[0]["examples"] == 4
    assert lines[-1]["loss"] < 0.2
    assert lines[-1]["preferred"] == 1
    assert lines[-1]["distance"] > 1


@pytest.mark.parametrize(
    ("loss", "first"), [("cdpo", math.log(2)), ("ipo", 25.0)], ids=["cdpo", "ipo"]
)
def test_other_losses_begin_where_their_papers_say(place, loss, first):
    folder = run(preferring(place, loss=loss, train__max_steps=1)).run
    assert losses(folder)[0] == pytest.approx(first, rel=1e-5)


def test_orpo_needs_no_reference(place):
    folder = run(preferring(place, loss="orpo", train__max_steps=2)).run
    assert not (folder / REFERENCE).exists()
    assert "distance" not in metrics(folder)[0]


def test_sharing_images_does_not_change_the_losses(place):
    run(preferring(place, "shared"))
    run(preferring(place, "separate", data__share_images=False))
    assert losses(place / "shared") == pytest.approx(losses(place / "separate"), rel=1e-4)
    np.testing.assert_allclose(known(place / "shared"), known(place / "separate"), rtol=1e-5)


@pytest.mark.parametrize("strategy", daily("full", beside=["lora"]))
def test_a_killed_run_ends_with_the_same_bits_as_an_uninterrupted_one(place, strategy):
    run(preferring(place, "whole", strategy=strategy))
    run_until(TrainingRun(preferring(place, "killed", strategy=strategy), Console(quiet=True)), 3)
    # Without its file too, what is compared with is the model of before the first step.
    (place / "killed" / REFERENCE).unlink()
    run(preferring(place, "killed", strategy=strategy))
    assert same_bits(weights(place / "whole"), weights(place / "killed"))
    assert losses(place / "whole") == losses(place / "killed")
    assert known(place / "whole").tolist() == known(place / "killed").tolist()


def test_a_reference_that_was_broken_off_is_gone_on_with(place):
    whole = run(preferring(place, "whole", train__max_steps=3)).run
    read, original = [], reference_module._read_row

    def stopping(engine, loss, batch):
        read.append(batch.pairs.examples)
        if len(read) == 2:
            signal.raise_signal(signal.SIGTERM)
        return original(engine, loss, batch)

    with patch.object(reference_module, "_read_row", stopping):
        outcome = run(preferring(place, "stopped", train__max_steps=3))
        assert outcome.stopped is not None
        before = len(read)
        assert np.isnan(known(place / "stopped")).any()
        run(preferring(place, "stopped", train__max_steps=3))
    again = {one for examples in read[before:] for one in examples}
    assert again.isdisjoint(one for examples in read[:before] for one in examples)
    assert known(place / "stopped").tolist() == known(whole).tolist()


def test_a_disk_that_takes_no_reference_is_one_line(place, monkeypatch):
    def full(*_):
        raise SafetensorError("No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(RunError, match=rf"cannot write to .*{REFERENCE}: No space .*; free space"):
        run(preferring(place, train__max_steps=1))
    assert not list((place / "run").glob(f"*{REFERENCE}*"))


def test_a_reference_of_other_data_or_weights_is_made_again(place):
    first = known(run(preferring(place, "first", train__max_steps=1)).run)
    write_model(place / "model-2", 1)
    (place / "second").mkdir()
    (place / "second" / REFERENCE).write_bytes((place / "first" / REFERENCE).read_bytes())
    run(preferring(place, "second", train__max_steps=1, model=str(place / "model-2")))
    assert losses(place / "second")[0] == pytest.approx(math.log(2), abs=1e-6)
    assert known(place / "second").tolist() != first.tolist()


def test_only_what_the_run_shows_is_read_before_it(place):
    folder = run(preferring(place, train__max_steps=1)).run
    assert np.isfinite(known(folder)).sum() == 8


def test_a_run_says_so_where_what_learns_is_not_what_is_compared_with(place, capsys):
    first = run(preferring(place, "first", train__max_steps=1)).run
    with safe_open(first / REFERENCE, "pt") as file:
        key = file.metadata()
    (place / "run").mkdir()
    values = load_file(first / REFERENCE)[VALUES]
    values[::2] += 1  # as if of weights that had learnt already
    save_file({VALUES: values}, place / "run" / REFERENCE, key)
    TrainingRun(preferring(place, train__max_steps=1), Console()).go()
    said = " ".join(capsys.readouterr().out.split())
    assert "the loss of a pair is 0.7444, where untouched weights give 0.6931" in said


def test_validation_pairs_are_scored_before_and_after(place):
    chosen = preferring(place, data__validation=str(place / "validation.jsonl"), train__epochs=3)
    folder = run(chosen).run
    before, after = (
        read_scores(folder / "evaluation" / one / "scores.json") for one in ("before", "after")
    )
    assert before["preferred"].count == after["preferred"].count == 4
    assert after["preferred"].value >= before["preferred"].value
    for prediction in read_predictions(folder / "evaluation" / "after" / "predictions.jsonl"):
        assert len(prediction.compared) == 2
        assert prediction.scores["preferred"] == (prediction.compared[0] > prediction.compared[1])
    page = (folder / "report.html").read_text()
    for title in ("Margin", "Log-probability of chosen answers", "Distance of an answer"):
        assert title in page


def test_another_preference_is_another_run(place):
    run(preferring(place, train__max_steps=1))
    for name, before, now in (("loss", "dpo", "ipo"), ("beta", 0.1, 0.2), ("answer_weight", 0, 1)):
        changed = preferring(place, train__max_steps=2)
        preference = changed.preference.model_copy(update={name: now})
        said = rf"preference\.{name} was {before!r}.*, is {now!r}"
        with pytest.raises(RunError, match=said):
            run(changed.model_copy(update={"preference": preference}))


def test_in_16_bits_the_first_loss_is_log_2_too(place, capsys):
    TrainingRun(preferring(place, precision="bf16", train__max_steps=1), Console()).go()
    assert losses(place / "run")[0] == pytest.approx(math.log(2), abs=1e-6)
    assert known(place / "run").dtype == np.float32
    assert "where untouched weights give" not in capsys.readouterr().out


def test_a_file_without_rejected_answers_is_refused_by_its_line(place):
    pages(place, 1, 1, "train")
    with pytest.raises(DataError, match=r'train\.jsonl:1 .*no turn has a "rejected" answer'):
        run(preferring(place))


def test_a_run_of_answers_writes_down_what_it_always_has(place):
    folder = run(recipe(place, train__max_steps=1)).run
    stored = json.loads((folder / "checkpoints" / "step-1" / "state.json").read_text())
    assert not any(name.startswith(("objective", "preference")) for name in stored["recipe"])
    assert not (folder / REFERENCE).exists()
