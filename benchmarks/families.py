"""Questions a second of tiny models of several families, three ways in turn, in one process.

    python benchmarks/families.py qwen3_vl gemma3 smolvlm qwen3_5

`shared`: our rows, an image once for all its questions. `apart`: our rows, each question with an
image of its own. `plain`: transformers' own processor and model, one question at a time, as a
Trainer of batch size one runs them. Forward and backward pass; the ratio is what to read, not the
seconds of a model this small.
"""

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from tiny import pages
from tiny_models import write_tiny

from foveal.data.batch import build_batch
from foveal.data.dataset import read_dataset
from foveal.data.encode import IGNORED
from foveal.data.rows import Plan
from foveal.models.family import LoadedModel, load
from foveal.train.loss import RowLoss


def rows_way(loaded: LoadedModel, dataset: Any, share: bool) -> Callable[[], None]:
    """Make our way: rows of one step, cut from a page's images to its gradients."""
    count = len(dataset.examples)
    plan = Plan(dataset.sizes, examples_per_step=count, tokens_per_pass=4096, share_images=share)
    loss = RowLoss(loaded.model, loaded.family)

    def run() -> None:
        for row in plan.step(0).ranks[0]:
            loss(build_batch(row, dataset, loaded.processor)).backward()

    return run


def plain_way(loaded: LoadedModel, examples: Any, folder: Path) -> Callable[[], None]:
    """Make transformers' way: its processor, its model, one question at a time."""
    model, reader = loaded.model, loaded.processor
    own = reader.processor

    def run() -> None:
        for example in examples:
            turn = example.turns[0]
            parts = [{"type": "image"} for _ in turn.images] + [{"type": "text", "text": turn.user}]
            text = own.tokenizer.apply_chat_template(
                [{"role": "user", "content": parts}],
                chat_template=own.chat_template or own.tokenizer.chat_template,
                add_generation_prompt=True,
                tokenize=False,
            )
            images = [Image.open(folder / "images" / path).convert("RGB") for path in turn.images]
            made = own(text=[text], images=[images], return_tensors="pt")
            answer = torch.tensor([reader.encode_answer(turn.assistant)])
            asked = made["input_ids"].shape[1]
            made["input_ids"] = torch.cat([made["input_ids"], answer], 1)
            for name in ("attention_mask", "mm_token_type_ids", "token_type_ids"):
                if name in made:
                    tail = torch.full_like(answer, int(name == "attention_mask"))
                    made[name] = torch.cat([made[name], tail], 1)
            labels = made["input_ids"].clone()
            labels[:, :asked] = IGNORED
            model(**made, labels=labels).loss.backward()

    return run


def measure(family: str, folder: Path, rounds: int, questions: int) -> dict[str, float]:
    """Run the three ways in turn; questions a second of each, the median of all rounds."""
    data = pages(folder, 3, questions)
    loaded = load(str(write_tiny(family, folder / "model")), None)
    plain = load(str(folder / "model"), None)
    plain.model.set_attn_implementation("sdpa")
    examples, dataset = read_dataset(data, loaded.processor)
    ways = {
        "shared": rows_way(loaded, dataset, share=True),
        "apart": rows_way(loaded, dataset, share=False),
        "plain": plain_way(plain, examples, folder),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            if turn:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    return {name: len(examples) / statistics.median(taken) for name, taken in seconds.items()}


def main() -> None:
    """Print a line a family."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--questions", type=int, default=8, help="of each of three pages")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"{'family':14}{'shared':>10}{'apart':>10}{'plain':>10}  questions/s; shared / plain")
    for family in chosen.families:
        with TemporaryDirectory() as folder:
            found = measure(family, Path(folder), chosen.rounds, chosen.questions)
        numbers = "".join(f"{found[name]:10.1f}" for name in ("shared", "apart", "plain"))
        print(f"{family:14}{numbers}  {found['shared'] / found['plain']:.2f}", flush=True)


if __name__ == "__main__":
    main()
