"""A data set -> the questions it asks: their prompts, and which of them belong together."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import numpy as np

from foveal.config import EvaluateSettings
from foveal.data.batch import open_pixels
from foveal.data.dataset import Dataset
from foveal.data.encode import known_size
from foveal.data.example import Example
from foveal.data.images.boxes import BoxMap
from foveal.data.row_planning.groups import Costs
from foveal.data.turn_processor import TurnProcessor
from foveal.models.generation.prompt import Pixels, Prompt, PromptImage, find_boxes

AHEAD = 4
"""Images that are opened before they are asked for, for each thread."""


class Opener(AbstractContextManager["Opener"]):
    """Opens images; those that come next in a given order wait ready."""

    def __init__(self, dataset: Dataset, processor: TurnProcessor, threads: int = 2) -> None:
        self.dataset = dataset
        self.processor = processor
        self._pool = ThreadPoolExecutor(threads)
        self._ahead = AHEAD * threads
        self._coming: list[int] = []
        self._ready: dict[int, Future[Pixels]] = {}

    def __exit__(self, *_: object) -> None:
        """Let go of what nobody asked for."""
        self._pool.shutdown(cancel_futures=True)

    def expect(self, images: Sequence[int]) -> None:
        """Say which images will be asked for, in which order."""
        self._coming = list(dict.fromkeys(images))[::-1]
        self._fetch()

    def pixels(self, image: int) -> Pixels:
        """Give an image as the tower takes it.

        Raises:
            DataError: it cannot be opened.
        """
        waiting = self._ready.pop(image, None)
        self._fetch()
        return waiting.result() if waiting else self._open(image)

    def _fetch(self) -> None:
        while self._coming and len(self._ready) < self._ahead:
            image = self._coming.pop()
            self._ready[image] = self._pool.submit(self._open, image)

    def _open(self, image: int) -> Pixels:
        return open_pixels(image, self.dataset, self.processor)


@dataclass(frozen=True)
class AskedQuestion:
    """One turn to be answered, behind the turns before it with their given answers."""

    example: int
    """Its place in the data set."""

    id: str
    """Of the example."""

    turn: int
    accepted: tuple[str, ...]
    prompt: Prompt
    choices: tuple[str, ...]
    """What the answer is one of; empty: it is written."""

    boxes: BoxMap | None = None
    """What moves boxes of the answer into the data's numbers; none: it can hold none."""

    compared: tuple[str, ...] = ()
    """The assistant's answer and those rejected for it; empty: there are none."""

    @property
    def key(self) -> tuple[str, int]:
        """What tells it from all others."""
        return self.id, self.turn


def questions_of(
    number: int, example: Example, opener: Opener, choices: tuple[str, ...] | None = ()
) -> Iterator[AskedQuestion]:
    """Cut an example into one question a turn.

    Args:
        number: place of the example in the opener's data set.
        example: that stands there.
        opener: opens the images, when they are needed.
        choices: what every answer is one of, where the data does not say it; none: answers are
            written, whatever the data says.
    """
    dataset = opener.dataset
    encoded = dataset.examples[number]
    learnt = encoded.learnt
    answers_start = np.flatnonzero(learnt & ~np.concatenate([[False], learnt[:-1]]))
    numbers = dataset.image_numbers(number)
    facts = [dataset.images[image] for image in numbers]
    images = tuple(
        PromptImage(image, fact.shape, partial(opener.pixels, image))
        for image, fact in zip(numbers, facts, strict=True)
    )
    first_prompt = encoded.entries[: encoded.prompt_entries]
    sizes = [known_size(one.path) for one in facts] if opener.processor.boxes else []
    boxes = find_boxes(images, sizes, opener.processor)
    shared = int(np.flatnonzero(first_prompt < 0).max(initial=-1)) + 1
    for turn, start in enumerate(answers_start):
        entries = tuple(encoded.entries[:start].tolist())
        # Every turn of an example, and of others on the same images, begins like its first.
        prompt = Prompt(entries, images, shared_entries=shared)
        asked = example.turns[turn]
        compared = (asked.assistant, *asked.rejected) if asked.rejected else ()
        if boxes:
            compared = tuple(map(boxes.to_model, compared))
        offered = () if choices is None else asked.choices or choices
        yield AskedQuestion(
            number, example.id, turn, asked.accepted, prompt, offered, boxes, compared
        )


def ask_examples(
    places: Iterable[int],
    examples: Sequence[Example],
    opener: Opener,
    settings: EvaluateSettings,
) -> Iterator[AskedQuestion]:
    """Cut the examples of some places into questions, with what the settings offer to choose from.

    Args:
        places: in the opener's data set, whose examples are asked.
        examples: of the data set, from its first.
        opener: opens the images, when they are needed.
        settings: how answers are made.
    """
    choices = None if settings.answer == "generate" else settings.choices
    for place in places:
        yield from questions_of(place, examples[place], opener, choices)


@dataclass(frozen=True)
class QuestionGroup:
    """Questions that begin with the same images, the longest first."""

    questions: tuple[AskedQuestion, ...]
    cost: float
    """In decoder tokens: the images once, and every question."""


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


def balance_questions(found: Sequence[QuestionGroup], world_size: int) -> list[list[QuestionGroup]]:
    """Give each family to the process that has least to do so far; all processes agree."""
    shares: list[list[QuestionGroup]] = [[] for _ in range(world_size)]
    loads = [0.0] * world_size
    for family in found:
        least = loads.index(min(loads))
        shares[least].append(family)
        loads[least] += family.cost
    return shares
