"""A loaded model + real examples -> what can be compared: logits, greedy answers, scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveal.config import DataSettings, EvaluateSettings, Recipe
from foveal.data.batch import build_batch
from foveal.data.convert.unpack import unpacked
from foveal.data.dataset import Dataset, build_dataset
from foveal.data.encode import encode
from foveal.data.example import Example, read_examples
from foveal.data.images.image_folder import ImageFolder
from foveal.data.images.objects import image_base
from foveal.data.row_planning.groups import Group, Row
from foveal.data.turn_processor import read_as
from foveal.errors import DataError, RunError
from foveal.evaluate.predict import predict
from foveal.evaluate.prediction import Prediction, Scores, score_predictions
from foveal.evaluate.questions import Opener, question_groups, questions_of
from foveal.models.family import LoadedModel
from foveal.models.forward import hidden_states

COMPARED = 8
"""EvidenceExamples whose logits and answers are compared."""


@dataclass(frozen=True)
class EvidenceExamples:
    """Real examples to compare models on."""

    file: Path
    examples: tuple[Example, ...]
    dataset: Dataset
    scored: bool
    """Whether they are what the run's scores were made from."""

    settings: DataSettings
    """How the run read them."""

    @property
    def compared(self) -> list[int]:
        """Places of the few whose logits are compared, spread over the file."""
        count = min(COMPARED, len(self.examples))
        return [place * len(self.examples) // count for place in range(count)]


def find_examples(recipe: Recipe, processor: Any) -> EvidenceExamples:
    """Read a run's validation examples, or a few that it learnt from.

    Raises:
        RunError: their file is not there.
        DataError: it or a picture cannot be read.
    """
    data, limit = recipe.data.validation, recipe.evaluate.max_examples
    scored = data is not None
    if data is None and recipe.data.train_files:
        data, limit = recipe.data.train_files[0].path, COMPARED
    data = data and unpacked(data, recipe.run / ".cache", recipe.data.columns)
    if data is None or not data.is_file():
        raise RunError(
            f"{data}: the run's examples are not there, and without them nothing can be proven; "
            "bring the file back, or export with --no-proof"
        )
    examples = tuple(islice(read_examples(data), limit))
    if not examples:
        raise DataError(f"{data}: no examples; write one conversation a line")
    folder = ImageFolder(data, image_base(recipe.data))
    read_as(processor, recipe.data)
    encoded = [encode(example, processor, folder) for example in examples]
    return EvidenceExamples(data, examples, build_dataset(encoded, processor), scored, recipe.data)


@torch.no_grad()
def answer_logits(loaded: LoadedModel, examples: EvidenceExamples) -> list[Tensor]:
    """Work out what a model expects at each token of the given answers.

    Returns:
        (answer tokens, vocab) for each compared example, float32, on the CPU.
    """
    model, family = loaded.model.eval(), loaded.family
    logits = []
    for place in examples.compared:
        row = Row((Group((place,), int(examples.dataset.sizes.tokens[place])),))
        batch = build_batch(row, examples.dataset, loaded.processor).to(model.device)
        hidden = hidden_states(model, family, batch, groups=batch.groups)
        logits.append(family.head(model)(hidden[batch.predictors]).float().cpu())
    return logits


def greedy_answers(
    loaded: LoadedModel, examples: EvidenceExamples, settings: EvaluateSettings
) -> list[str]:
    """Answer the compared examples."""
    made = _predict(loaded, examples, settings, examples.compared)
    return [one.prediction for one in made]


def measure_scores(
    loaded: LoadedModel, examples: EvidenceExamples, settings: EvaluateSettings
) -> Scores:
    """Answer and score all examples, as the run's own evaluation does."""
    made = _predict(loaded, examples, settings, range(len(examples.examples)))
    scored = [one.scored(settings.metrics) for one in made]
    return score_predictions(scored, settings.metrics)


def _predict(
    loaded: LoadedModel,
    examples: EvidenceExamples,
    settings: EvaluateSettings,
    only: Sequence[int],
) -> list[Prediction]:
    read_as(loaded.processor, examples.settings)
    choices = None if settings.answer == "generate" else settings.choices
    with Opener(examples.dataset, loaded.processor) as opener:
        questions = [
            question
            for place in only
            for question in questions_of(
                place, examples.examples[place], examples.dataset, opener, choices
            )
        ]
        costs = loaded.family.row_costs(loaded.processor)
        groups = question_groups(questions, examples.dataset, costs)
        shared = [one for group in groups for one in group.questions]
        made = [one for some in predict(loaded, shared, settings) for one in some]
    order = {question.key: number for number, question in enumerate(questions)}
    return sorted(made, key=lambda one: order[one.key])
