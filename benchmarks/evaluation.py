"""Answering the questions of pages: ours beside transformers' `generate`, one question at a time.

    python benchmarks/evaluation.py --size standard --pages 2 --rounds 3

Both ways get the same model, the same opened-from-disk pages and the same questions, answer
greedily, and must give the same tokens; they take turns, so that both meet the same weather.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch

from foveal.bench.page import LetterProcessor, find_size, make_model, make_page
from foveal.data.dataset import Dataset
from foveal.evaluate.opening import Opener
from foveal.models.family import LoadedModel
from foveal.models.generation.generator import Generator, Request, generate
from foveal.models.generation.prompt import Prompt, PromptImage
from foveal.models.phi3_vision.family import FAMILY


@dataclass(frozen=True)
class EndlessProcessor(LetterProcessor):
    """Knows no token that ends an answer, so that every answer is as long as it may be."""

    end_ids: tuple[int, ...] = ()


def prompts_of(dataset: Dataset, opener: Opener, page: int) -> list[Prompt]:
    """Ask each question of a page."""
    (fact,) = dataset.images
    image = PromptImage(page, fact.tokens, (fact.rows, fact.columns), opener.cutter(0))
    return [
        Prompt(tuple(one.entries[: int(np.argmax(one.learnt))].tolist()), (image,))
        for one in dataset.examples
    ]


def one_at_a_time(loaded: LoadedModel, prompts: list[Prompt], new_tokens: int) -> list[list[int]]:
    """Let `generate` answer each question by itself."""
    answers = []
    for prompt in prompts:
        stretch = prompt.stretch(0, None, loaded.processor.image_token_id)
        crops = stretch.images[0].cut()
        rows, columns = stretch.images[0].grid
        side = crops.shape[-1]
        ids = torch.tensor([stretch.ids])
        made = loaded.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=crops,
            image_sizes=torch.tensor([[rows * side, columns * side]]),
            max_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        answers.append(made[0, ids.shape[1] :].tolist())
    return answers


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="standard")
    parser.add_argument("--pages", type=int, default=2)
    parser.add_argument("--questions", type=int, default=4, help="of each page")
    parser.add_argument("--new-tokens", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    size = find_size(asked.size)
    processor = EndlessProcessor(size)
    loaded = LoadedModel(make_model(size).eval(), processor, FAMILY)
    with TemporaryDirectory() as folder:
        prompts = []
        for page in range(asked.pages):
            place = Path(folder) / str(page)
            place.mkdir()
            dataset = make_page(size, asked.questions, place, seed=page)
            prompts += prompts_of(dataset, Opener(dataset, processor), page)
        ways = {
            "generate, one at a time": lambda: one_at_a_time(loaded, prompts, asked.new_tokens),
            "ours, all together": lambda: generate(
                Generator(loaded), [Request(prompt, asked.new_tokens) for prompt in prompts]
            ),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        answers = {}
        for _ in range(asked.rounds):
            for name, way in ways.items():
                start = time.perf_counter()
                answers[name] = way()
                seconds[name].append(time.perf_counter() - start)
    first, second = answers.values()
    same = sum(one == other for one, other in zip(first, second, strict=True))
    for name, taken in seconds.items():
        print(f"{name}: {len(prompts) / median(taken):.3f} questions/s")
    plain, ours = (median(taken) for taken in seconds.values())
    print(f"{plain / ours:.2f}x; the same tokens for {same} of {len(prompts)} questions")


if __name__ == "__main__":
    main()
