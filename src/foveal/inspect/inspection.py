"""A data set, its processor and its plan -> one self-contained page."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveal.data.dataset import Dataset
from foveal.data.lines import Examples
from foveal.data.rows import Plan
from foveal.inspect.bars import draw_steps
from foveal.inspect.seen import see_example
from foveal.report.charts import Chart
from foveal.report.html import write_page
from foveal.report.plots import Line, draw

STEPS = 3
"""Steps whose rows are drawn."""

BARS = 24
"""Most bars of a distribution."""


@dataclass(frozen=True)
class Facts:
    """What the page says of the whole."""

    examples: int
    pictures: int
    tokens: int
    learnt: int
    image_tokens: int
    """Of all examples."""


def write_inspection(
    out: Path,
    examples: Examples,
    dataset: Dataset,
    processor: Any,
    plan: Plan,
    number: int,
    settings: dict[str, str],
) -> Path:
    """Write the page.

    Args:
        out: the page.
        examples: as they stand in their files.
        dataset: the same, encoded.
        processor: that encoded them.
        plan: of a run over them.
        number: examples to show, spread over all.
        settings: names and values that the page states.
    """
    sizes = dataset.sizes
    count = min(number, sizes.num_sets)
    places = [k * sizes.num_sets // count for k in range(count)]
    firsts = lines = places
    if sizes.sets is not None:
        firsts = sizes.sets[places].tolist()
        lines = np.asarray(_lines_of_sets(examples))[places].tolist()
    shown = [
        see_example(first, _line(examples, line), examples[line].source, dataset, processor)
        for first, line in zip(firsts, lines, strict=True)
    ]
    width, steps = draw_steps(plan, STEPS)
    return write_page(
        out,
        "inspect.html",
        folder=Path(__file__).parent,
        title=examples.files[0].path.name,
        settings=settings,
        facts=_facts(dataset),
        charts=_charts(dataset, cuts=processor.cuts_images),
        remarks=list(dataset.remarks.lines()),
        shown=shown,
        width=width,
        budget=plan.tokens_per_pass,
        steps=steps,
    )


def _lines_of_sets(examples: Examples) -> list[int]:
    """Name the example that each set of answers comes from: each turn that compares some."""
    numbered = enumerate(examples)
    return [place for place, one in numbered for turn in one.turns if turn.rejected]


def _line(examples: Examples, place: int) -> str:
    file, number = examples.find(place)
    return f"{file.name}:{number}"


def _facts(dataset: Dataset) -> Facts:
    sizes = dataset.sizes
    return Facts(
        examples=sizes.num_sets,
        pictures=len(dataset.images),
        tokens=int(sizes.tokens.sum(dtype=np.int64)),
        learnt=dataset.learnt_tokens(),
        image_tokens=int(sizes.image_tokens[sizes.images.values].sum(dtype=np.int64)),
    )


def _charts(dataset: Dataset, *, cuts: bool) -> list[Chart]:
    sizes = dataset.sizes
    questions = np.bincount(sizes.images.values, minlength=len(dataset.images))
    charts = [_distribution("Tokens an example", sizes.tokens, "tokens", "examples")]
    if len(dataset.images):
        if cuts:
            words = "Crops a picture", sizes.image_crops, "crops, global view too"
        else:
            words = "Tokens a picture", sizes.image_tokens, "tokens"
        charts.append(_distribution(*words, "pictures"))
        charts.append(_distribution("Questions a picture", questions, "questions", "pictures"))
    return charts


def _distribution(title: str, values: NDArray[Any], x_label: str, y_label: str) -> Chart:
    low, high = int(values.min()), int(values.max())
    each = max(1, -(-(high - low + 1) // BARS))
    counts = np.bincount((values - low) // each)
    centres = np.arange(len(counts), dtype=np.float64) * each + low + (each - 1) / 2
    middle, mean = float(np.median(values)), float(values.mean())
    words = f"From {low:,} to {high:,}; half have at most {middle:,.0f}, the mean is {mean:,.1f}."
    bars = Line(centres, counts.astype(np.float64), kind="bars", width=each * 0.86)
    name = title.lower().replace(" ", "-")
    margin = each * 0.7
    ends = (centres[0] - margin, centres[-1] + margin)
    if len(centres) == 1:
        ends = (max(-0.7, centres[0] - 2.5), centres[0] + 2.5)
    return Chart(title, words, draw(name, [bars], x_label, y_label, x_range=ends))
