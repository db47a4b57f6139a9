"""What scores, intervals and differences promise."""

import json
import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.errors import ConfigError
from foveal.evaluate.intervals import (
    Tally,
    auroc_difference,
    bootstrap_means,
    difference,
    macro_auroc,
    summarize_scores,
    tally,
)
from foveal.evaluate.metrics import (
    METRICS,
    accuracy,
    anls,
    anls_cookbook,
    exact_match,
    find_metrics,
    relaxed_accuracy,
    token_f1,
)
from foveal.report.charts import calibration, calibration_error
from foveal.report.scores import confusion

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/metrics/metrics.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["anls"], ids=lambda case: case["raw_prediction"])
def test_cookbook_anls_is_what_the_published_recipe_computes(case):
    found = anls_cookbook(case["raw_prediction"], case["ground_truths"])
    assert found == pytest.approx(case["score"], abs=1e-12)


@pytest.mark.parametrize("case", GOLDEN["accuracy"], ids=lambda case: case["raw_prediction"])
def test_accuracy_is_what_the_published_recipe_computes(case):
    assert accuracy(case["raw_prediction"], [case["answer"]]) == case["match"]


def test_means_over_the_recipe_cases_are_the_published_means():
    scores = [
        anls_cookbook(case["raw_prediction"], case["ground_truths"]) for case in GOLDEN["anls"]
    ]
    assert tally(scores).value == pytest.approx(GOLDEN["anls_mean"])
    right = [accuracy(case["raw_prediction"], [case["answer"]]) for case in GOLDEN["accuracy"]]
    assert tally(right).value == pytest.approx(GOLDEN["accuracy_mean"])


