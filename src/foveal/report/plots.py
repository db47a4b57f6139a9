"""Series of numbers -> one SVG, which takes its colours and fonts from the page around it."""

import io
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveal.report.run_folder import Numbers

INK, FAINT = "#000001", "#000002"
SERIES = tuple(f"#00000{number}" for number in range(3, 9))
"""Colours to draw with; the page says what they look like, in light and in dark."""

_STYLES = {
    INK: "var(--ink)",
    FAINT: "var(--line)",
    **{colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, start=1)},
}

MOST_POINTS = 500
"""Points of a curve; longer runs are averaged down to them."""


@dataclass(frozen=True)
class Line:
    """One series of points."""

    x: Numbers
    y: Numbers
    colour: str = SERIES[0]
    label: str = ""
    kind: str = "line"
    """`line`; `noisy`: a running mean over its faint points; `dots`: marks, with `spread`; `bars`:
    from zero, of a `width`."""

    spread: Numbers | None = None
    """(2, points), lengths of the error bars down and up."""

    width: float = 0.8


def running_mean(values: Numbers, width: int) -> Numbers:
    """Average each value with its neighbours, `width` in all; gaps are passed over."""
    kernel, known = np.ones(width), np.isfinite(values)
    total = np.convolve(np.where(known, values, 0.0), kernel, "same")
    return _mean(total, np.convolve(known.astype(float), kernel, "same"))


def thin(values: Numbers) -> Numbers:
    """Average neighbours until at most MOST_POINTS are left."""
    each = math.ceil(len(values) / MOST_POINTS)
    if each <= 1:
        return values
    padded = np.concatenate([values, np.full(-len(values) % each, np.nan)]).reshape(-1, each)
    known = np.isfinite(padded)
    return _mean(np.where(known, padded, 0.0).sum(axis=1), known.sum(axis=1))


def _mean(total: Numbers, count: NDArray[Any]) -> Numbers:
    with np.errstate(invalid="ignore"):  # 0 / 0: nothing is known there
        mean: Numbers = total / count
    return mean


def draw(
    name: str,
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    *,
    whole_x: bool = True,
    logarithmic: bool = False,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float | None] | None = None,
) -> str:
    """Draw lines into one SVG element without a size of its own.

    Args:
        name: told apart from that of every other chart on the page.
        lines: what to draw.
        x_label: what the horizontal axis counts.
        y_label: what the vertical axis counts, with its unit.
        whole_x: the horizontal axis counts whole things.
        logarithmic: equal ratios look equal on the vertical axis.
        x_range: ends of the horizontal axis.
        y_range: ends of the vertical axis; none: as the lines need.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator, NullFormatter, StrMethodFormatter

    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "text.parse_math": False,
        "font.size": 9.5,
        "axes.edgecolor": FAINT,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.labelcolor": INK,
        "axes.grid": True,
        "grid.color": FAINT,
        "grid.linewidth": 0.5,
        "xtick.color": FAINT,
        "ytick.color": FAINT,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "text.color": INK,
    }
    highest = max((float(np.nanmax(line.y, initial=0)) for line in lines), default=0.0)
    with rc_context(settings), warnings.catch_warnings():
        # The page draws the letters, so one that matplotlib's font lacks is no loss.
        warnings.filterwarnings("ignore", message="Glyph")
        figure = Figure(figsize=(4.6, 2.7), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        for line in lines:
            _add(axes, line)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if logarithmic:
            axes.set_yscale("log")
            # The scale's own labels are mathtext, which an SVG with real text shows as its source.
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            counts = all(line.kind == "bars" for line in lines)
            steps = [1, 2, 2.5, 5, 10]
            axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=steps, integer=counts))
            if highest >= 1000:
                axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        if whole_x:
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.set_xlim(x_range)
        axes.set_ylim(*(y_range or (None, None)))
        if y_range and y_range[1] is None:  # the highest point shall not lie on the edge
            axes.set_ylim(top=1.08 * highest or 1)
        if any(line.label for line in lines):
            # A long name runs over the edge instead of leaving the curve no room.
            axes.legend(frameon=False, loc="best").set_in_layout(False)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return _for_the_page(text.getvalue(), name)


def _add(axes: Any, line: Line) -> None:
    style = {"color": line.colour, "label": line.label or None}
    if line.kind == "noisy":
        each = math.ceil(len(line.y) / MOST_POINTS)
        smooth = running_mean(line.y, max(1, min(101, len(line.y) // 25) | 1))
        axes.plot(line.x[::each], thin(line.y), color=line.colour, linewidth=0.8, alpha=0.3)
        axes.plot(line.x[::each], smooth[::each], **style)
    elif line.kind == "bars":
        axes.bar(line.x, line.y, line.width, zorder=2, **style)
    elif line.kind == "dots":
        marks = {"marker": "o", "markersize": 4, "capsize": 2.5, "linewidth": 1.2}
        axes.errorbar(line.x, line.y, line.spread, **marks, **style)
    else:
        axes.plot(line.x, line.y, **style)


def _for_the_page(svg: str, name: str) -> str:
    svg = svg[svg.index("<svg") :]
    # Size, fonts and line ends are the page's affair, and a style in here would reach all of it.
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;\"]*; ?", "", svg)
    # Ids must differ between the charts of one page.
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\1{name}-", svg)
    svg = re.sub(r"\s*\n\s*", " ", svg)
    for colour, style in _STYLES.items():
        svg = svg.replace(colour, style)
    return svg.replace("<svg ", '<svg aria-hidden="true" ', 1)
