"""Several processes learn from pairs what one learns, and hand a run on among each other."""

import json
from collections.abc import Callable
from functools import cache

import pytest
import torch
from launched import Job, Place, make_place
from pairs import CHOSEN, REJECTED, pair_pages
from safetensors.torch import load_file
from tiny import turn

from foveal.train.reference_answers import REFERENCE, VALUES

pytestmark = pytest.mark.slow

PAIRS = {
    "objective": "preferences",
    "train__examples_per_step": 3,
    "train__max_steps": 6,
    "train__save_every_steps": 3,
}
KINDS = {
    "full": {},
    "lora": {"strategy": "lora", "lora__rank": 4},
    "frozen_vision": {"strategy": "frozen_vision", "preference": {"answer_weight": 0.5}},
    "orpo": {"preference": {"loss": "orpo"}},
}
ENGINES = ("ddp", "fsdp2", "zero2")
ENDS = ("", "-halves")


def make_pairs(folder) -> Place:
    """Pages with one to three pairs, and pairs about no picture among them."""
    made = make_place(folder)
    file = pair_pages(folder, 4, 3, "pairs")
    lines = [line for place, line in enumerate(file.read_text().splitlines()) if place % 4]
    words = [turn("Say so.", CHOSEN[0], rejected=[REJECTED[0]])]
    lines.insert(2, json.dumps({"id": "words", "conversations": words}))
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    return made


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Callable[[str, str], Place]:
    """Take an engine and a kind of run; it has run when its folder is asked for, once."""
    made = make_pairs(tmp_path_factory.mktemp("pairs"))

    @cache
    def alone(kind: str) -> None:
        made.run_alone(made.recipe(f"one-{kind}", **PAIRS, **KINDS[kind]))

    @cache
    def together(engine: str, kind: str) -> Place:
        alone(kind)
        settings = {"engine": engine, **PAIRS, **KINDS[kind]}
        whole, halves = (str(made.recipe(f"{engine}-{kind}{end}", **settings)) for end in ENDS)
        made.run_together([Job(whole), Job(halves, stop_at=3), Job(halves)])
        return made

    return together


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_learn_from_pairs_as_one_does(runs, engine, kind):
    place = runs(engine, kind)
    one, two = place.metrics(f"one-{kind}"), place.metrics(f"{engine}-{kind}")
    assert len(one) == 6
    for key in ("loss", "gradient_norm", "margin", "chosen_log_probability"):
        expected = [line[key] for line in one]
        assert [line[key] for line in two] == pytest.approx(expected, rel=1e-4, abs=1e-4)
    for key in ("examples", "preferred"):
        assert [line[key] for line in two] == [line[key] for line in one]
    ours, theirs = place.weights(f"one-{kind}"), place.weights(f"{engine}-{kind}")
    for name, weight in ours.items():
        torch.testing.assert_close(theirs[name], weight, rtol=1e-4, atol=1e-5, msg=name)
    if kind != "orpo":
        known = [
            load_file(place.folder / run / REFERENCE)[VALUES]
            for run in (f"one-{kind}", f"{engine}-{kind}")
        ]
        torch.testing.assert_close(known[0], known[1], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_of_pairs_that_was_stopped_ends_with_the_same_bits(runs, engine, kind):
    place = runs(engine, kind)
    whole, halves = (place.weights(f"{engine}-{kind}{end}") for end in ENDS)
    assert all(halves[name].equal(weight) for name, weight in whole.items())
    losses = [[line["loss"] for line in place.metrics(f"{engine}-{kind}{end}")] for end in ENDS]
    assert losses[0] == losses[1]