def edit_distance(first, second):
    """By the recurrence that defines it, row by row (Wagner and Fischer 1974)."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, start=1):
        above, row[0] = row[:], i
        for j, b in enumerate(second, start=1):
            row[j] = min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (a != b))
    return row[-1]


# Letters whose lower or upper case is longer or shorter than they are stand among them.
TEXTS = st.text(alphabet="aAbB 1.\tß\u0130é\n", max_size=9)


@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=3))
def test_anls_is_the_formula_that_docvqa_and_its_peers_publish(prediction, answers):
    # The official DocVQA scorer, lmms-eval and VLMEvalKit: distance of the lower-cased texts with
    # white space folded; length of the longer text, upper-cased and not folded; the smallest
    # ratio over the answers, taken from 1; below 0.5 it is 0.
    ratios = []
    for answer in answers:
        length = max(len(answer.upper()), len(prediction.upper()))
        folded = [" ".join(text.strip().lower().split()) for text in (answer, prediction)]
        ratios.append(edit_distance(*folded) / length if length else 0.0)
    expected = 1 - min(ratios)
    assert anls(prediction, answers) == pytest.approx(0 if expected < 0.5 else expected)


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("PARIS", ["paris"], 1),
        ("sitting", ["kitten"], 4 / 7),  # three letters of seven: 0.5714
        ("january 3rd, 1997", ["January 3, 1880"], 12 / 17),  # five of 17: 0.7059
        ("red", ["blue", "read"], 0.75),  # of several answers the nearest
        ("abxy", ["abcd"], 0.5),  # at the threshold it counts, in the recipe it does not
        ("abxyz", ["abcde"], 0),
        ("", [""], 1),
        ("", ["yes"], 0),
        ("yes", [], 0),
    ],
)
def test_anls_of_cases_worked_by_hand(prediction, answers, expected):
    assert anls(prediction, answers) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("105", "100", 1),  # 5 % off is still right
        ("105.01", "100", 0),
        ("95", "100", 1),
        ("94.9", "100", 0),
        ("-95", "-100", 1),
        ("95", "-100", 0),
        ("0.5", "50%", 1),
        ("52%", "0.5", 1),
        ("50", "50%", 0),
        ("0", "0.0", 0),  # no ratio to zero, so the texts are compared
        ("0", "0", 1),
        ("Blue ", "blue", 1),
        ("bluish", "blue", 0),
        ("about 100", "100", 0),
        ("nan", "nan", 1),
        ("inf", "100", 0),
    ],
)
def test_relaxed_accuracy_forgives_five_per_cent_of_a_number_and_nothing_of_a_word(
    prediction, answer, expected
):
    assert relaxed_accuracy(prediction, [answer]) == expected


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("the cat sat", "a cat sat down", 0.8),  # 2 of 2 words, 2 of 3: 2 * 2 / (2 + 3)
        ("Cat, cat!", "cat", 2 / 3),  # a word counts as often as it stands there
        ("dog", "cat", 0),
        ("", "cat", 0),
        ("The", "a", 1),  # nothing is left of either
        ("sat the cat", "cat sat", 1),
    ],
)
def test_token_f1_of_cases_worked_by_hand(prediction, answer, expected):
    assert token_f1(prediction, [answer]) == pytest.approx(expected)


def test_exact_match_forgives_white_space_around_and_nothing_else():
    assert exact_match(" Paris\n", ["Paris"]) == 1
    assert exact_match("paris", ["Paris"]) == 0
    assert exact_match("Paris.", ["Paris"]) == 0


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS.keys())
def test_every_metric_takes_the_best_of_several_answers_and_gives_0_to_1(metric):
    assert metric("12 May", ["never", "12 May", "x"]) == 1
    assert metric("qqqq", ["never", "12 May"]) == 0
    assert metric("12 May", []) == 0


def test_an_unknown_metric_is_refused_with_the_names_of_the_known():
    with pytest.raises(ConfigError, match="unknown metric bleu; choose from accuracy, anls"):
        find_metrics(["accuracy", "bleu"])


def test_tallies_add_up_to_the_tally_of_all():
    parts = [tally([1, 0, 1]), tally([]), tally([0.5])]
    assert sum(parts, Tally()) == Tally(2.5, 4)
    assert math.isnan(Tally().value)


def all_means(scores):
    """Mean of every sample with replacement there is; each is as likely as any other."""
    return np.array([np.mean(sample) for sample in product(scores, repeat=len(scores))])


@pytest.mark.parametrize("scores", [[0, 0, 1, 1, 1], [0.1, 0.25, 0.6, 0.8, 0.9], [1, 1, 1]])
def test_bootstrap_means_are_spread_as_all_possible_samples_are(scores):
    drawn, possible = bootstrap_means(scores, draws=40_000, seed=3), all_means(scores)
    assert drawn.mean() == pytest.approx(possible.mean(), abs=0.005)
    assert drawn.std() == pytest.approx(possible.std(), abs=0.005)
    for share in (0.1, 0.5, 0.9):
        assert np.quantile(drawn, share) == pytest.approx(np.quantile(possible, share), abs=0.021)


@pytest.mark.parametrize("right", [0.5, 0.864])
def test_an_interval_of_many_answers_is_about_1_96_standard_errors_each_way(right):
    count = 1000
    found = summarize_scores(np.arange(count) < right * count)
    error = 1.96 * math.sqrt(right * (1 - right) / count)
    assert (found.value, found.count) == (right, count)
    assert found.low == pytest.approx(right - error, abs=0.0025)
    assert found.high == pytest.approx(right + error, abs=0.0025)


def test_200_answers_leave_nearly_10_points_of_doubt():
    found = summarize_scores([1] * 173 + [0] * 27)
    assert found.high - found.low == pytest.approx(
        2 * 1.96 * math.sqrt(0.865 * 0.135 / 200), abs=6e-3
    )


def test_the_same_seed_draws_the_same_and_another_does_not():
    scores = np.linspace(0, 1, 50)
    assert summarize_scores(scores, seed=1) == summarize_scores(scores, seed=1)
    assert summarize_scores(scores, seed=1) != summarize_scores(scores, seed=2)


def test_memory_is_bounded_and_the_pieces_change_no_number(monkeypatch):
    scores = [np.linspace(0, 1, 60), np.arange(600) % 3 == 0]
    whole = [bootstrap_means(each, draws=1000) for each in scores]
    monkeypatch.setattr("foveal.evaluate.intervals.CELLS_AT_ONCE", 700)
    for each, expected in zip(scores, whole, strict=True):
        np.testing.assert_allclose(bootstrap_means(each, draws=1000), expected, rtol=1e-12)


def test_a_score_over_nothing_is_not_a_number_and_no_error():
    found = summarize_scores([])
    assert found.count == 0
    assert all(map(math.isnan, (found.value, found.low, found.high)))


def test_the_p_value_is_that_of_the_exact_sign_test():
    # 10 answers changed, 9 for the better: 2 * (1 + 10) / 2^10 by the binomial distribution.
    before = [0] * 9 + [1] + [1] * 40
    after = [1] * 9 + [0] + [1] * 40
    found = difference(before, after, draws=100_000)
    assert found.p_value == pytest.approx(22 / 1024, abs=0.002)
    assert found.value == pytest.approx(8 / 50)
    assert found.low > 0
    assert found.count == 50


def test_the_p_value_of_graded_scores_is_that_of_all_sign_flips():
    gains = np.array([0.3, -0.1, 0.25, 0.4, 0.05, 0.0, 0.2])
    flips = np.array(list(product([-1, 1], repeat=len(gains)))) @ gains
    exact = np.mean(np.abs(flips) >= gains.sum() - 1e-9)
    found = difference(np.full(7, 0.5), 0.5 + gains, draws=100_000)
    assert found.p_value == pytest.approx(exact, abs=0.004)


GRADED = np.random.default_rng(5).beta(2, 1, (2, 60)).round(2)
"""Scores of 60 answers before and after."""


def test_interval_and_p_value_are_those_of_scipy():
    from scipy.stats import bootstrap, permutation_test

    before, after = GRADED
    gains, ours = after - before, difference(before, after, draws=50_000)
    theirs = bootstrap((gains,), np.mean, n_resamples=50_000, method="percentile", rng=0)
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval), abs=3e-3)
    flips = permutation_test(
        (after, before),
        lambda one, other, axis: np.mean(one - other, axis=axis),
        permutation_type="samples",
        n_resamples=50_000,
        vectorized=True,
        rng=0,
    )
    assert ours.value == pytest.approx(flips.statistic)
    assert ours.p_value == pytest.approx(flips.pvalue, abs=0.01)


def test_answers_that_did_not_change_differ_by_nothing_with_p_of_1():
    found = difference([0, 1, 0.3], [0, 1, 0.3])
    assert (found.value, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def test_a_paired_interval_is_narrower_than_that_of_either_score():
    before = np.arange(200) % 2
    after = before.copy()
    after[:10] = 1  # 5 answers got better, none worse
    found, alone = difference(before, after), summarize_scores(after)
    assert found.high - found.low < (alone.high - alone.low) / 2


def test_scores_that_are_no_pairs_are_refused():
    with pytest.raises(ValueError, match=r"before \(2,\) and after \(3,\) are no pairs"):
        difference([0, 1], [0, 1, 1])


def area(scores, positive):
    """Binary AUROC: of the scores, and of what is left of 1 for the other label."""
    chances = np.asarray(scores, float)
    return macro_auroc(np.stack([1 - chances, chances], axis=1), np.array(positive, int), 2).value


@given(
    st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=12).filter(
        lambda rows: len({positive for _, positive in rows}) == 2
    )
)
def test_auroc_is_the_area_under_the_curve_of_all_thresholds(rows):
    scores, positive = (np.array(column) for column in zip(*rows, strict=True))
    thresholds = [5, *range(4, -1, -1)]
    hits = [np.mean(scores[positive] >= threshold) for threshold in thresholds]
    alarms = [np.mean(scores[~positive] >= threshold) for threshold in thresholds]
    assert area(scores, positive) == pytest.approx(np.trapezoid(hits, alarms))


def test_auroc_of_the_example_in_the_scikit_learn_manual():
    # roc_auc_score([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]) is 0.75
    assert area([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]) == 0.75


def test_with_two_labels_the_macro_auroc_is_the_binary_one():
    generator = np.random.default_rng(0)
    chance = generator.random(80)
    truth = (generator.random(80) < chance).astype(int)
    found = macro_auroc(np.stack([1 - chance, chance], axis=1), truth, draws=2000)
    before = chance[truth == 1][:, None] - chance[truth == 0]
    assert found.value == pytest.approx((before > 0).mean())  # pairs in order, and no two alike
    assert found.low < found.value < found.high
    # Hanley and McNeil 1982: its standard error, from the area and the two counts.
    share, ones = found.value, truth.sum()
    zeros = 80 - ones
    q1, q2 = share / (2 - share), 2 * share**2 / (1 + share)
    variance = share * (1 - share) + (ones - 1) * (q1 - share**2) + (zeros - 1) * (q2 - share**2)
    error = math.sqrt(variance / (ones * zeros))
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.25)


def test_macro_auroc_averages_the_labels_that_occur_with_others():
    scores = [[0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1]]
    # Label 0: positives .7 and .6 beat .2. Label 1: .7 beats both. Label 2 never occurs.
    assert macro_auroc(scores, [0, 1, 0], draws=100).value == 1
    assert macro_auroc(scores, [1, 0, 0], draws=100).value == pytest.approx((0.5 * 0 + 0) / 2)


def test_scores_that_are_all_alike_order_nothing_in_any_sample():
    found = macro_auroc([[0.5, 0.5]] * 12, [0, 1] * 6, draws=500)
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)


def test_auroc_of_one_kind_alone_is_not_a_number():
    assert math.isnan(macro_auroc([[0.4, 0.6], [0.3, 0.7]], [1, 1]).value)


def test_a_confusion_matrix_counts_truth_by_row_and_answer_by_column():
    found = confusion(
        ["yes", "yes", "no", "no", "no"], ["Yes.", " no", "no", "maybe", "no."], ["yes", "no"]
    )
    assert found.counts.tolist() == [[1, 1, 0], [0, 2, 1]]
    assert found.per_class() == {"yes": Tally(1, 2), "no": Tally(2, 3)}


@settings(max_examples=20)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1))
def test_a_confusion_matrix_is_that_of_scikit_learn(pairs):
    from sklearn.metrics import confusion_matrix, recall_score

    truth, given_answers = zip(*pairs, strict=True)
    found = confusion(truth, given_answers, "abc")
    theirs = confusion_matrix(truth, given_answers, labels=list("abc"))
    np.testing.assert_array_equal(found.counts[:, :-1], theirs)
    recalls = recall_score(truth, given_answers, labels=list("abc"), average=None, zero_division=0)
    for tally_, recall in zip(found.per_class().values(), recalls, strict=True):
        assert (tally_.value if tally_.count else 0) == pytest.approx(recall)


def test_calibration_error_is_the_mean_gap_between_sureness_and_being_right():
    # Bin 0.5 to 0.6: sure 0.55, right half the time. Bin 0.9 to 1: sure 0.95 and 1.0, right once.
    parts = calibration([0.55, 0.55, 0.95, 1.0], [1, 0, 0, 1])
    assert [part.correct for part in parts] == [Tally(1, 2), Tally(1, 2)]
    assert calibration_error(parts) == pytest.approx((abs(1.1 - 1) + abs(1.95 - 1)) / 4)


LABELS = st.integers(2, 4)


@given(st.data(), LABELS, st.integers(3, 30))
def test_auroc_is_that_of_scikit_learn_ties_and_several_labels_included(data, labels, count):
    from sklearn.metrics import roc_auc_score

    tenths = st.lists(st.integers(1, 5), min_size=labels, max_size=labels)
    rows = np.array(data.draw(st.lists(tenths, min_size=count, max_size=count)), float)
    chances = rows / rows.sum(axis=1, keepdims=True)
    truth = [*range(labels), *data.draw(st.lists(st.integers(0, labels - 1), min_size=count))]
    truth = np.array(truth[:count])
    present = np.unique(truth)
    if len(present) == 1:
        return
    expected = np.mean([roc_auc_score(truth == label, chances[:, label]) for label in present])
    assert macro_auroc(chances, truth, draws=2).value == pytest.approx(expected)


def test_a_better_order_is_an_auroc_difference_above_nothing():
    randomness = np.random.default_rng(0)
    truth = np.arange(200) % 2
    blind = randomness.random(200)
    seeing = truth + randomness.normal(0, 1.0, 200)
    chances = [np.stack([1 - one, one], axis=1) for one in (blind, seeing)]
    found = auroc_difference(*chances, truth, draws=1000)
    assert found.value == pytest.approx(area(seeing, truth) - area(blind, truth))
    assert 0 < found.low < found.value < found.high
    assert found.p_value == pytest.approx(2 / 1001)  # no sample fell on the other side
    back = auroc_difference(*chances[::-1], truth, draws=1000)
    assert (back.value, back.low, back.high) == pytest.approx(
        (-found.value, -found.high, -found.low)
    )
    same = auroc_difference(chances[1], chances[1], truth, draws=100)
    assert (same.value, same.low, same.high, same.p_value) == (0, 0, 0, 1)
