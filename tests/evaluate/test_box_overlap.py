"""Boxes are scored by how well they lie on the accepted ones, each with its best partner."""

from itertools import permutations

import numpy as np
import pytest

from foveal.data.images.boxes import read_boxes
from foveal.evaluate.metrics import iou, iou_above_half, overlap_table
from foveal.evaluate.prediction import Prediction, score_predictions

TRUTH = "[0, 0, 10, 10]"


@pytest.mark.parametrize(
    ("prediction", "overlap", "found"),
    [
        (TRUTH, 1, 1),
        ("[5, 0, 15, 10]", 50 / 150, 0),
        ("[0, 0, 10, 5]", 0.5, 1),  # one half is enough
        ("[0, 0, 10, 4.9]", 0.49, 0),
        ("[10, 10, 20, 20]", 0, 0),  # a corner in common
        ("[0, 0, 10, 10], [50, 50, 60, 60]", 0.5, 0.5),  # one too many
        ("[10, 10, 0, 0]", 0, 0),  # no area
        ("no idea", 0, 0),
        ("", 0, 0),
        ("(0,0),(10,10)", 1, 1),
    ],
)
def test_cases_worked_by_hand(prediction, overlap, found):
    assert iou(prediction, [TRUTH]) == pytest.approx(overlap)
    assert iou_above_half(prediction, [TRUTH]) == pytest.approx(found)


def test_the_order_of_boxes_does_not_count_and_a_missing_one_does():
    three = "[0, 0, 10, 10] [20, 0, 30, 10] [40, 0, 50, 10]"
    assert iou("[40, 0, 50, 10] [0, 0, 10, 10] [20, 0, 30, 10]", [three]) == 1
    assert iou("[40, 0, 50, 10]", [three]) == pytest.approx(1 / 3)


def test_the_partners_are_those_that_lie_best_of_all_orders():
    generator = np.random.default_rng(0)
    for _ in range(50):
        corners = generator.integers(0, 20, (2, 4, 2))
        boxes = np.concatenate([corners, corners + generator.integers(1, 20, corners.shape)], -1)
        ours, theirs = (" ".join(str(box.tolist()) for box in some) for some in boxes)
        table = overlap_table(read_boxes(ours), read_boxes(theirs))
        best = max(table[range(4), list(order)].sum() for order in permutations(range(4)))
        assert iou(ours, [theirs]) == pytest.approx(best / 4)


def test_an_answer_without_boxes_has_to_be_the_same_words():
    assert iou("None.", ["none"]) == iou_above_half("None.", ["none"]) == 1
    assert iou("[0, 0, 1, 1]", ["none"]) == iou_above_half("[0, 0, 1, 1]", ["none"]) == 0


def test_a_set_has_the_mean_the_share_and_their_intervals():
    said = [TRUTH, "[0, 0, 10, 5]", "[5, 0, 15, 10]", ""]
    predictions = [
        Prediction(str(number), one, answers=(TRUTH,)) for number, one in enumerate(said)
    ]
    scores = score_predictions(predictions, ("iou", "iou_above_half"))
    assert scores["iou"].value == pytest.approx((1 + 0.5 + 1 / 3) / 4)
    assert scores["iou_above_half"].value == 0.5
    assert scores["iou"].low < scores["iou"].value < scores["iou"].high
