"""Tune a tiny model on answers, then on pairs, and see what it prefers on pages that it never saw.

    python benchmarks/preference_learning.py --seeds 3

Pages of printed lines are drawn, each asked what is true of its lines, from the top. The given
answer is true; the rejected one is false in one word of six. Both runs see the same pages; the
scores are of other pages, before and after the second run, with 95 % intervals: the share of pairs
whose true answer is the likelier one, and how many words of the written answers are right.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
from draw_pages import FEATURES, draw_pages
from rich.console import Console

from foveal.assemble import TINY
from foveal.bench.versions import versions
from foveal.config import Recipe
from foveal.data.example import Example, read_examples, write_examples
from foveal.evaluate.intervals import difference
from foveal.evaluate.prediction import PREFERRED, read_predictions, read_scores
from foveal.plan.this_machine import machine_name
from foveal.run import TrainingRun

METRICS = (PREFERRED, "accuracy", "anls")


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


def recipe(folder: Path, run: str, model: str, seed: int, rate: float, **more: object) -> Recipe:
    """Build the recipe of one of the runs."""
    epochs = more.pop("epochs")
    tree = {
        "model": model,
        "run": folder / run,
        "precision": "float32",
        "data": {
            "train": folder / "train" / "pairs.jsonl",
            "validation": folder / "validation" / "pairs.jsonl",
            "num_crops": 1,
            "workers": 0,
        },
        "train": {
            "seed": seed,
            "epochs": epochs,
            "learning_rate": rate,
            "examples_per_step": 24,
            "warmup_steps": 10,
        },
        "evaluate": {"max_new_tokens": 16},
        **more,
    }
    return Recipe.model_validate(tree)


def learn(folder: Path, seed: int, asked: argparse.Namespace) -> dict[str, object]:
    """Take both runs of one seed; returns the scores of the second, before and after."""
    draw(folder, asked.pages, asked.held_out, seed)
    console = Console(file=sys.stderr)
    answers = recipe(folder, "answers", TINY, seed, asked.rate, epochs=asked.epochs)
    TrainingRun(answers, console).go()
    model = str(folder / "answers" / "final")
    preference = {"loss": asked.loss, "beta": asked.beta, "answer_weight": asked.answer_weight}
    pairs = recipe(
        folder,
        "pairs",
        model,
        seed,
        asked.pair_rate,
        epochs=asked.pair_epochs,
        objective="preferences",
        preference=preference,
    )
    TrainingRun(pairs, console).go()
    found: dict[str, object] = {"seed": seed}
    places = [folder / "pairs" / "evaluation" / moment for moment in ("before", "after")]
    scores = [read_scores(place / "scores.json") for place in places]
    given = [read_predictions(place / "predictions.jsonl") for place in places]
    for metric in METRICS:
        each = [[one.scores[metric] for one in some] for some in given]
        found[metric] = {
            "before": asdict(scores[0][metric]),
            "after": asdict(scores[1][metric]),
            "difference": asdict(difference(*each)),
        }
    return found


def main() -> None:
    """Run every seed and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pages", type=int, default=1200)
    parser.add_argument("--held-out", type=int, default=60)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--pair-epochs", type=float, default=2)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--pair-rate", type=float, default=1e-4)
    parser.add_argument("--loss", default="dpo")
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--answer-weight", type=float, default=1.0)
    parser.add_argument("--out", type=Path, default=Path("runs/preference-learning"))
    asked = parser.parse_args()
    print(machine_name(), ", ".join(f"{name} {number}" for name, number in versions().items()))
    print("\n| seed | score | before | after | difference | p |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    tree = []
    for seed in range(asked.seeds):
        found = learn(asked.out / f"seed-{seed}", seed, asked)
        tree.append(found)
        for metric in METRICS:
            before, after, gain = (
                found[metric][moment] for moment in ("before", "after", "difference")
            )
            written = " | ".join(
                f"{100 * one['value']:.1f} [{100 * one['low']:.1f}, {100 * one['high']:.1f}]"
                for one in (before, after, gain)
            )
            print(f"| {seed} | {metric} | {written} | {gain['p_value']:.3f} |", flush=True)
    (asked.out / "results.json").write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
