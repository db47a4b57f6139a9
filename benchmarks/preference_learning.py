"""Tune a tiny model on answers, then on pairs, and see what it prefers on pages that it never saw.

    python benchmarks/preference_learning.py --seeds 3

Pages of printed lines are drawn, each asked what is true of its lines, from the top. The given
answer is true; the rejected one is false in one word of six. A model of random weights is tuned on
answers, too briefly to know all; from there on it is tuned on pairs, and, to tell what the pairs
do from what more steps do, once more on answers alone: the same pages, order, steps and rate. The
scores are of other pages, with 95 % intervals: the share of pairs whose true answer is the
likelier one, how many written answers are right in all six words, and their likeness to the truth.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from draw_pages import FEATURES, draw_pages
from rich.console import Console
from time_to_accuracy import LEARNING, NUM_CROPS
from versions import versions

from foveal.config import Recipe
from foveal.data.example import Example, read_examples, write_examples
from foveal.evaluate.intervals import difference, summarize_scores
from foveal.evaluate.prediction import PREFERRED, read_predictions
from foveal.machine import machine_name
from foveal.plan.question import TINY
from foveal.run import TrainingRun

METRICS = (PREFERRED, "accuracy", "anls")
RUNS = "answers", "pairs", "answers-again"
AFTER = Path("evaluation", "after", "predictions.jsonl")


def with_false_answers(example: Example, lots: np.random.Generator) -> Example:
    """Reject the given answer with one of its words made false."""
    turn = example.turns[0]
    words = turn.assistant.split()
    place = int(lots.integers(len(words)))
    kinds = next(values for values in FEATURES.values() if set(words) <= set(values))
    others = [one for one in kinds if one != words[place]]
    words[place] = others[int(lots.integers(len(others)))]
    false = turn.model_copy(update={"rejected": (" ".join(words),)})
    return example.model_copy(update={"turns": (false,)})


def draw(folder: Path, pages: int, held_out: int, seed: int) -> None:
    """Draw the pages of both runs, and those that are held out."""
    lots = np.random.default_rng(seed)
    for name, count, own in (("train", pages, 2 * seed), ("validation", held_out, 2 * seed + 1)):
        draw_pages(folder / name, count, own)
        examples = read_examples(folder / name / "pages.jsonl")
        paired = [with_false_answers(one, lots) for one in examples]
        write_examples(folder / name / "pairs.jsonl", paired)


def learn(folder: Path, seed: int, asked: argparse.Namespace) -> dict[str, Any]:
    """Take the three runs of one seed; returns scores of each, and how far they lie apart."""
    draw(folder, asked.pages, asked.held_out, seed)
    tune(folder, "answers", TINY, seed, asked.epochs, asked.rate)
    start, more = str(folder / "answers" / "final"), (asked.pair_epochs, asked.pair_rate)
    weighed = {"loss": asked.loss, "beta": asked.beta, "answer_weight": asked.answer_weight}
    tune(folder, "pairs", start, seed, *more, objective="preferences", preference=weighed)
    tune(folder, "answers-again", start, seed, *more)
    found: dict[str, Any] = {"seed": seed}
    for metric in METRICS:
        before, pairs, again = (
            [one.scores[metric] for one in read_predictions(folder / run / AFTER)] for run in RUNS
        )
        found[metric] = {
            **{
                name: asdict(summarize_scores(some))
                for name, some in (("before", before), ("pairs", pairs), ("answers again", again))
            },
            "pairs - before": asdict(difference(before, pairs)),
            "pairs - answers again": asdict(difference(again, pairs)),
        }
    return found


def tune(
    folder: Path, run: str, model: str, seed: int, epochs: float, rate: float, **objective: Any
) -> None:
    """Take one run."""
    files = {name: folder / name / "pairs.jsonl" for name in ("train", "validation")}
    learning = {**LEARNING, "seed": seed, "epochs": epochs, "learning_rate": rate}
    tree = {
        "model": model,
        "run": folder / run,
        "precision": "float32",
        "data": {**files, "num_crops": NUM_CROPS, "workers": 0},
        "train": {**learning, "save_every_steps": 10_000},
        "evaluate": {"max_new_tokens": 16},
        **objective,
    }
    TrainingRun(Recipe.model_validate(tree), Console(stderr=True)).go()


def row(metric: str, seed: object, found: dict[str, Any]) -> str:
    """Write a metric of one seed as a line of the table, in percent."""
    written = (
        f"{100 * one['value']:.1f} [{100 * one['low']:.1f}, {100 * one['high']:.1f}]"
        for one in found.values()
    )
    return f"| {metric} | {seed} | {' | '.join(written)} |"


def main() -> None:
    """Run every seed and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pages", type=int, default=1200)
    parser.add_argument("--held-out", type=int, default=120)
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--pair-epochs", type=float, default=1)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--pair-rate", type=float, default=5e-4)
    parser.add_argument("--loss", default="dpo")
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--answer-weight", type=float, default=1.0)
    parser.add_argument("--out", type=Path, default=Path("runs/preference-learning"))
    asked = parser.parse_args()
    print(machine_name(), ", ".join(f"{name} {number}" for name, number in versions().items()))
    tree: list[dict[str, Any]] = []
    for seed in range(asked.seeds):
        tree.append(learn(asked.out / f"seed-{seed}", seed, asked))
        (asked.out / "results.json").write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
    print(f"\n| score, % | seed | {' | '.join(tree[0][PREFERRED])} |")
    print(f"| --- | --- |{' ---: |' * len(tree[0][PREFERRED])}")
    for metric in METRICS:
        for found in tree:
            print(row(metric, found["seed"], found[metric]))


if __name__ == "__main__":
    main()
