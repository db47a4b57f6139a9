"""A run folder -> one page to read: what was run, how it went, what changed, what it got wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from foveal.config import Columns, DataSettings
from foveal.data.convert.unpack import unpacked
from foveal.data.example import Example, read_examples
from foveal.data.images.image_folder import ImageFolder
from foveal.data.images.objects import image_base
from foveal.errors import UserError
from foveal.evaluate.closed_answers import Confusion, auroc_difference, confusion
from foveal.evaluate.intervals import Difference, Score, difference
from foveal.evaluate.metrics import plain
from foveal.evaluate.prediction import Prediction, common_labels, right_label
from foveal.report.charts import Chart, calibration_charts, progress_charts, training_charts
from foveal.report.cost import cost
from foveal.report.gallery import Gallery, Pair, choose_cards, match
from foveal.report.html import write_page
from foveal.report.origins import Origins, setup_of
from foveal.report.pairs import PairRow, pair_rows
from foveal.report.run_folder import (
    Evaluation,
    Run,
    answer_score,
    read_run,
)

MATRIX_LABELS = 12
"""Most labels of a confusion matrix; of more, the commonest confusions are listed."""

INCIDENTS = 50
"""Incidents that are listed; the rest are counted."""


@dataclass(frozen=True)
class ScoreRow:
    """One metric, before and after."""

    metric: str
    before: Score | None
    after: Score
    difference: Difference | None
    published: float | None


@dataclass(frozen=True)
class Confusions:
    """Which labels one evaluation took for which."""

    title: str
    matrix: Confusion
    commonest: tuple[tuple[str, str, int], ...]
    """(truth, answer, count), the most frequent first."""

    @property
    def is_small(self) -> bool:
        """Whether the matrix can be read as a table."""
        return len(self.matrix.labels) <= MATRIX_LABELS

    @property
    def answers(self) -> tuple[str, ...]:
        """Heads of the columns; no label has one only where it occurred."""
        return (*self.matrix.labels, *(["none of them"] if self.matrix.counts[:, -1].any() else []))


@dataclass(frozen=True)
class Page:
    """All that the template shows."""

    run: Run
    setup: Origins
    notes: Sequence[str]
    rows: Sequence[ScoreRow]
    source: str
    """Where the published scores stand."""

    unmeasured: Mapping[str, float]
    """Published scores that this run was not asked for."""

    pair_rows: Sequence[PairRow]
    """How likely the answers of pairs are."""

    chosen: int
    """Answers of the latest evaluation that were chosen out of a closed set, not written."""

    charts: Sequence[Chart]
    score_charts: Sequence[Chart]
    confusions: Sequence[Confusions]
    gallery: Gallery
    incidents: Sequence[Mapping[str, object]]
    incident_columns: Sequence[str]
    cost: Mapping[str, str]


def write_report(
    run: Path,
    *,
    data: Path | None = None,
    images: Path | None = None,
    published: Mapping[str, float | str] | None = None,
    out: Path | None = None,
) -> Path:
    """Write one self-contained page about a run.

    Args:
        run: folder of the run.
        data: examples behind its predictions; by default the recipe's `data.validation`.
        images: folder that image paths start from; by default the recipe's `data.images`.
        published: metric -> published score, 0 to 1, to stand beside ours, and their `source`; by
            default the recipe's.
        out: the page; by default `report.html` in the run folder.

    Returns:
        The page.

    Raises:
        RunError: there is no run in the folder.
        ConfigError, DataError: a file in it is broken.
    """
    found = read_run(run)
    if published is None:
        published = (found.recipe.published if found.recipe else None) or {}
    page = render_report(found, data, images, published)
    return write_page(out or run / "report.html", "report.html", page=page)


def render_report(
    run: Run, data: Path | None, images: Path | None, published: Mapping[str, float | str]
) -> Page:
    """Work out all that the page shows."""
    recipe, latest, before = run.recipe, run.latest, run.before
    data = data or (recipe.data.validation if recipe else None)
    images = image_base(recipe.data if recipe else DataSettings(), images)
    columns = recipe.data.columns if recipe else Columns()
    cache = run.folder / ".cache"
    data, examples, notes = _examples(data, cache, columns) if latest else (data, [], [])
    numbers = {name: value for name, value in published.items() if not isinstance(value, str)}
    rows = score_rows(before, latest, numbers)
    main_metric = _main_metric(latest)
    earlier = before.predictions if before else ()
    pairs = match(latest.predictions, earlier, examples) if latest else []
    return Page(
        run=run,
        setup=setup_of(run),
        notes=notes,
        rows=rows,
        source=str(published.get("source", "")),
        unmeasured={
            name: value for name, value in numbers.items() if latest and name not in latest.scores
        },
        pair_rows=pair_rows(
            before.predictions if before else (), latest.predictions if latest else ()
        ),
        chosen=sum(bool(one.choice_scores) for one in latest.predictions) if latest else 0,
        charts=training_charts(run.measures, run.machine) if run.measures else [],
        score_charts=[*progress_charts(run, main_metric), *calibration_charts(run)],
        confusions=confusions(run, pairs),
        gallery=choose_cards(
            pairs,
            partial(_score, metric=main_metric),
            ImageFolder(data, images) if data and examples else None,
            unit=recipe.data.boxes if recipe else None,
        ),
        incidents=run.incidents[:INCIDENTS],
        incident_columns=list(dict.fromkeys(name for one in run.incidents for name in one)),
        cost=cost(run.measures, run.machine) if run.measures else {},
    )


def _main_metric(latest: Evaluation | None) -> str:
    """Find the first metric that scores each answer by itself; AUROC, for one, does not."""
    if latest is None:
        return "accuracy"
    for metric in latest.scores:
        if all(answer_score(one, metric) is not None for one in latest.predictions):
            return metric
    return "accuracy"


def _score(prediction: Prediction, metric: str) -> float:
    return answer_score(prediction, metric) or 0.0


def _examples(
    data: Path | None, cache: Path, columns: Columns
) -> tuple[Path | None, list[Example], list[str]]:
    """Find the file of the examples, those in it, and what to say where there are none."""
    if data is None:
        none = "The recipe names no validation file, so questions and pictures are missing."
        return None, [], [none]
    try:
        file = unpacked(data, cache, columns)
        return file, list(read_examples(file)), []
    except UserError as error:
        return data, [], [f"Questions and pictures are missing. {error}"]


def score_rows(
    before: Evaluation | None, after: Evaluation | None, published: Mapping[str, float]
) -> list[ScoreRow]:
    """Set the scores of two evaluations side by side, with the difference answer by answer."""
    if after is None:
        return []
    return [
        ScoreRow(
            metric,
            before.scores.get(metric) if before else None,
            found,
            paired_difference(before, after, metric) if before else None,
            published.get(metric),
        )
        for metric, found in after.scores.items()
    ]


def paired_difference(before: Evaluation, after: Evaluation, metric: str) -> Difference | None:
    """Compare two evaluations over the turns that both were asked; none where there are none."""
    earlier = {(one.key, one.answers): one for one in before.predictions}
    asked = [((one.key, one.answers), one) for one in after.predictions]
    pairs = [(earlier[key], one) for key, one in asked if key in earlier]
    if metric == "auroc":
        return _auroc_difference(pairs)
    scores = [
        (answer_score(first, metric), answer_score(second, metric)) for first, second in pairs
    ]
    known = [(one, other) for one, other in scores if one is not None and other is not None]
    if not known:
        return None
    first_scores, second_scores = zip(*known, strict=True)
    return difference(first_scores, second_scores)


def _auroc_difference(pairs: Sequence[tuple[Prediction, Prediction]]) -> Difference | None:
    closed = [pair for pair in pairs if pair[0].choice_scores and pair[1].choice_scores]
    labels = common_labels([one for pair in closed for one in pair])
    places = [(right_label(second, labels), first, second) for first, second in closed]
    known = [one for one in places if one[0] is not None]
    if not known:
        return None
    truth, firsts, seconds = zip(*known, strict=True)
    before, after = ([one.chances(labels) for one in some] for some in (firsts, seconds))
    return auroc_difference(before, after, truth)


def confusions(run: Run, pairs: Sequence[Pair]) -> list[Confusions]:
    """Count which labels were taken for which, before and now; nothing for open answers."""
    labels = _closed_labels(pairs)
    found = []
    for one in (run.before, run.latest):
        answers = [(right_label(each, labels), each) for each in one.predictions] if one else []
        known = [(labels[place], each.prediction) for place, each in answers if place is not None]
        if one and known:
            truth, given = zip(*known, strict=True)
            matrix = confusion(truth, given, labels)
            found.append(Confusions(one.title, matrix, _commonest(matrix)))
    return found


def _closed_labels(pairs: Sequence[Pair]) -> tuple[str, ...]:
    """Find the labels: what the data offers, what was chosen from, or the few answers there are."""
    offers = {pair.example.turns[pair.after.turn].choices if pair.example else () for pair in pairs}
    labels = offers.pop() if len(offers) == 1 else ()
    labels = labels or common_labels([pair.after for pair in pairs])
    if labels:
        return labels
    firsts = [pair.after.answers[0] for pair in pairs if pair.after.answers]
    few = {plain(answer): answer for answer in firsts}
    is_closed = 2 <= len(few) <= MATRIX_LABELS and len(pairs) >= 5 * len(few)
    return tuple(few[key] for key in sorted(few)) if is_closed else ()


def _commonest(matrix: Confusion, most: int = 15) -> tuple[tuple[str, str, int], ...]:
    answers = (*matrix.labels, "none of them")
    wrong = [
        (truth, answer, int(matrix.counts[row, column]))
        for row, truth in enumerate(matrix.labels)
        for column, answer in enumerate(answers)
        if row != column and matrix.counts[row, column]
    ]
    return tuple(sorted(wrong, key=lambda each: -each[2])[:most])
