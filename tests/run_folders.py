"""Builds small run folders, as a run would leave them."""

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from foveal.config import DataSettings, EvaluateSettings, Recipe, save_recipe
from foveal.data.example import Example, Turn, write_examples
from foveal.evaluate.prediction import (
    Prediction,
    score_predictions,
    write_predictions,
    write_scores,
)

METRICS = ("accuracy", "anls")


def make_examples(folder: Path, count: int = 12) -> Path:
    """Write questions over one picture each, and one picture behind the last two."""
    (folder / "images").mkdir(parents=True)
    examples = []
    for number in range(count):
        name = f"{min(number, count - 2)}.png"
        colour = (20 * number % 256, 90, 160)
        Image.new("RGB", (60, 40), colour).save(folder / "images" / name)
        truth = ("yes", "no")[number % 2]
        turn = Turn(images=(name,), user=f"Question {number}?", assistant=truth)
        examples.append(Example(id=f"example-{number}", conversations=(turn,)))
    write_examples(folder / "data.jsonl", examples)
    return folder / "data.jsonl"


def predict(wrong: Sequence[int] = (), count: int = 12) -> list[Prediction]:
    """Answer the questions of `make_examples`, some of them wrongly."""
    made = []
    for number in range(count):
        truth, other = ("yes", "no") if number % 2 == 0 else ("no", "yes")
        answer = other if number in wrong else truth
        made.append(Prediction(f"example-{number}", answer, answers=(truth,)).scored(METRICS))
    return made


def make_run(run: Path, data: Path | None, images: Path | None = None, **settings: object) -> Path:
    """Write the folder of a run that has not begun."""
    run.mkdir(parents=True)
    files = DataSettings(validation=data, images=images)
    values = {"model": "phi3-vision-tiny", "run": run, "data": files}
    save_recipe(Recipe.model_validate(values | settings), run / "recipe.yaml")
    return run


def measure(run: Path, steps: int = 30) -> None:
    """Write the measures of some steps."""
    lines = [
        {
            "step": step,
            "loss": 2 / step,
            "learning_rate": 1e-4 * step / steps,
            "gradient_norm": 1.0 + step % 3,
            "tokens": 1000,
            "examples": 8,
            "images": 8,
            "seconds": 2.0,
        }
        for step in range(1, steps + 1)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "metrics.jsonl").write_text(text)


def evaluate(run: Path, name: str, predictions: Sequence[Prediction]) -> None:
    """Write an evaluation of the run."""
    folder = run / "evaluation" / name
    write_predictions(folder / "predictions.jsonl", predictions)
    write_scores(folder / "scores.json", score_predictions(predictions, METRICS, draws=200))


def make_whole_run(folder: Path, name: str = "run") -> Path:
    """Write a run with measures, before and after."""
    data = folder / "data" / "data.jsonl"
    if not data.exists():
        make_examples(folder / "data")
    run = make_run(folder / name, data, evaluate=EvaluateSettings(metrics=METRICS))
    measure(run)
    evaluate(run, "before", predict(wrong=range(0, 12, 2)))
    evaluate(run, "after", predict(wrong=[1]))
    return run
