"""A run that an error or a signal ends has saved the steps that it took."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch
import yaml
from daily import daily
from launched import TORCHRUN, free_port
from rich.console import Console
from small_runs import losses, recipe, run, run_until, same_bits, weights
from tiny import make_image, make_model, turn, write_data

from foveal.errors import DataError, ModelError, RunError
from foveal.evaluate import evaluation
from foveal.run import TrainingRun
from foveal.train.checkpoint import checkpoints
from foveal.train.stop import mendable_failure

WINDOW = "max_position_embeddings"


def validated(place, name="run", **changes):
    rarely = {"train__save_every_steps": 1000, "train__evaluate_every_steps": 2}
    data = {"data__validation": str(place / "validation.jsonl")}
    return recipe(place, name, **rarely | data | changes)


def saved(run_folder):
    return [one.name for one in checkpoints(run_folder / "checkpoints")]


def after_step(monkeypatch, step, work):
    """Do something behind a step, as another program might."""
    from foveal.train.records.log import RunLog

    write = RunLog.write

    def writes(log, taken, *rest):
        write(log, taken, *rest)
        if taken == step:
            work()

    monkeypatch.setattr(RunLog, "write", writes)


def test_a_validation_picture_that_is_gone_costs_no_step(place, monkeypatch):
    run(validated(place, "whole"))
    image = place / "images" / "validation-0.png"
    content = image.read_bytes()
    after_step(monkeypatch, 1, image.unlink)
    with pytest.raises(DataError, match=r"validation-0\.png: No such file"):
        run(validated(place))
    assert saved(place / "run") == ["step-2"]
    monkeypatch.undo()
    image.write_bytes(content)
    run(validated(place))
    assert same_bits(weights(place / "run"), weights(place / "whole"))


def test_too_many_broken_pictures_cost_no_step_and_once_they_are_mended_it_goes_on(
    place, monkeypatch
):
    limits = {"train__save_every_steps": 1000, "data__max_bad_fraction": 0.1}
    images = [place / "images" / f"train-{number}.png" for number in range(4)]
    content = [image.read_bytes() for image in images]
    after_step(
        monkeypatch, 2, lambda: [one.write_bytes(one.read_bytes()[:-1500]) for one in images]
    )
    with pytest.raises(RunError, match="were left out for broken pictures"):
        run(recipe(place, **limits))
    assert saved(place / "run") == ["step-3"]
    monkeypatch.undo()
    for image, whole in zip(images, content, strict=True):
        image.write_bytes(whole)
    run(recipe(place, **limits))
    assert len(losses(place / "run")) == 6


def test_an_evaluation_that_is_not_finite_costs_no_step_and_names_the_layer(place, monkeypatch):
    chosen = validated(place)
    training = TrainingRun(chosen, Console(quiet=True))
    model = training.loaded.model
    usual = evaluation.predict

    def overflowing(loaded, *rest):
        if (place / "run" / "metrics.jsonl").exists():
            with torch.no_grad():
                model.lm_head.weight.mul_(float("inf"))
        return usual(loaded, *rest)

    monkeypatch.setattr(evaluation, "predict", overflowing)
    with pytest.raises(ModelError, match=r"language\.lm_head gives numbers that are not finite in"):
        training.go()
    assert saved(place / "run") == ["step-2"]
    assert not (place / "run" / "evaluation" / "step-2" / "scores.json").exists()


def test_a_model_without_numbers_is_refused_before_the_first_step_by_its_layer(place):
    model = make_model(place / "model").model
    with torch.no_grad():
        model.get_submodule("model.vision_embed_tokens.img_projection.0").weight.mul_(float("nan"))
    model.save_pretrained(place / "model")
    with pytest.raises(RunError, match=r"before the first step: projector\.img_projection\.0 "):
        run(recipe(place))


def test_a_validation_row_that_is_too_long_is_refused_before_the_first_step(place):
    config = json.loads((place / "model" / "config.json").read_text())
    (place / "model" / "config.json").write_text(json.dumps(config | {WINDOW: 400}))
    long = [[turn("Short?", "yes")], [turn("word " * 100, "yes")]]
    data = write_data(place / "long.jsonl", long)
    with pytest.raises(DataError, match=r"turn 0 of 'example-1': [\d]+ tokens of the prompt"):
        run(validated(place, data__validation=str(data)))
    assert not (place / "run" / "metrics.jsonl").exists()


def test_a_picture_too_elongated_for_crops_is_named(place):
    make_image(place / "images" / "train-2.png", 0, (4000, 1))
    with pytest.raises(DataError, match=r"train-2\.png: a picture of 4000 x 1 pixels is too elong"):
        run(recipe(place))


def test_a_picture_that_became_too_elongated_is_named_among_those_left_out(place, monkeypatch):
    image = place / "images" / "train-2.png"
    after_step(monkeypatch, 1, lambda: make_image(image, 0, (4000, 1)))
    run(recipe(place, data__max_bad_fraction=1))
    lines = (place / "run" / "incidents.jsonl").read_text().splitlines()
    assert "train-2.png: a picture of 4000 x 1" in json.loads(lines[0])["reason"]


@pytest.mark.parametrize("moment", daily("step-2", beside=["before", "after"]))
def test_a_signal_in_the_middle_of_an_evaluation_ends_it_soon_and_keeps_its_answers(
    place, monkeypatch, moment
):
    small = {"evaluate__tokens_per_batch": 40}
    run(validated(place, "whole", **small))
    usual = evaluation.append_predictions
    written = []

    def told(path, some):
        usual(path, some)
        written.extend(some)
        if path.parent.name == moment:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(evaluation, "append_predictions", told)
    outcome = run(validated(place, **small))
    step = {"before": 0, "step-2": 2, "after": 6}[moment]
    assert (outcome.stopped.signal, outcome.stopped.step) == (signal.SIGTERM, step)
    assert saved(place / "run")[-1:] == ([f"step-{step}"] if step else [])
    stopped_at = len(written)
    monkeypatch.undo()
    monkeypatch.setattr(
        evaluation, "append_predictions", lambda *both: (written.extend(both[1]), usual(*both))
    )
    run(validated(place, **small))
    assert 0 < stopped_at < len(written) == 16  # four questions, four times, none twice
    for name in ("before", "step-2", "step-4", "after"):
        ours, theirs = (
            (place / one / "evaluation" / name / "predictions.jsonl").read_text()
            for one in ("run", "whole")
        )
        assert ours == theirs


def test_validation_examples_that_are_training_examples_are_spoken_of(place):
    text = io.StringIO()
    copy = place / "elsewhere"
    (copy / "images").mkdir(parents=True)
    lines = (place / "train.jsonl").read_text().splitlines()
    (copy / "copy.jsonl").write_text("\n".join(lines[:4]).replace("example-", "other-"))
    for name in ("train-0.png", "train-1.png"):
        (copy / "images" / name).write_bytes((place / "images" / name).read_bytes())
    chosen = validated(place, data__validation=str(copy / "copy.jsonl"))
    TrainingRun(chosen, Console(file=text, width=1000))
    assert "4 of 4 validation examples are training examples too, such as other-0" in (
        text.getvalue()
    )
    for number in range(2):
        make_image(place / "images" / f"validation-{number}.png", 50 + number, (64, 48))
    text = io.StringIO()
    TrainingRun(validated(place), Console(file=text, width=1000))
    assert "validation examples" not in text.getvalue()


def signal_group(command, run_folder, taken, sent):
    """Start a run in a process group of its own, signal all of it, return its status and words."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    lines = run_folder / "metrics.jsonl"
    while process.poll() is None:
        if lines.exists() and lines.read_text().count("\n") > taken + 2:
            break
        time.sleep(0.01)
    os.killpg(process.pid, sent)
    _, said = process.communicate(timeout=120)
    return process.returncode, said


