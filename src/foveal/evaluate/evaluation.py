"""A model + examples -> predictions.jsonl and scores.json, even if it is killed on the way."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Protocol, TypeVar

from rich.console import Console

from foveal.config import Columns, DataSettings, EvaluateSettings, load_recipe
from foveal.data.convert.unpack import find_rows, unpacked
from foveal.data.dataset import Dataset, read_dataset
from foveal.data.example import Example, read_examples
from foveal.data.images.objects import image_base
from foveal.data.parallel import counting
from foveal.errors import ConfigError, DataError, UserError
from foveal.evaluate.kept import (
    PREDICTIONS,
    SCORES,
    WEIGHTS,
    WHAT,
    Place,
    describe_question,
    is_of_run,
)
from foveal.evaluate.metrics import find_metrics, plain
from foveal.evaluate.predict import check_question_lengths, predict
from foveal.evaluate.prediction import (
    Prediction,
    Scores,
    accepted_answers,
    append_predictions,
    read_predictions,
    score_predictions,
    with_answers,
    write_predictions,
    write_scores,
)
from foveal.evaluate.questions import Opener, ask_examples, balance_questions, question_groups
from foveal.models.family import LoadedModel
from foveal.models.fingerprint import fingerprint_model
from foveal.storage import alone_in

Item = TypeVar("Item")
Key = tuple[str, int]


class Workers(Protocol):
    """The processes that share an evaluation; a training engine is one."""

    rank: int
    world_size: int

    @property
    def precision(self) -> str:
        """Number format of the passes."""
        ...

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        ...

    def gather(self, items: list[Item]) -> list[Item]:
        """Bring the items of all processes together, in the order of their ranks."""
        ...

    def wait(self) -> None:
        """Wait until every process is here."""
        ...

    def autocast(self) -> AbstractContextManager[None]:
        """Compute in the run's number format."""
        ...


def by_key(predictions: Iterable[Prediction]) -> dict[Key, Prediction]:
    """Find predictions by what they answer."""
    return {one.key: one for one in predictions}


def evaluate_into(
    folder: Path,
    loaded: LoadedModel,
    examples: Sequence[Example],
    dataset: Dataset,
    settings: EvaluateSettings,
    workers: Workers,
    console: Console,
    model: str = "",
    stop: Callable[[], bool] = lambda: False,
) -> Scores | None:
    """Write predictions.jsonl and scores.json of some examples; answers that stand are kept.

    Each question is answered exactly once, by one of the processes, and written down at once: an
    evaluation that was killed goes on from there. Answers of other weights, to other data or under
    other settings are made again. Scores are always worked out anew.

    Args:
        folder: to write to.
        loaded: model and processor.
        examples: to be answered.
        dataset: the same examples, encoded.
        settings: how answers are made and scored.
        workers: the processes that share the work.
        console: to show progress on.
        model: tells the weights from others that were evaluated here before.
        stop: asked between answers; all processes stop when one of them is to.

    Returns:
        None where it was stopped.

    Raises:
        DataError: two examples have the same id, one is too long, an image cannot be opened.
        ConfigError: answers are to be chosen, but there is nothing to choose from.
        ModelError: the model's numbers are not finite.
    """
    examples = examples[: settings.max_examples]
    check_ids(examples)
    check_choices(examples, settings, console)
    find_metrics(settings.metrics)  # an unknown one is named before the work, not after
    place = Place(folder)
    if workers.is_main:
        asked = describe_question(examples, dataset, settings, workers.precision)
        others = place.begin({WEIGHTS: model, **asked})
        if others:
            console.print(
                f"{folder}: answers to another question ({', '.join(others)} changed) made again",
                highlight=False,
                markup=False,
            )
    workers.wait()
    found = by_key(workers.gather(place.read(workers.rank, examples)))
    order = accepted_answers(examples)
    if not found.keys() >= order.keys():
        made = answer(place, loaded, examples, dataset, settings, workers, console, found, stop)
        if made is None:
            return None
        found |= made
    predictions = [found[key].scored(settings.metrics) for key in order]
    scores = score_predictions(predictions, settings.metrics)
    if workers.is_main:
        place.end(predictions, scores)
    workers.wait()
    return scores


def answer(
    place: Place,
    loaded: LoadedModel,
    examples: Sequence[Example],
    dataset: Dataset,
    settings: EvaluateSettings,
    workers: Workers,
    console: Console,
    done: Mapping[Key, Prediction],
    stop: Callable[[], bool],
) -> dict[Key, Prediction] | None:
    """Answer what is not done yet; returns the answers of all processes, none where stopped."""
    problems: list[UserError] = []
    with Opener(dataset, loaded.processor) as opener:
        everything = ask_examples(range(len(examples)), examples, opener, settings)
        left = [question for question in everything if question.key not in done]
        check_question_lengths(loaded, left, settings.max_new_tokens)
        groups = question_groups(left, dataset, loaded.family.row_costs(loaded.processor))
        shares = balance_questions(groups, workers.world_size)
        mine = [question for family in shares[workers.rank] for question in family.questions]
        mine.sort(key=lambda one: not one.choices)  # first chosen, then written ones
        opener.expect([image for one in mine for image in dataset.image_numbers(one.example)])
        made: list[Prediction] = []
        with (
            evaluating(loaded),
            workers.autocast(),
            counting(console, f"answering {place.folder.name}", len(mine)) as bar,
        ):
            try:
                for some in predict(loaded, mine, settings):
                    append_predictions(place.own_file(workers.rank), some)
                    made += some
                    bar(len(made))
                    if stop():
                        break
            except UserError as error:
                problems.append(error)  # of this process alone; the others hear of it
    for problem in workers.gather(problems):
        raise problem
    if any(workers.gather([stop()])):
        return None
    return by_key(workers.gather(made))


