"""What the drawn charts promise."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from foveal.report.plots import MOST_POINTS, SERIES, Line, draw, running_mean, thin

STEPS = np.arange(1.0, 41.0)


def test_a_running_mean_averages_neighbours_and_passes_over_gaps():
    values = np.array([1.0, 2.0, np.nan, 4.0, 6.0])
    np.testing.assert_allclose(running_mean(values, 3), [1.5, 1.5, 3.0, 5.0, 5.0])
    assert np.isnan(running_mean(np.full(3, np.nan), 3)).all()


def test_long_series_are_averaged_down_and_short_ones_left_alone():
    assert thin(STEPS) is STEPS
    found = thin(np.arange(2 * MOST_POINTS + 1.0))  # in threes, the last of one or two
    assert len(found) <= MOST_POINTS
    np.testing.assert_allclose(found[:2], [1, 4])


def test_colours_and_fonts_come_from_the_page():
    svg = draw("loss", [Line(STEPS, 1 / STEPS, label="loss")], "step", "nats")
    assert "var(--series-1)" in svg
    assert "var(--ink)" in svg
    assert not re.search(r"#[0-9a-f]{6}|font-family|<style|<metadata| width=\"\d+pt", svg)


def test_a_chart_is_well_formed_and_its_axes_are_named():
    svg = draw("loss", [Line(STEPS, 1 / STEPS, kind="noisy")], "step", "nats a token")
    words = {element.text for element in ElementTree.fromstring(svg).iter()}
    assert {"step", "nats a token", "0.25", "0.50", "16", "32"} <= words


def test_ids_of_two_charts_never_meet_and_every_reference_is_found():
    first, second = (draw(name, [Line(STEPS, STEPS)], "x", "y") for name in ("one", "two"))
    ids = [set(re.findall(r' id="([^"]+)"', svg)) for svg in (first, second)]
    assert not ids[0] & ids[1]
    used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', first))
    assert {one or other for one, other in used} <= ids[0]


def test_a_label_is_text_whatever_it_holds():
    label = "<img src=x onerror=alert(1)> $\\frac{1}{2}$ 日本"
    svg = draw("x", [Line(STEPS, STEPS, label=label)], "step", "y")
    assert label in [element.text for element in ElementTree.fromstring(svg).iter()]
    assert "<img" not in svg


def test_the_same_numbers_draw_the_same_chart():
    lines = [Line(STEPS, STEPS, SERIES[2], "a", "dots", np.ones((2, len(STEPS))))]
    assert draw("x", lines, "step", "y") == draw("x", lines, "step", "y")


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("kind", ["line", "noisy", "dots"])
def test_a_run_of_a_step_or_two_can_be_drawn(count, kind):
    assert "<svg" in draw("x", [Line(STEPS[:count], STEPS[:count], kind=kind)], "step", "y")
