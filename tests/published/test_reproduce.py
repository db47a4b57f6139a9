"""A published row runs from the hub's files to our score beside the published one."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hub_data import put_cauldron, put_clips, put_pages
from rich.console import Console
from tiny import SIZES
from typer.testing import CliRunner

from foveal.cli import app
from foveal.config import load_recipe
from foveal.data.example import read_examples
from foveal.errors import ConfigError, DataError
from foveal.evaluate.intervals import Score
from foveal.models.phi3_vision.tiny import write_tiny
from foveal.published import compare_with_published, find_row, prepare, reproduce_row

SMALL = (
    "precision=float32",
    "data.num_crops=4",
    "data.workers=0",
    "train.examples_per_step=2",
    "train.max_steps=2",
    "evaluate.max_new_tokens=2",
)


@pytest.fixture(autouse=True)
def one_process_converts(monkeypatch):
    monkeypatch.setattr("foveal.published.os.cpu_count", lambda: 1)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The whole of DocVQA's two sets, under their hub names."""
    folder = tmp_path_factory.mktemp("hub")
    put_cauldron(folder / "HuggingFaceM4/the_cauldron/docvqa", 3, ("12.", "x"), texts=2)
    put_pages(folder / "nielsr/docvqa_1200_examples")
    return folder


def test_a_row_is_converted_checked_trained_and_compared(source, tmp_path):
    write_tiny(tmp_path / "model", 0, SIZES)
    changed = (*SMALL, f"model={tmp_path / 'model'}")
    arguments = ["reproduce", "docvqa/lora", *changed, "--source", str(source)]
    wide = CliRunner(env={"COLUMNS": "1000"})  # lines stay whole, however long a path is
    done = wide.invoke(app, [*arguments, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    line = done.stdout.splitlines()[-1]
    assert line.startswith("anls_cookbook: ours ")
    assert " - published 0.8246 (Phi-3.5-vision finetuning recipe, DocVQA" in line
    assert "with precision=float32" in line  # not the row itself
    assert "docvqa_train.jsonl: 6 examples, problems: " in done.output
    run = tmp_path / "out"
    scores = json.loads((run / "evaluation" / "after" / "scores.json").read_text())
    assert scores["anls_cookbook"]["count"] == 2
    assert f"ours {scores['anls_cookbook']['value']:.4f} [" in line
    assert (run / "evaluation" / "before" / "scores.json").exists()
    assert load_recipe(run / "recipe.yaml").lora.rank == 32


def test_ours_and_the_published_score_stand_in_one_line():
    recipe = load_recipe(find_row("hateful_memes/full_fp16"))
    (line,) = compare_with_published(recipe, {"accuracy": Score(0.8612, 0.83, 0.8891, 500)})
    assert line.startswith("accuracy: ours 0.8612 [0.8300, 0.8891] - published 0.8540 (Phi-3.5-")
    unpublished = load_recipe(find_row("ucf101/full"))
    (line,) = compare_with_published(unpublished, {"accuracy": Score(1.0, 1.0, 1.0, 5)})
    assert line.endswith("- none published")


def test_a_row_that_is_not_there_names_the_nearest():
    with pytest.raises(ConfigError, match=r"docvqa/lra: no such row; did you mean docvqa/lora\?"):
        find_row("docvqa/lra")
    with pytest.raises(ConfigError, match="`foveal recipes` lists them"):
        find_row("zzz")
    with pytest.raises(ConfigError, match="no such row"):
        find_row("../custom")


@pytest.mark.parametrize(
    ("override", "said"),
    [("run=elsewhere", "give --source and --out"), ("train.epohcs=1", "train.epochs")],
)
def test_a_wrong_override_is_told_before_data_are_fetched(tmp_path, override, said):
    with pytest.raises(ConfigError, match=said):
        reproduce_row("docvqa/full", tmp_path / "none", tmp_path, [override], Console(quiet=True))


def test_all_of_docvqa_is_learnt_from_and_the_small_set_scored(source, tmp_path):
    train, validation = prepare("docvqa", source, tmp_path / "out")
    assert len(list(read_examples(train))) == 6  # nothing held out
    scored = [example.turns[0] for example in read_examples(validation)]
    assert [len(turn.answers) for turn in scored] == [2, 2]
    train, _ = prepare("docvqa", source, tmp_path / "mini", full_train=False)
    assert len(list(read_examples(train))) == 4


def test_the_first_rows_of_the_cauldron_are_scored_and_the_others_learnt(tmp_path):
    source = put_cauldron(tmp_path / "memes", 20, ("Yes", "No"))
    train, validation = prepare("hateful_memes", source, tmp_path / "out")
    assert (len(list(read_examples(train))), len(list(read_examples(validation)))) == (18, 2)


def test_clips_are_converted_and_converted_clips_taken_as_they_are(tmp_path):
    train, validation = prepare("ucf101", put_clips(tmp_path / "clips", 1), tmp_path / "out")
    assert [len(example.images) for example in read_examples(validation)] == [8, 8]
    again = prepare("ucf101", train.parent, tmp_path / "nothing")
    assert again == (train, validation)
    assert not (tmp_path / "nothing").exists()


def test_too_little_to_score_is_refused(tmp_path):
    source = put_cauldron(tmp_path / "memes", 3, ("Yes", "No"))
    with pytest.raises(DataError, match="too few examples to learn and to score"):
        prepare("hateful_memes", source, tmp_path / "out")


def test_other_processes_wait_for_the_first(source, tmp_path):
    out = tmp_path / "out"
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(prepare, "docvqa", source, out, full_train=False, rank=1)
        assert not waiting.done()
        made = prepare("docvqa", source, out, full_train=False, rank=0)
        assert waiting.result(timeout=30) == made


def test_data_that_were_prepared_are_not_prepared_again(tmp_path):
    source = put_cauldron(tmp_path / "memes", 20, ("Yes", "No"))
    made = prepare("hateful_memes", source, tmp_path / "out")
    (source / os.listdir(source)[0]).unlink()
    assert prepare("hateful_memes", source, tmp_path / "out") == made


def test_without_a_network_the_hubs_cache_is_read(tmp_path, monkeypatch):
    """The cache as huggingface_hub lays it out: links from a snapshot to blobs."""
    cache = tmp_path / "cache"
    part = put_cauldron(tmp_path / "part", 20, ("Yes", "No"))
    snapshot = cache / "datasets--HuggingFaceM4--the_cauldron" / "snapshots" / "0123abc"
    blobs = cache / "datasets--HuggingFaceM4--the_cauldron" / "blobs"
    (snapshot / "hateful_memes").mkdir(parents=True)
    blobs.mkdir()
    (file,) = part.iterdir()
    file.rename(blobs / "b10b")
    (snapshot / "hateful_memes" / file.name).symlink_to(Path("../../../blobs/b10b"))
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("0123abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    train, _ = prepare("hateful_memes", None, tmp_path / "out")
    assert len(list(read_examples(train))) == 18


def test_without_a_network_or_a_cache_the_way_out_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="no network and not in the cache; give a folder"):
        prepare("nlvr2", None, tmp_path / "out")
    with pytest.raises(DataError, match=r"ucf101-subset: .*; give a folder with its clips"):
        prepare("ucf101", None, tmp_path / "out")