@contextmanager
def evaluating(loaded: LoadedModel) -> Iterator[None]:
    """Have a model in evaluation mode, and leave it as it was."""
    was_training = loaded.model.training
    loaded.model.eval()
    try:
        yield
    finally:
        loaded.model.train(was_training)


def check_ids(examples: Sequence[Example]) -> None:
    """Refuse examples that cannot be told apart.

    Raises:
        DataError: two have the same id.
    """
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            raise DataError(
                f"two examples have the id {example.id!r}; give each its own: answers go by it"
            )
        seen.add(example.id)


def check_choices(
    examples: Sequence[Example], settings: EvaluateSettings, console: Console
) -> None:
    """Refuse to choose from nothing; count the questions whose right answer is not offered.

    Raises:
        ConfigError: answers are to be chosen, and some question has no closed set.
    """
    if settings.answer == "generate":
        return
    unanswerable = 0
    for example in examples:
        for turn in example.turns:
            choices = turn.choices or settings.choices
            if not choices and settings.answer == "choices":
                raise ConfigError(
                    f"evaluate.answer=choices, but example {example.id!r} names no choices; "
                    "name them in the data or in evaluate.choices, or use evaluate.answer=auto"
                )
            offered = set(map(plain, choices))
            unanswerable += bool(choices) and offered.isdisjoint(map(plain, turn.accepted))
    if unanswerable:
        console.print(
            f"{unanswerable:,} questions accept no answer out of their choices: always wrong",
            highlight=False,
        )


def evaluate_model(
    loaded: LoadedModel,
    place: str,
    data: Path,
    out: Path | None,
    *,
    images: Path | None,
    settings: EvaluateSettings,
    workers: Workers,
    console: Console,
) -> tuple[Path, Scores]:
    """Answer and score a file; returns where, and how.

    Asked for again, it answers again; only an evaluation that was cut off is gone on from.

    Args:
        loaded: model, on its device, and processor.
        place: run folder, model folder or hub name that it comes from.
        data: JSONL file of examples.
        out: folder for the answers and scores; none: in the run folder, else `evaluation` here.
        images: folder that image paths start from.
        settings: how answers are made and scored.
        workers: the processes that share the work.
        console: to show progress on.

    Raises:
        ConfigError: the run itself writes where the scores would go.
        AtWorkError: another process writes there.
    """
    is_run = (Path(place) / "recipe.yaml").exists()
    if is_run and not out and is_of_run(data.stem):
        raise ConfigError(
            f"{Path(place) / 'evaluation' / data.stem} is what the run itself evaluated; "
            "give another folder, --out"
        )
    folder = out or (Path(place) / "evaluation" if is_run else Path("evaluation")) / data.stem
    alone = alone_in(folder, folder / ".lock") if workers.is_main else nullcontext()
    with alone:
        columns = Columns()
        if is_run and find_rows(data) is not None:
            columns = load_recipe(Path(place) / "recipe.yaml").data.columns
        if workers.is_main:
            unpacked(data, folder / ".cache", columns)
        workers.wait()
        file = unpacked(data, folder / ".cache", columns)
        base = images and image_base(DataSettings(), images)
        examples, dataset = read_dataset(file, loaded.processor, base)
        if workers.is_main and (folder / SCORES).is_file():
            for name in (SCORES, WHAT):
                (folder / name).unlink(missing_ok=True)
        workers.wait()
        weights = fingerprint_model(loaded.model)
        scores = evaluate_into(
            folder, loaded, examples, dataset, settings, workers, console, weights
        )
        assert scores is not None
        return folder, scores


def score_made_elsewhere(
    predictions: Path,
    data: Path,
    out: Path | None,
    settings: EvaluateSettings,
    console: Console,
) -> tuple[Path, Scores]:
    """Score answers that something else made; returns where the scores are, and the scores.

    Args:
        predictions: JSONL; of each line `id`, `prediction`, and, from the second turn on, `turn`.
        data: JSONL file of the examples that were answered.
        out: folder for scores and scored predictions; none: scores alone, beside the predictions.
        settings: which metrics.
        console: to say on what is missing.

    Raises:
        DataError: a file cannot be read, or a prediction answers no turn of the data.
    """
    examples = list(read_examples(data))
    check_ids(examples)
    found = by_key(with_answers(read_predictions(predictions), examples))
    if not found:
        raise DataError(f"{predictions}: no answer in it; write one a line")
    order = accepted_answers(examples)
    missing = [key for key in order if key not in found]
    if missing:
        name, turn = missing[0]
        console.print(
            f"{len(missing):,} of {len(order):,} turns have no prediction and are not scored; the "
            f"first is turn {turn} of {name!r}",
            highlight=False,
            markup=False,
        )
    scored = [found[key].scored(settings.metrics) for key in order if key in found]
    scores = score_predictions(scored, settings.metrics)
    if out:
        write_predictions(out / PREDICTIONS, scored)
    folder = out or predictions.parent
    write_scores(folder / SCORES, scores)
    return folder, scores
