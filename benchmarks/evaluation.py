"""Answering the questions of pages: ours beside one question at a time, two ways.

    python benchmarks/evaluation.py --size standard --pages 2 --rounds 3

`recipe`: as the published recipe evaluates, through its walk (see `foveal_bench.contender`).
`generate`: transformers' `generate` on our model, which already cuts, encodes and attends as ours.
`ours`: all questions together, each page read once.

All get the same weights, pages from disk and questions, answer greedily, and should give the same
tokens; they take turns, so that all meet the same weather. Where reading the page is nearly all of
the work, `generate` over `ours` cannot exceed the questions of a page.

With --processor-time, other processes on the machine do not count.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch
from foveal_bench.contender import RecipeInputs, RecipeWay, recipe_inputs
from foveal_bench.random_page import LetterProcessor, find_size, make_model, make_random_page

from foveal.data.dataset import Dataset
from foveal.data.encode import IGNORED
from foveal.evaluate.questions import Opener
from foveal.models.family import LoadedModel
from foveal.models.generation.generator import Generator, Request, generate
from foveal.models.generation.prompt import Prompt, PromptImage
from foveal.models.phi3_vision.seam import FAMILY


class EndlessProcessor(LetterProcessor):
    """Knows no token that ends an answer, so that every answer is as long as it may be."""

    end_ids: tuple[int, ...] = ()


def prompts_of(dataset: Dataset, opener: Opener, page: int) -> list[Prompt]:
    """Ask each question of a page."""
    (fact,) = dataset.images
    image = PromptImage(page, fact.shape, partial(opener.pixels, 0))
    return [
        Prompt(tuple(one.entries[: int(np.argmax(one.learnt))].tolist()), (image,))
        for one in dataset.examples
    ]


def one_at_a_time(loaded: LoadedModel, prompts: list[Prompt], new_tokens: int) -> list[list[int]]:
    """Let `generate` answer each question by itself."""
    answers = []
    for prompt in prompts:
        device = loaded.model.device
        stretch = prompt.whole(loaded.processor)
        shapes = [image.shape for image in stretch.images]
        pixels = loaded.processor.stack([image.pixels() for image in stretch.images], shapes)
        pixels = {name: one.to(device) for name, one in pixels.items()}
        ids = torch.from_numpy(stretch.ids)[None].to(device)
        made = loaded.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **pixels,
            max_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        answers.append(made[0, ids.shape[1] :].tolist())
    return answers


@torch.no_grad()
def as_the_recipe(way: RecipeWay, inputs: RecipeInputs, new_tokens: int) -> list[int]:
    """Answer one question greedily as `generate` drives the published code."""
    prompt = int((inputs.labels != IGNORED).int().argmax())
    ids = inputs.input_ids[:, :prompt]
    is_image = ids == way.image_token_id
    embeddings = way.model.model.embed_tokens(ids.masked_fill(is_image, 0))
    images = way._image_embeddings(inputs.pixel_values, inputs.image_sizes)
    embeddings = embeddings.index_put(torch.nonzero(is_image, as_tuple=True), images)
    cache, answer = None, list[int]()
    while len(answer) < new_tokens:
        read = way.decoder(inputs_embeds=embeddings, past_key_values=cache, use_cache=True)
        logits = way.model.lm_head(read.last_hidden_state).float()
        answer.append(int(logits[0, -1].argmax()))
        last = torch.tensor([answer[-1:]], device=logits.device)
        cache, embeddings = read.past_key_values, way.model.model.embed_tokens(last)
    return answer


@dataclass(frozen=True)
class Answered:
    """How one way answered all questions."""

    seconds: tuple[float, ...]
    """Of each round."""

    tokens: list[list[int]]
    """Of each answer."""


def compare(
    size_name: str,
    pages: int,
    questions: int,
    new_tokens: int,
    rounds: int,
    dtype: torch.dtype = torch.float32,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Answered]:
    """Let all ways answer the questions of some pages, in turn, on this machine's device.

    Args:
        size_name: of `foveal_bench.random_page.SIZES`.
        pages: to ask about.
        questions: of each page.
        new_tokens: of each answer.
        rounds: of all ways.
        dtype: of the weights.
        clock: whose seconds are counted.
    """
    size = find_size(size_name)
    processor = EndlessProcessor(size)
    loaded = LoadedModel(make_model(size).eval().to(dtype), processor, FAMILY)
    way = RecipeWay(make_model(size).to(dtype)).eval()
    device = loaded.model.device
    way.to(device)
    with TemporaryDirectory() as folder:
        prompts: list[Prompt] = []
        datasets = []
        for page in range(pages):
            place = Path(folder) / str(page)
            place.mkdir()
            datasets.append(make_random_page(size, questions, place, seed=page))
            prompts += prompts_of(datasets[-1], Opener(datasets[-1], processor), page)
        ways: dict[str, Callable[[], list[list[int]]]] = {
            "recipe": lambda: [
                as_the_recipe(way, recipe_inputs(dataset, number, processor).to(device), new_tokens)
                for dataset in datasets
                for number in range(questions)
            ],
            "generate": lambda: one_at_a_time(loaded, prompts, new_tokens),
            "ours": lambda: generate(
                Generator(loaded), [Request(prompt, new_tokens) for prompt in prompts]
            ),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        answers = {}
        for _ in range(rounds):
            for name, answer in ways.items():
                start = clock()
                answers[name] = answer()
                seconds[name].append(clock() - start)
    return {name: Answered(tuple(seconds[name]), answers[name]) for name in ways}


def same_tokens(one: Answered, other: Answered) -> int:
    """Count the answers in which two ways agree."""
    pairs = zip(one.tokens, other.tokens, strict=True)
    return sum(mine == theirs for mine, theirs in pairs)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="standard")
    parser.add_argument("--pages", type=int, default=2)
    parser.add_argument("--questions", type=int, default=4, help="of each page")
    parser.add_argument("--new-tokens", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processor-time", action="store_true")
    asked = parser.parse_args()
    clock = time.process_time if asked.processor_time else time.perf_counter
    answered = compare(
        asked.size, asked.pages, asked.questions, asked.new_tokens, asked.rounds, clock=clock
    )
    ours = answered["ours"]
    for name, one in answered.items():
        number, taken = len(one.tokens), median(one.seconds)
        print(
            f"{name}: {number / taken:.3f} questions/s, "
            f"ours {taken / median(ours.seconds):.2f}x, "
            f"the same tokens for {same_tokens(one, ours)} of {number}"
        )


if __name__ == "__main__":
    main()
