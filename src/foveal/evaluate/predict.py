"""Examples -> Predictions: greedy answers, similar lengths together, each picture encoded once."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from foveal.data.batch import open_pictures
from foveal.data.dataset import Dataset
from foveal.data.example import Example
from foveal.evaluate.prediction import Prediction
from foveal.models.family import LoadedModel


@dataclass(frozen=True)
class Question:
    """One turn to be answered: its prompt, behind the turns before it with their given answers."""

    example: int
    turn: int
    entries: NDArray[np.int32]
    """Ids, and -(k + 1) for image k of the example."""

    tokens: int
    """Length with the images written out."""


def predict(
    loaded: LoadedModel,
    examples: Sequence[Example],
    dataset: Dataset,
    max_new_tokens: int,
    tokens_per_batch: int,
    only: Sequence[int] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Prediction]:
    """Answer every turn of every example greedily.

    Args:
        loaded: model and processor.
        examples: to be answered.
        dataset: the same examples, encoded.
        max_new_tokens: longest answer.
        tokens_per_batch: prompt tokens of one batch.
        only: places of the examples to answer; none: all.
        progress: called with the number of answers made.

    Returns:
        One prediction a turn, in the order of the examples.
    """
    questions = [
        question
        for example in (range(len(examples)) if only is None else only)
        for question in questions_of(example, dataset)
    ]
    answers: dict[tuple[int, int], str] = {}
    model = loaded.model
    was_training = model.training
    model.eval()
    for batch in batches(questions, tokens_per_batch):
        texts = answer_batch(loaded, batch, dataset, max_new_tokens)
        for question, text in zip(batch, texts, strict=True):
            answers[question.example, question.turn] = text
        if progress:
            progress(len(answers))
    model.train(was_training)
    return [
        Prediction(
            id=examples[question.example].id,
            turn=question.turn,
            prediction=answers[question.example, question.turn],
            answers=examples[question.example].turns[question.turn].accepted,
        )
        for question in questions
    ]


def questions_of(example: int, dataset: Dataset) -> Iterator[Question]:
    """Cut an example into one question a turn."""
    encoded = dataset.examples[example]
    learnt = encoded.learnt
    answers_start = np.flatnonzero(learnt & ~np.concatenate([[False], learnt[:-1]]))
    numbers = dataset.image_numbers(example)
    for turn, start in enumerate(answers_start):
        entries = encoded.entries[:start]
        shown = [numbers[-1 - entry] for entry in entries[entries < 0]]
        extra = sum(dataset.images[image].tokens - 1 for image in shown)
        yield Question(example, turn, entries, len(entries) + extra)


def batches(questions: Sequence[Question], tokens_per_batch: int) -> Iterator[list[Question]]:
    """Put questions of similar length together, the longest first, so that memory fails early."""
    batch: list[Question] = []
    for question in sorted(questions, key=lambda one: -one.tokens):
        if batch and batch[0].tokens * (len(batch) + 1) > tokens_per_batch:
            yield batch
            batch = []
        batch.append(question)
    if batch:
        yield batch


@torch.no_grad()
def answer_batch(
    loaded: LoadedModel, batch: Sequence[Question], dataset: Dataset, max_new_tokens: int
) -> list[str]:
    """Generate the answers of one batch, padded on the left."""
    processor, model = loaded.processor, loaded.model
    longest = max(question.tokens for question in batch)
    end_of_turn, end_of_text = processor.end_ids
    ids = torch.full((len(batch), longest), end_of_text)
    mask = torch.zeros(len(batch), longest, dtype=torch.long)
    shown: list[int] = []
    for row, question in enumerate(batch):
        encoded, numbers = (
            dataset.examples[question.example],
            dataset.image_numbers(question.example),
        )
        tokens = [dataset.images[number].tokens for number in numbers]
        expanded = encoded.expand(tokens, processor.image_token_id).ids[: question.tokens]
        ids[row, longest - question.tokens :] = torch.from_numpy(expanded)
        mask[row, longest - question.tokens :] = 1
        shown += [numbers[-1 - entry] for entry in question.entries[question.entries < 0]]
    pictures = open_pictures(shown, dataset, processor)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if shown:
        inputs |= {"pixel_values": pictures.pixel_values, "image_sizes": pictures.image_sizes}
    inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    if shown:
        inputs["image_indices"] = pictures.image_indices
    made = model.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=[end_of_turn, end_of_text],
        pad_token_id=end_of_text,
        suppress_tokens=[processor.image_token_id],
    )
    return [processor.decode_answer(row.tolist()) for row in made[:, longest:]]
