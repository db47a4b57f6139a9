"""The whole walk on a tiny model and bundled pictures: convert, evaluate, train, report."""

from pathlib import Path

import yaml
from rich.console import Console

from foveal.config import Recipe
from foveal.data.convert import convert
from foveal.run import Outcome, TrainingRun

DEMO_DATA = Path(__file__).parent / "demo_data"
RECIPE = Path(__file__).parent / "demo_data" / "demo.yaml"

GPU_COMMAND = (
    "torchrun --nproc-per-node 8 -m foveal.cli train recipes/nlvr2_full.yaml "
    "model=microsoft/Phi-3.5-vision-instruct data.train=... data.validation=..."
)


def run_demo(out: Path, console: Console) -> Outcome:
    """Leave a complete run folder in `out`: data, model, checkpoints, scores and report.

    Raises:
        RunError: it was interrupted.
    """
    data = out / "data"
    console.print(f"Converting the bundled NLVR pictures into {data}", highlight=False)
    convert("nlvr", DEMO_DATA, data)
    tree = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    tree["run"] = str(out)
    tree["data"]["train"] = str(data / "nlvr_pairs_train.jsonl")
    tree["data"]["validation"] = str(data / "nlvr_pairs_dev.jsonl")
    return TrainingRun(Recipe.model_validate(tree), console).go()
