"""Questions -> Predictions: chosen or written, as they come; each page is read once."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain

from foveal.config import EvaluateSettings
from foveal.errors import DataError, ModelError
from foveal.evaluate.prediction import Prediction
from foveal.evaluate.questions import AskedQuestion
from foveal.models.family import LoadedModel
from foveal.models.generation.generator import Generator, Limits, NoAnswer, Request, check_fits
from foveal.models.generation.passes import NotFiniteError
from foveal.models.generation.score import score


def predict(
    loaded: LoadedModel, questions: Sequence[AskedQuestion], settings: EvaluateSettings
) -> Iterator[list[Prediction]]:
    """Answer questions: those with choices by the likeliest of them, the others word by word.

    Args:
        loaded: model, in evaluation mode, and processor.
        questions: those that share a page side by side.
        settings: how many tokens an answer has, and how many are worked on at once.

    Yields:
        Some predictions, as they come: not in the order of the questions. Where answers are
        rejected, with how likely those are.

    Raises:
        ModelError: the model's numbers are not finite for a question; the message names it.
    """
    budget = settings.tokens_per_batch
    # As if the answers of a pair were what is to be chosen from.
    pairs = [replace(one, choices=one.compared) for one in questions if one.compared]
    compared = {
        question.key: tuple(numbers)
        for some in likelihoods(loaded, pairs, budget)
        for question, numbers in some
    }
    closed = [one for one in questions if one.choices]
    opened = [one for one in questions if not one.choices]
    chosen = ([choose(*one) for one in some] for some in likelihoods(loaded, closed, budget))
    for made in chain(chosen, write(loaded, opened, settings)):
        yield [replace(one, compared=compared.get(one.key)) for one in made]


def check_question_lengths(
    loaded: LoadedModel, questions: Sequence[AskedQuestion], max_new_tokens: int
) -> None:
    """Refuse questions that leave no room for their answers, before any work.

    Raises:
        DataError: one does; the message names it.
    """
    for one in questions:
        longest = _longest(loaded, one.choices) or max_new_tokens
        try:
            check_fits(loaded, one.prompt, max(longest, _longest(loaded, one.compared)))
        except ValueError as error:
            raise DataError(f"turn {one.turn} of {one.id!r}: {error}") from None


def _longest(loaded: LoadedModel, answers: Sequence[str]) -> int:
    return max((len(label_ids(loaded, answer)) for answer in answers), default=0)


def write(
    loaded: LoadedModel, questions: Sequence[AskedQuestion], settings: EvaluateSettings
) -> Iterator[list[Prediction]]:
    """Write answers token by token, greedily, many at once; who ends leaves its place to others."""
    limits = Limits(tokens=settings.tokens_per_batch, tokens_per_pass=settings.tokens_per_batch)
    generator = Generator(loaded, limits)
    asked = {
        generator.add(Request(question.prompt, settings.max_new_tokens)): question
        for question in questions
    }
    made: dict[int, list[int]] = {handle: [] for handle in asked}
    while not generator.is_idle:
        ended = []
        for token in generator.step():
            if isinstance(token, NoAnswer):
                raise _unanswered(asked[token.handle], token.problem)
            made[token.handle].append(token.id)
            if token.finish:
                text = loaded.processor.decode_answer(made.pop(token.handle))
                question = asked.pop(token.handle)
                text = question.boxes.to_person(text) if question.boxes else text
                ended.append(_prediction(question, text))
        if ended:
            yield ended


def choose(question: AskedQuestion, log_likelihoods: Sequence[float]) -> Prediction:
    """Choose the likeliest of a question's labels."""
    scores = dict(zip(question.choices, log_likelihoods, strict=True))
    return _prediction(question, max(scores, key=lambda label: scores[label]), scores)


def likelihoods(
    loaded: LoadedModel, questions: Sequence[AskedQuestion], tokens_per_batch: int
) -> Iterator[list[tuple[AskedQuestion, list[float]]]]:
    """Sum the log-probabilities of each of the choices of each question, some in one pass.

    The token that ends an answer counts in, so that no label gains by being the start of another.

    Yields:
        Questions, each with the nats of its choices.
    """
    for batch in batches(questions, tokens_per_batch):
        asked = [(one.prompt, [label_ids(loaded, label) for label in one.choices]) for one in batch]
        try:
            found = score(loaded, asked)
        except NotFiniteError as error:
            raise _unanswered(batch[error.place], error) from None
        yield list(zip(batch, found, strict=True))


def label_ids(loaded: LoadedModel, label: str) -> list[int]:
    """Encode a label as an answer, up to the token that ends it."""
    ids: list[int] = loaded.processor.encode_answer(label)
    ends = loaded.processor.end_ids
    end = next((place for place, one in enumerate(ids, start=1) if one in ends), len(ids))
    return ids[:end]


def batches(
    questions: Sequence[AskedQuestion], tokens_per_batch: int
) -> Iterator[list[AskedQuestion]]:
    """Cut questions, in their order, into batches within a budget; shared pages count once."""
    batch: list[AskedQuestion] = []
    headroom = tokens_per_batch
    pages: set[object] = set()
    for question in questions:
        key, whole = question.prompt.prefix_key, _tokens_read(question)
        tokens = whole - question.prompt.prefix_tokens if key in pages else whole
        if batch and tokens > headroom:
            yield batch
            batch, headroom, pages, tokens = [], tokens_per_batch, set(), whole
        headroom -= tokens
        batch.append(question)
        if key is not None:
            pages.add(key)
    if batch:
        yield batch


def _tokens_read(question: AskedQuestion) -> int:
    # A letter is a token at most: labels are short beside a page, and need no exact count.
    return question.prompt.tokens + sum(map(len, question.choices))


def _unanswered(question: AskedQuestion, problem: NotFiniteError) -> ModelError:
    return ModelError(f"no answer to turn {question.turn + 1} of {question.id!r}: {problem}")


def _prediction(
    question: AskedQuestion, answer: str, choice_scores: dict[str, float] | None = None
) -> Prediction:
    return Prediction(
        id=question.id,
        turn=question.turn,
        prediction=answer,
        answers=question.accepted,
        choice_scores=choice_scores,
    )
