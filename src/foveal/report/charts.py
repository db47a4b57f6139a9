"""A run -> charts: how it learnt, how its score grew, how sure it is of its answers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle

import numpy as np
from numpy.typing import ArrayLike

from foveal.evaluate.intervals import Score, Tally, tally
from foveal.evaluate.metrics import METRICS
from foveal.evaluate.prediction import Prediction
from foveal.report.html import metric_title
from foveal.report.plots import FAINT, SERIES, Line, draw, running_mean
from foveal.report.run_folder import Curves, Numbers, Run

COMPARED = (SERIES[0], *SERIES[2:], SERIES[1])
"""Colours of runs side by side; the second of SERIES is grey, for what came before."""

FROM_ZERO = (0.0, None)
"""Range of an axis that ends where the values do."""


@dataclass(frozen=True)
class Chart:
    """An image of numbers, and in words what it shows."""

    title: str
    words: str
    svg: str


def training_charts(measures: Curves, machine: Mapping[str, object]) -> list[Chart]:
    """Draw loss, how pairs stand, learning rate, gradient norm, throughput and memory by step."""
    columns = dict(measures.columns)
    loss_label = "of a pair" if "margin" in columns else "nats a token"
    if {"examples", "seconds"} <= columns.keys():
        seconds = np.where(columns["seconds"] > 0, columns["seconds"], np.nan)
        columns["throughput"] = columns["examples"] / seconds
    if "memory_bytes" in columns:
        columns["memory_bytes"] = columns["memory_bytes"] / 1e9
    shown = replace(measures, columns=columns)
    rates = partial(_say_rates, measures)
    memory = partial(_say_memory, machine.get("device", "cpu") == "cpu")
    charts = [
        _chart(shown, "loss", "Loss", loss_label, words=_say_trend),
        _chart(shown, "preferred", "Pairs preferred", "share", (0, 1)),
        _chart(shown, "margin", "Margin", "nats between both answers"),
        _chart(shown, "chosen_log_probability", "Chosen answers", "log-probability, nats"),
        _chart(shown, "rejected_log_probability", "Rejected answers", "log-probability, nats"),
        _chart(shown, "distance", "Distance from the reference", "nats an answer"),
        _chart(shown, "learning_rate", "Learning rate", "rate", kind="line"),
        _chart(shown, "gradient_norm", "Gradient norm", "norm before clipping"),
        _chart(shown, "throughput", "Throughput", "examples a second", FROM_ZERO, words=rates),
        _chart(shown, "memory_bytes", "Memory", "GB", FROM_ZERO, words=memory),
    ]
    return [chart for chart in charts if chart]


def _say_range(values: Numbers) -> str:
    low, middle, high = np.quantile(values[np.isfinite(values)], [0, 0.5, 1])
    return f"Between {low:.3g} and {high:.3g}, median {middle:.3g}.{_gaps(values)}"


def _say_trend(loss: Numbers) -> str:
    smooth = running_mean(loss, max(1, len(loss) // 25) | 1)
    first, last = smooth[np.isfinite(smooth)][[0, -1]]
    return f"From {first:.3g} to {last:.3g}, averaged over neighbouring steps.{_gaps(loss)}"


def _say_rates(measures: Curves, _: Numbers) -> str:
    seconds = measures.total("seconds")
    words = f"{measures.total('examples') / seconds:,.3g} examples a second over the whole run"
    if "tokens" in measures.columns:
        words += f", {measures.total('tokens') / seconds:,.0f} tokens a second"
    return f"{words}."


def _say_memory(on_cpu: bool, gigabytes: Numbers) -> str:
    held = (
        "held by the first process behind each step"
        if on_cpu
        else "that tensors held at once on the first GPU during each step"
    )
    return f"At most {np.nanmax(gigabytes):.3g} GB; {held}."


def _gaps(values: Numbers) -> str:
    gaps = int((~np.isfinite(values)).sum())
    return f" {gaps} of {len(values)} steps have no finite value." if gaps else ""


def _chart(
    measures: Curves,
    column: str,
    title: str,
    y_label: str,
    y_range: tuple[float, float | None] | None = None,
    kind: str = "noisy",
    words: Callable[[Numbers], str] = _say_range,
) -> Chart | None:
    """Draw a column against the step; none where it has no finite value."""
    values = measures.columns.get(column, np.empty(0))
    known = values[np.isfinite(values)]
    if not known.size:
        return None
    # A few steps far above the rest would press all others flat.
    spread = known.max() > 30 * np.median(known) > 0 and known.min() > 0 and kind == "noisy"
    svg = draw(
        column.replace("_", "-"),
        [Line(measures.steps, values, kind=kind)],
        "step",
        y_label,
        logarithmic=bool(spread) and y_range is None,
        y_range=y_range,
    )
    return Chart(title, words(values), svg)


def progress_charts(run: Run, metric: str) -> list[Chart]:
    """Draw the main score along the run, where it was measured on the way."""
    ways = _progress(run, metric)
    if len(ways) < 3:
        return []
    line = _score_line(ways, SERIES[0])
    title = metric_title(metric)
    best = int(np.nanargmax(line.y))
    words = f"Best {line.y[best]:.1f} % at step {line.x[best]:,.0f}. Bars are 95 % intervals."
    return [Chart(f"{title} on the way", words, draw("progress", [line], "step", f"{title}, %"))]


def _progress(run: Run, metric: str) -> list[tuple[int, Score]]:
    """List (step, score): before the first step, on the way, after the last."""
    ways = list(run.steps)
    if "before" in run.evaluations:
        ways.insert(0, (0, run.evaluations["before"]))
    if "after" in run.evaluations and run.measures:
        last = int(run.measures.steps[-1])
        ways = [*(way for way in ways if way[0] < last), (last, run.evaluations["after"])]
    return [(step, one.scores[metric]) for step, one in ways if metric in one.scores]


def _score_line(ways: Sequence[tuple[int, Score]], colour: str, label: str = "") -> Line:
    steps, scores = zip(*ways, strict=True)
    value, low, high = (
        100 * np.array([getattr(score, key) for score in scores])
        for key in ("value", "low", "high")
    )
    spread = np.abs(np.stack([value - low, high - value]))
    return Line(np.array(steps, float), value, colour, label, "dots", spread)


def loss_comparison(runs: Sequence[Run], names: Sequence[str]) -> list[Chart]:
    """Draw the loss of several runs in one chart."""
    lines = [
        Line(run.measures.steps, run.measures.columns["loss"], colour, name, "noisy")
        for run, name, colour in zip(runs, names, cycle(COMPARED), strict=False)
        if run.measures and np.isfinite(run.measures.columns.get("loss", [])).any()
    ]
    if not lines:
        return []
    words = "Running means over the single steps."
    return [Chart("Loss", words, draw("loss", lines, "step", "nats a token"))]


def progress_comparison(runs: Sequence[Run], names: Sequence[str]) -> list[Chart]:
    """Draw the main score of several runs along the way, in one chart."""
    metric = next((name for run in runs if run.latest for name in run.latest.scores), "")
    lines = [
        _score_line(ways, colour, name)
        for run, name, colour in zip(runs, names, cycle(COMPARED), strict=False)
        if len(ways := _progress(run, metric)) > 1
    ]
    if not lines:
        return []
    title = metric_title(metric)
    svg = draw("progress", lines, "step", f"{title}, %")
    return [Chart(f"{title} on the way", "Bars are 95 % intervals.", svg)]


def calibration_charts(run: Run) -> list[Chart]:
    """Draw how often closed answers are right against how sure the model is of them."""
    lines, words = [], []
    for place, one in enumerate((run.before, run.latest)):
        closed = [each for each in one.predictions if each.choice_scores] if one else []
        if one is None or not closed:
            continue
        sure = [max(each.choice_probabilities.values()) for each in closed]
        right = [METRICS["accuracy"](_likeliest(each), each.answers) for each in closed]
        parts = calibration(sure, right)
        confidence = np.array([part.confidence.value for part in parts])
        correct = np.array([part.correct.value for part in parts])
        lines.append(Line(100 * confidence, 100 * correct, SERIES[1 - place], one.title, "dots"))
        words.append(f"{one.title}: off by {100 * calibration_error(parts):.1f} points on average.")
    if not lines:
        return []
    ends = np.array([0.0, 100.0])
    svg = draw(
        "calibration",
        [Line(ends, ends, FAINT), *lines],
        "probability of the answer, %",
        "right answers, %",
        whole_x=False,
        x_range=(0, 102),
        y_range=(0, 102),
    )
    words.append("On the diagonal a model is as sure as it is right.")
    return [Chart("Calibration", " ".join(words), svg)]


def _likeliest(prediction: Prediction) -> str:
    chances = prediction.choice_probabilities
    return max(chances, key=lambda label: chances[label])


@dataclass(frozen=True)
class Calibration:
    """How sure the answers of one bin were, and how many of them were right."""

    confidence: Tally
    correct: Tally


def calibration(confidence: ArrayLike, correct: ArrayLike, bins: int = 10) -> list[Calibration]:
    """Sort answers by the probability they were given into bins of equal width; empty ones go.

    Args:
        confidence: (examples,), probability of the answer given.
        correct: (examples,), bool or 0 to 1.
        bins: number of bins from 0 to 1.
    """
    sure, right = np.asarray(confidence, float), np.asarray(correct, float)
    place = np.minimum((sure * bins).astype(int), bins - 1)
    return [
        Calibration(tally(sure[place == bin_]), tally(right[place == bin_]))
        for bin_ in np.unique(place)
    ]


def calibration_error(parts: Sequence[Calibration]) -> float:
    """Expected calibration error: mean gap of confidence and accuracy (Guo et al. 2017)."""
    gaps = sum(abs(part.confidence.total - part.correct.total) for part in parts)
    return Tally(gaps, sum(part.correct.count for part in parts)).value
