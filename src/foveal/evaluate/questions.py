"""A data set -> the questions it asks: their prompts, and which of them belong together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from foveal.data.dataset import Dataset
from foveal.data.example import Example
from foveal.data.images.boxes import BoxMap
from foveal.data.read_turns import known_size
from foveal.data.row_planning.groups import Costs
from foveal.evaluate.prefetch import Opener
from foveal.models.generation.prompt import Prompt, PromptImage, find_boxes


@dataclass(frozen=True)
class AskedQuestion:
    """One turn to be answered, behind the turns before it with their given answers."""

    example: int
    turn: int
    prompt: Prompt
    choices: tuple[str, ...]
    """What the answer is one of; empty: an open answer."""

    boxes: BoxMap | None = None
    """What moves boxes of the answer into the data's numbers; none: it can hold none."""

    compared: tuple[str, ...] = ()
    """The assistant's answer and those rejected for it; empty: there are none."""


def questions_of(
    number: int,
    example: Example,
    dataset: Dataset,
    opener: Opener,
    choices: tuple[str, ...] = (),
) -> Iterator[AskedQuestion]:
    """Cut an example into one question a turn.

    Args:
        number: place of the example in the data set.
        example: that stands there.
        dataset: the same examples, encoded.
        opener: opens the pictures, when they are needed.
        choices: what every answer is one of, where the data does not say it.
    """
    encoded = dataset.examples[number]
    learnt = encoded.learnt
    answers_start = np.flatnonzero(learnt & ~np.concatenate([[False], learnt[:-1]]))
    images = tuple(_shown(image, dataset, opener) for image in dataset.image_numbers(number))
    first_prompt = encoded.entries[: encoded.prompt_entries]
    sizes = []
    if opener.processor.boxes:
        numbers = dataset.image_numbers(number)
        sizes = [known_size(dataset.images[image].path) for image in numbers]
    boxes = find_boxes(images, sizes, opener.processor)
    shared = int(np.flatnonzero(first_prompt < 0).max(initial=-1)) + 1
    for turn, start in enumerate(answers_start):
        entries = tuple(encoded.entries[:start].tolist())
        # Every turn of an example, and of others on the same pictures, begins like its first.
        prompt = Prompt(entries, images, shared_entries=shared)
        asked = example.turns[turn]
        compared = (asked.assistant, *asked.rejected) if asked.rejected else ()
        if boxes:
            compared = tuple(map(boxes.to_model, compared))
        yield AskedQuestion(number, turn, prompt, asked.choices or choices, boxes, compared)


def _shown(image: int, dataset: Dataset, opener: Opener) -> PromptImage:
    fact = dataset.images[image]
    return PromptImage(image, fact.shape, opener.later(image))


@dataclass(frozen=True)
class QuestionGroup:
    """Questions that begin with the same pictures, the longest first."""

    questions: tuple[AskedQuestion, ...]
    cost: float
    """In decoder tokens: the pictures once, and every question."""


def question_groups(
    questions: Sequence[AskedQuestion], dataset: Dataset, costs: Costs
) -> list[QuestionGroup]:
    """Put together what shares a prefix; the costliest first, so that memory fails early."""
    together: dict[object, list[AskedQuestion]] = {}
    for place, question in enumerate(questions):
        key = question.prompt.prefix_key or ("alone", place)
        together.setdefault(key, []).append(question)
    found = []
    for some in together.values():
        some.sort(key=lambda one: -one.prompt.tokens)
        found.append(QuestionGroup(tuple(some), _cost(some, dataset, costs)))
    return sorted(found, key=lambda family: -family.cost)


def _cost(questions: Sequence[AskedQuestion], dataset: Dataset, costs: Costs) -> float:
    prefix = questions[0].prompt.prefix_tokens
    shown = {image for one in questions for image in dataset.image_numbers(one.example)}
    price = costs.text(prefix) + costs.crop * int(dataset.sizes.image_crops[list(shown)].sum())
    price += sum(costs.text(one.prompt.tokens - prefix, prefix) for one in questions)
    return float(price)


def deal_questions(found: Sequence[QuestionGroup], world_size: int) -> list[list[QuestionGroup]]:
    """Give each family to the process that has least to do so far; all processes agree."""
    shares: list[list[QuestionGroup]] = [[] for _ in range(world_size)]
    loads = [0.0] * world_size
    for family in found:
        least = loads.index(min(loads))
        shares[least].append(family)
        loads[least] += family.cost
    return shares