@pytest.mark.slow
def test_a_signal_to_every_process_of_the_group_saves(place):
    """As `timeout`, systemd and Slurm send it: to the workers that open pictures too."""
    long = {"train__epochs": 400, "train__save_every_steps": 10_000, "data__workers": 2}
    text = yaml.safe_dump(recipe(place, **long).model_dump(mode="json"))
    (place / "recipe.yaml").write_text(text)
    command = [sys.executable, "-m", "foveal.cli", "train", str(place / "recipe.yaml")]
    folder, taken = place / "run", 0
    for sent in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        status, said = signal_group(command, folder, taken, sent)
        assert (status, said.count("Traceback")) == (0, 0), said
        taken = len(losses(folder))
        assert saved(folder)[-1] == f"step-{taken}"
    halted = recipe(place, "whole", **long | {"data__workers": 0})
    run_until(TrainingRun(halted, Console(quiet=True)), taken)
    assert losses(place / "whole")[:taken] == losses(folder)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_under_torchrun_a_signal_to_the_group_saves(place, sent):
    long = {"train__epochs": 400, "train__save_every_steps": 10_000, "data__workers": 1}
    text = yaml.safe_dump(recipe(place, **long).model_dump(mode="json"))
    (place / "recipe.yaml").write_text(text)
    launcher = (*TORCHRUN, str(free_port()), "-m", "foveal.cli")
    command = [sys.executable, "-m", *launcher, "train", str(place / "recipe.yaml")]
    _, said = signal_group(command, place / "run", 0, sent)  # the status is torchrun's own
    assert "goes on from there" in said
    assert saved(place / "run") == [f"step-{len(losses(place / 'run'))}"]


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP])
def test_under_torchrun_a_signal_to_one_process_stops_all_and_is_said_once(place, sent):
    long = {"train__epochs": 400, "train__save_every_steps": 10_000}
    text = yaml.safe_dump(recipe(place, **long).model_dump(mode="json"))
    (place / "recipe.yaml").write_text(text)
    launcher = (*TORCHRUN, str(free_port()), "-m", "foveal.cli")
    command = [sys.executable, "-m", *launcher, "train", str(place / "recipe.yaml")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    lines = place / "run" / "metrics.jsonl"
    while not (lines.exists() and lines.read_text().count("\n") > 2):
        assert process.poll() is None
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = [one for one in children if b"\0RANK=1\0" in Path(f"/proc/{one}/environ").read_bytes()]
    os.kill(int(ranks[0]), sent)  # which is not the process that writes
    _, said = process.communicate(timeout=120)
    assert (process.returncode, said.count("goes on from there")) == (0, 1), said
    assert saved(place / "run") == [f"step-{len(losses(place / 'run'))}"]


@pytest.mark.slow
def test_worker_processes_end_with_their_run(place):
    long = {"train__epochs": 400, "train__save_every_steps": 10_000, "data__workers": 2}
    text = yaml.safe_dump(recipe(place, **long).model_dump(mode="json"))
    (place / "recipe.yaml").write_text(text)
    command = [sys.executable, "-m", "foveal.cli", "train", str(place / "recipe.yaml")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    lines = place / "run" / "metrics.jsonl"
    while not (lines.exists() and lines.read_text()):
        time.sleep(0.01)
    process.kill()
    process.wait()
    started = time.monotonic()
    while members(process.pid) and time.monotonic() - started < 60:
        time.sleep(0.1)
    assert members(process.pid) == []


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [(), pytest.param(TORCHRUN, marks=pytest.mark.slow)])
def test_an_error_in_mid_run_is_one_line_and_leaves_no_process(place, launcher):
    chosen = validated(place, data__workers=2, train__epochs=400)
    (place / "recipe.yaml").write_text(yaml.safe_dump(chosen.model_dump(mode="json")))
    start = ("-m", *launcher, str(free_port())) if launcher else ()
    command = [sys.executable, *start, "-m", "foveal.cli", "train", str(place / "recipe.yaml")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not (place / "run" / "metrics.jsonl").exists():
        time.sleep(0.01)
    (place / "images" / "validation-0.png").unlink()
    _, said = process.communicate(timeout=120)
    assert "foveal: " in said
    assert "validation-0.png: No such file" in said
    if not launcher:  # it has a traceback of its own
        assert (process.returncode, said.count("Traceback")) == (2, 0)
    assert members(process.pid) == []
    assert saved(place / "run")


def members(group):
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            fields = (place / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(place.name))
    return found


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset by peer"), EOFError()])
def test_a_worker_that_is_ended_while_it_hands_a_row_over_is_spoken_of_too(error, tmp_path):
    assert "a process that opens images was ended" in str(mendable_failure(error, tmp_path))


def test_a_worker_that_the_system_ends_is_spoken_of_in_one_line(place, monkeypatch):
    def end():
        for one in active_children():
            one.kill()
            os.waitid(os.P_PID, one.pid, os.WEXITED | os.WNOWAIT)  # until it is dead

    after_step(monkeypatch, 3, end)
    with pytest.raises(RunError, match="a process that opens images was ended") as ended:
        run(recipe(place, data__workers=1, train__epochs=20))
    assert "\n" not in str(ended.value)
    assert saved(place / "run") == ["step-2"]
