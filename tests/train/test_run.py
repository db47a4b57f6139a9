"""Runs from a recipe to a report, stopped and resumed, to the bit."""

import json
import resource
import shutil
import signal
import subprocess
import sys

import pytest
import yaml
from daily import daily
from devices import CPU, places
from rich.console import Console
from small_runs import losses, metrics, recipe, run, run_until, same_bits, weights
from tiny import write_data, write_model

from foveal.config import Recipe
from foveal.errors import ConfigError, RunError
from foveal.run import TrainingRun, check_recipe
from foveal.train.checkpoint import checkpoints

SIGNALLED = """
import os, sys
from foveal.cli import main
from foveal.train.records.log import RunLog
step, sent, write = int(sys.argv[1]), int(sys.argv[2]), RunLog.write
def signalled(log, taken, *rest):
    write(log, taken, *rest)
    if taken == step:
        os.kill(os.getpid(), sent)
RunLog.write = signalled
del sys.argv[1:3]
main()
"""


def test_a_run_leaves_a_whole_folder_and_learns(place):
    outcome = run(recipe(place, data__validation=str(place / "validation.jsonl")))
    folder = outcome.run
    assert losses(folder)[-1] < losses(folder)[0] - 1
    assert [line["step"] for line in metrics(folder)] == [1, 2, 3, 4, 5, 6]
    assert set(metrics(folder)[0]) == {
        "step",
        "loss",
        "learning_rate",
        "gradient_norm",
        "tokens",
        "examples",
        "images",
        "seconds",
        "memory_bytes",
    }
    for name in (
        "recipe.yaml",
        "machine.json",
        "report.html",
        "final/config.json",
        "evaluation/before/scores.json",
        "evaluation/before/predictions.jsonl",
        "evaluation/after/scores.json",
    ):
        assert (folder / name).is_file(), name
    assert any((folder / "events").iterdir())
    assert outcome.after is not None
    assert outcome.after["accuracy"].count == 4


def test_a_run_writes_down_what_it_learnt_from_and_the_memory_it_took(place):
    folder = run(recipe(place, train__max_steps=2)).run
    facts = json.loads((folder / "data.json").read_text())
    assert list(facts) == ["training"]
    assert (facts["training"]["examples"], facts["training"]["pictures"]) == (12, 4)
    stored = json.loads((folder / "checkpoints" / "step-2" / "state.json").read_text())
    assert facts["training"]["fingerprint"] == stored["data_fingerprint"]
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for line in metrics(folder):  # torch alone takes 100 MB
        assert 1e8 < line["memory_bytes"] <= 1024 * kilobytes


def test_a_resolved_recipe_is_a_recipe(place):
    run(recipe(place, train__max_steps=1))
    stored = yaml.safe_load((place / "run" / "recipe.yaml").read_text())
    assert Recipe.model_validate(stored).train.max_steps == 1


@pytest.mark.parametrize("strategy", daily("full", beside=["lora"]))
@pytest.mark.parametrize("on", places(["float32"], ["float32", "bf16"]))
def test_a_killed_run_ends_with_the_same_bits_as_an_uninterrupted_one(place, strategy, on):
    device, precision = on
    changes = {"strategy": strategy, "precision": precision}
    changes["train__deterministic"] = device != CPU  # whose kernels add in one order by themselves
    run(recipe(place, "whole", **changes))
    for stop in (2, 4):  # as if killed after these steps: nothing of the process remains
        killed = TrainingRun(recipe(place, "killed", **changes), Console(quiet=True))
        run_until(killed, stop)
    run(recipe(place, "killed", **changes))
    assert same_bits(weights(place / "whole"), weights(place / "killed"))
    assert losses(place / "whole") == losses(place / "killed")


@pytest.mark.parametrize(("workers", "stops"), daily((2, (2, 4)), beside=[(4, ())]))
def test_worker_processes_do_not_change_the_bits_of_a_run_however_often_it_stops(
    place, workers, stops
):
    run(recipe(place, "plain", train__max_steps=5))
    chosen = recipe(place, "other", train__max_steps=5, data__workers=workers)
    for stop in stops:
        run_until(TrainingRun(chosen, Console(quiet=True)), stop)
    run(chosen)
    assert losses(place / "plain") == losses(place / "other")
    assert same_bits(weights(place / "plain"), weights(place / "other"))


