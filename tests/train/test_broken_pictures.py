"""A picture that turns out broken in mid-run: its examples are left out, and nothing is hidden."""

import io
import json
from pathlib import Path

import pytest
from daily import daily
from rich.console import Console
from small_runs import recipe, same_bits, weights
from tiny import make_model, pages, write_model

from foveal.data.batch import build_batch
from foveal.data.dataset import read_dataset
from foveal.data.rows import RowPlanner
from foveal.errors import RunError
from foveal.run import TrainingRun


def break_image(path: Path) -> None:
    """Keep the header, lose the pixels."""
    path.write_bytes(path.read_bytes()[:-1500])


@pytest.fixture
def place(tmp_path):
    """Five pages with three questions each, the second one broken; and the same without it."""
    write_model(tmp_path / "model")
    pages(tmp_path, 5, 3, "train")
    break_image(tmp_path / "images" / "train-1.png")
    kept = [
        line
        for line in (tmp_path / "train.jsonl").read_text().splitlines(keepends=True)
        if "train-1.png" not in line
    ]
    (tmp_path / "rest.jsonl").write_text("".join(kept))
    return tmp_path


def train(place: Path, name: str, said: io.StringIO | None = None, **data) -> Path:
    chosen = recipe(
        place,
        name,
        **{f"data__{key}": value for key, value in data.items()},
        train__examples_per_step=15,
        train__tokens_per_pass=200,
        train__warmup_steps=0,
    )
    console = Console(file=said or io.StringIO(), width=200, force_terminal=True)
    return TrainingRun(chosen, console).go().run


def lines(run: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def test_a_run_learns_from_the_rest_and_names_what_it_left_out(place):
    said = io.StringIO()
    run = train(place, "broken", said, max_bad_fraction=0.2)
    rest = train(place, "rest", train=str(place / "rest.jsonl"), order="as_is")
    for ours, theirs in zip(*(lines(one, "metrics.jsonl") for one in (run, rest)), strict=True):
        assert ours["examples"] == theirs["examples"] == 12
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    incidents = lines(run, "incidents.jsonl")
    assert [one["step"] for one in incidents] == [1, 1, 1, 2, 2, 2]
    assert {one["what"] for one in incidents} == {"left out"}
    assert {one["examples"][0] for one in incidents} == {"example-3", "example-4", "example-5"}
    assert "train-1.png: broken picture" in incidents[0]["reason"]
    assert "Left out example-3: " in said.getvalue()
    assert "left out: 6" in said.getvalue()  # on the bar


def test_more_than_the_allowed_share_stops_the_run(place):
    with pytest.raises(RunError, match=r"3 of 15 examples were left out .*max_bad_fraction=0.19"):
        train(place, "stopped", max_bad_fraction=0.19)
    assert len(lines(place / "stopped", "incidents.jsonl")) == 3
    train(place, "stopped", max_bad_fraction=0.2)  # allowed, it goes on
    assert len(lines(place / "stopped", "incidents.jsonl")) == 6


@pytest.mark.parametrize("workers", daily(4, beside=[1]))
def test_the_number_of_workers_does_not_change_the_bits(place, workers):
    runs = [train(place, f"w{count}", max_bad_fraction=1, workers=count) for count in (0, workers)]
    assert same_bits(*(weights(run) for run in runs))
    assert lines(runs[0], "incidents.jsonl") == lines(runs[1], "incidents.jsonl")


def test_a_step_of_which_nothing_is_left_is_not_applied_and_the_run_stops_in_time(place):
    for page in range(5):
        break_image(place / "images" / f"train-{page}.png")
    with pytest.raises(RunError, match="15 of 15 examples were left out"):
        train(place, "nothing", max_bad_fraction=0.9)
    assert lines(place / "nothing", "incidents.jsonl")[-1]["what"] == "not finite"


def test_a_picture_of_another_shape_than_was_planned_for_is_left_out(tmp_path):
    loaded = make_model(tmp_path / "model")
    _, dataset = read_dataset(pages(tmp_path, 2, 2), loaded.processor)
    wide = tmp_path / "images" / "data-0.png"
    (tmp_path / "images" / "data-1.png").rename(wide)  # a run may outlive its pictures
    (row,) = RowPlanner(dataset.sizes, examples_per_step=4, tokens_per_pass=9999).step(0).ranks[0]
    batch = build_batch(row, dataset, loaded.processor)
    assert batch.example_ids == ()
    assert len(batch.left_out) == 4
    assert {"another picture when the run began" in one.reason for one in batch.left_out} == {
        True,
        False,  # the one that is gone
    }
