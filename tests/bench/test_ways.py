"""What the comparison with other tools promises: everybody takes the same optimizer steps."""

import dataclasses
import importlib
import importlib.util
import json
from pathlib import Path

import pytest
from tiny import SIZES

from foveal.config import TrainSettings
from foveal.data.dataset import read_dataset
from foveal.data.example import read_examples, write_examples
from foveal.models.loading import load
from foveal.models.phi3_vision.tiny import write_tiny

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """Import a script of `benchmarks` as it imports its neighbours."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


class Losses(list):
    """Watches a way, and keeps its losses."""

    def begin(self):
        assert not self

    def step(self, taken, loss):
        self.append(loss)
        assert taken == len(self)


def make_work(script, folder, strategy, tokens_per_pass=400):
    data = folder / "pages.jsonl"
    if not data.exists():
        script("draw_pages").draw_pages(folder, pages=6, questions=(7, 8))
        # Answers of as many tokens: the recipe takes the mean of examples, others that of tokens.
        closed = [one for one in read_examples(data) if one.turns[0].assistant[:2] in ("ye", "no")]
        examples = closed[:12]
        write_examples(data, examples)
        turns = [turn for one in examples for turn in one.turns]
        texts = {text for turn in turns for text in (f"\n{turn.user}", turn.assistant)}
        write_tiny(folder / "model", 0, SIZES, texts)
    loaded = load(str(folder / "model"), 4)
    examples, dataset = read_dataset(data, loaded.processor)
    settings = TrainSettings(
        examples_per_step=4, learning_rate=1e-3, warmup_steps=1, tokens_per_pass=tokens_per_pass
    )
    return script("ways").Work(loaded, examples, dataset, strategy, settings, steps=3)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["full", "frozen_vision", "lora"])
def test_every_way_takes_the_same_steps(script, strategy, tmp_path):
    ways = ["recipe", "trainer", "separate", "shared"]
    if importlib.util.find_spec("trl"):  # not everybody has it
        ways.append("trl")
    losses = {}
    for way in ways:
        losses[way] = Losses()
        script("ways").train(way, make_work(script, tmp_path, strategy), losses[way])
    assert losses["shared"][2] < losses["shared"][1]
    for way in ways:
        assert losses[way] == pytest.approx(losses["shared"], rel=1e-4), way


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3_vl", "gemma3"])
def test_every_way_takes_the_same_steps_of_other_families(script, family, tmp_path):
    case = script("turns").Case(f"{family} tiny", "full", 2, 3, 1, pages=2, ragged=True)
    losses = {}
    for way in ("trainer", "shared", *(["trl"] if importlib.util.find_spec("trl") else ())):
        losses[way] = Losses()
        script("ways").train(way, script("families").make_work(case, tmp_path), losses[way])
    assert len(set(losses["shared"])) == 3
    for way in losses:
        assert losses[way] == pytest.approx(losses["shared"], rel=1e-4), way


def test_a_processor_that_makes_other_tokens_than_ours_is_not_measured(script, tmp_path):
    case = script("turns").Case("smolvlm tiny", "full", 1, 1, 1)
    work = script("families").make_work(case, tmp_path)
    row = script("ways").ExampleList(work)[0]
    assert work.collator()([row])["labels"].shape[0] == 1
    work.own_processor.chat_template = "{{ messages[0]['content'][1]['text'] }}<image>"
    with pytest.raises(ValueError, match="makes other tokens of example 0"):
        work.collator()([row])


def test_padded_passes_fill_the_token_budget_and_divide_the_step(script, tmp_path):
    longest = int(make_work(script, tmp_path, "full").dataset.sizes.tokens.max())
    budgets = {longest - 1: 1, 2 * longest: 2, 3 * longest: 2, 4 * longest: 4, 9 * longest: 4}
    for tokens, examples in budgets.items():
        work = make_work(script, tmp_path, "full", tokens_per_pass=tokens)
        assert work.examples_per_pass() == examples


def test_a_step_that_is_not_whole_is_refused(script, tmp_path):
    work = make_work(script, tmp_path, "full")
    with pytest.raises(ValueError, match="as many examples"):
        script("ways").Work(
            work.loaded,
            work.examples,
            work.dataset,
            "full",
            TrainSettings(examples_per_step=5),
            1,
        )


def test_ways_whose_losses_differ_are_not_timed(script):
    peers = script("against_peers")
    same = peers.Taken(1.0, (1.0,), (1.0,), 1, (2.0, 1.0))
    other = peers.Taken(1.0, (1.0,), (1.0,), 1, (2.0, 1.001))
    assert peers.check_losses({"shared": same, "trainer": same}) == 0
    with pytest.raises(SystemExit, match="do not take the same steps"):
        peers.check_losses({"shared": same, "trainer": other})


def test_the_table_tells_the_median_and_the_range_of_each_way(script):
    peers = script("against_peers")
    case = peers.Case("tiny", "full", 4, 2, 1)
    turns = {
        "trainer": [peers.Taken(9.0, (s,), (s,), 3 * 10**9, (1.0,)) for s in (4.0, 2.0, 8.0)],
        "shared": [peers.Taken(5.0, (s,), (s,), 10**9, (1.0,)) for s in (1.0, 1.0, 2.0)],
    }
    page = script("turns").table(case, turns, peers.WAYS, processor_time=False)
    assert (
        "| transformers' Trainer | 1.000 | 0.500 to 2.000 | 4.00x | 3.00 | 3.00 to 3.00 | 33% "
        "| 9.0 | 9.0 to 9.0 |"
    ) in page
    assert "| ours | 4.000 | 2.000 to 4.000 |  | 1.00 |" in page


def runs(script):
    scores = script("time_to_accuracy")
    made = []
    for way, speed in (("shared", 1.0), ("trainer", 4.0)):
        points = [
            scores.Point(20 * n, 10 * n * speed, 10 * n * speed, 0.5 + 0.25 * n) for n in range(3)
        ]
        made += [scores.Run("pages", way, seed, 200, 1, tuple(points)) for seed in (0, 1)]
    return made


def test_the_time_to_accuracy_is_that_of_the_first_score_that_reaches_it(script, monkeypatch):
    scores = script("time_to_accuracy")
    pages = dataclasses.replace(scores.TASKS["pages"], target=0.7)
    monkeypatch.setitem(scores.TASKS, "pages", pages)
    page = scores.table(runs(script))
    assert "| transformers' Trainer | 100.0 % (100.0 to 100.0, 2 seeds) | 80.0 | 40.0 |" in page
    assert "4.0x as fast" in page


def test_numbers_table_and_plot_stand_in_the_folder(script, tmp_path):
    script("time_to_accuracy").write_all(tmp_path, runs(script))
    assert (tmp_path / "time-to-accuracy.svg").read_text().count("<path") > 10
    assert script("time_to_accuracy").read_runs(tmp_path / "results.jsonl") == []
    assert '"trl"' in (tmp_path / "results.json").read_text()


def test_a_finished_run_is_read_back_as_it_was(script, tmp_path):
    (made, *_) = runs(script)
    (tmp_path / "results.jsonl").write_text(json.dumps(dataclasses.asdict(made)) + "\n")
    assert script("time_to_accuracy").read_runs(tmp_path / "results.jsonl") == [made]
