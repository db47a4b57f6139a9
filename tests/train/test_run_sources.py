"""A run learns from several files by weight, Parquet among them, and resumes only from the same."""

import io
import json
from pathlib import Path

import pytest
import small_runs
from rich.console import Console
from tiny import pages, write_model

from foveal.config import Recipe
from foveal.errors import RunError
from foveal.run import TrainingRun

datasets = pytest.importorskip("datasets")


def write_parquet(path: Path, data: Path) -> Path:
    """The examples of a JSONL file as one Parquet file, pictures in it."""
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    for row in rows:
        for turn in row["conversations"]:
            files = [data.parent / "images" / name for name in turn["images"]]
            turn["images"] = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    text = datasets.Value("string")
    turn = {"images": datasets.List(datasets.Image()), "user": text, "assistant": text}
    features = {"id": text, "source": text, "conversations": datasets.List(turn)}
    datasets.Dataset.from_list(rows, features=datasets.Features(features)).to_parquet(str(path))
    return path


def recipe(place: Path, weight: float) -> Recipe:
    files = [
        {"path": str(place / "x.parquet"), "weight": weight},
        {"path": str(place / "two" / "data.jsonl")},
    ]
    return small_runs.recipe(
        place,
        data__train=files,
        data__validation=str(place / "x.parquet"),
        train__epochs=1,
        train__examples_per_step=3,
        train__save_every_steps=1,
        evaluate__max_new_tokens=2,
    )


def test_a_run_over_weighted_files_shows_each_as_often_and_goes_on_only_with_the_same(tmp_path):
    write_model(tmp_path / "model")
    one, two = pages(tmp_path / "one", 2, 3), pages(tmp_path / "two", 1, 3)
    write_parquet(tmp_path / "x.parquet", one)
    one.unlink()
    with two.open("a") as lines:
        lines.write(two.read_text().splitlines()[0] + "\n")  # the id of another
    page = io.StringIO()
    outcome = TrainingRun(recipe(tmp_path, 0.5), Console(file=page, width=1000)).go()
    steps = [json.loads(one) for one in (outcome.run / "metrics.jsonl").read_text().splitlines()]
    assert sum(step["examples"] for step in steps) == 6 // 2 + 4
    assert f"{two}: examples with the id of another: 1" in page.getvalue()
    assert "foveal check" in page.getvalue()
    assert "x.parquet" in outcome.report.read_text()
    with pytest.raises(RunError, match=r"data\.train"):
        TrainingRun(recipe(tmp_path, 1.0), Console(quiet=True)).go()