def test_sharing_images_does_not_change_the_losses(place):
    run(recipe(place, "shared"))
    run(recipe(place, "separate", data__share_images=False))
    assert losses(place / "shared") == pytest.approx(losses(place / "separate"), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"train__learning_rate": 2e-2}, "train.learning_rate was 0.01, is 0.02"),
        ({"strategy": "frozen_vision"}, "strategy was 'full'"),
    ],
)
def test_a_changed_recipe_is_not_resumed(place, changes, named):
    run(recipe(place, train__max_steps=2))
    with pytest.raises(RunError, match="belongs to another run") as refused:
        run(recipe(place, train__max_steps=2, **changes))
    assert named in str(refused.value)


def test_changed_data_is_not_resumed(place):
    run(recipe(place, train__max_steps=2))
    lines = (place / "train.jsonl").read_text().replace("It is 00.", "It is 99.")
    (place / "train.jsonl").write_text(lines)
    with pytest.raises(RunError, match="training data changed"):
        run(recipe(place, train__max_steps=2))


def test_a_changed_model_is_not_resumed(place):
    run(recipe(place, train__max_steps=2))
    shutil.rmtree(place / "model")
    write_model(place / "model", 1)
    with pytest.raises(RunError, match="the model to start from has other weights"):
        run(recipe(place, train__max_steps=2))


def test_fresh_starts_anew_and_keeps_the_old_run(place):
    run(recipe(place, train__max_steps=2))
    run(recipe(place, train__max_steps=2, train__learning_rate=2e-2), fresh=True)
    assert (place / "run.before-1" / "metrics.jsonl").exists()
    assert len(losses(place / "run")) == 2


def test_only_the_newest_checkpoints_are_kept(place):
    run(recipe(place, train__save_every_steps=1, train__keep_checkpoints=2))
    names = [one.name for one in checkpoints(place / "run" / "checkpoints")]
    assert names == ["step-5", "step-6"]


def test_a_half_written_checkpoint_is_never_taken_for_a_whole_one(place):
    run(recipe(place, "whole"))
    killed = TrainingRun(recipe(place, "killed"), Console(quiet=True))
    run_until(killed, 3)
    torn = place / "killed" / "checkpoints" / ".step-3.part"
    torn.mkdir()
    (torn / "weights.safetensors").write_bytes(b"half")
    run(recipe(place, "killed"))
    assert same_bits(weights(place / "whole"), weights(place / "killed"))


@pytest.mark.slow
def test_a_signal_saves_and_ends_with_its_status_and_the_run_goes_on(place):
    long = {"train__epochs": 14, "train__save_every_steps": 1000}
    run(recipe(place, "whole", **long))
    text = yaml.safe_dump(recipe(place, "stopped", **long).model_dump(mode="json"))
    (place / "recipe.yaml").write_text(text)
    taken = 0
    for sent, status in ((signal.SIGTERM, 0), (signal.SIGINT, 130)):
        words = [str(taken + 3), str(sent.value), "train", str(place / "recipe.yaml")]
        done = subprocess.run(
            [sys.executable, "-c", SIGNALLED, *words],
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == status, done.stderr
        assert "goes on from there" in done.stderr
        assert taken < len(losses(place / "stopped")) < 42
        taken = len(losses(place / "stopped"))
        assert [one.name for one in checkpoints(place / "stopped" / "checkpoints")][-1:] == [
            f"step-{taken}"
        ]
    run(recipe(place, "stopped", **long))
    assert same_bits(weights(place / "whole"), weights(place / "stopped"))


def test_a_loss_that_is_not_finite_leaves_the_weights_alone_and_is_recorded(place):
    broken = recipe(place, train__learning_rate=1e30, train__max_bad_steps=2, train__epochs=8)
    with pytest.raises(RunError, match="not finite 2 times in a row"):
        run(broken)
    incidents = (place / "run" / "incidents.jsonl").read_text().splitlines()
    assert len(incidents) == 2
    assert json.loads(incidents[0])["examples"]


def test_flash_attention_goes_with_fp16_and_without_shared_rows(place):
    chosen = {"attention": "flash_attention_2", "precision": "fp16"}
    with pytest.raises(ConfigError, match=r"use attention=flex, or give data\.share_images=false"):
        run(recipe(place, **chosen))
    check_recipe(recipe(place, data__share_images=False, **chosen))
    assert not (place / "run").exists()


def test_empty_data_is_a_clear_error(place):
    write_data(place / "train.jsonl", [])
    with pytest.raises(Exception, match=r"train.jsonl: no examples; write one conversation"):
        run(recipe(place))
