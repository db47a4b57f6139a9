"""What predictions.jsonl and scores.json promise."""

import json
import math

import pytest

from foveal.data.example import Example, Turn
from foveal.errors import ConfigError, DataError
from foveal.evaluate.intervals import Score
from foveal.evaluate.prediction import (
    Prediction,
    append_predictions,
    common_labels,
    read_predictions,
    read_scores,
    right_label,
    score_predictions,
    with_answers,
    write_predictions,
    write_scores,
)

ONE = Prediction("a", "yes", 0, ("yes", "yeah"), {"accuracy": 1.0}, {"yes": -0.1, "no": -2.4})
TWO = Prediction("b", 'a "quoted"\nline \u2028 日本', 1, ("x",))


def test_predictions_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "evaluation" / "before" / "predictions.jsonl"
    write_predictions(path, [ONE, TWO])
    assert read_predictions(path) == [ONE, TWO]
    assert not list(path.parent.glob("*.part"))


def test_a_line_has_the_documented_keys(tmp_path):
    path = tmp_path / "predictions.jsonl"
    append_predictions(path, [ONE])
    assert json.loads(path.read_text()) == {
        "id": "a",
        "prediction": "yes",
        "turn": 0,
        "answers": ["yes", "yeah"],
        "scores": {"accuracy": 1.0},
        "choice_scores": {"yes": -0.1, "no": -2.4},
        "choice_probabilities": pytest.approx({"yes": 0.909, "no": 0.091}, abs=1e-3),
    }


def test_appending_adds_to_what_is_there(tmp_path):
    path = tmp_path / "new" / "predictions.jsonl"
    append_predictions(path, [ONE])
    append_predictions(path, [TWO])
    append_predictions(path, [])
    assert read_predictions(path) == [ONE, TWO]


def test_of_two_lines_for_one_turn_the_later_counts(tmp_path):
    path = tmp_path / "predictions.jsonl"
    append_predictions(path, [Prediction("a", "old"), TWO, Prediction("a", "new"), ONE])
    assert read_predictions(path) == [ONE, TWO]
    append_predictions(path, [Prediction("a", "other turn", turn=1)])
    assert len(read_predictions(path)) == 3


def test_a_kill_at_any_byte_loses_the_torn_line_alone_and_the_file_can_go_on(tmp_path):
    path = tmp_path / "predictions.jsonl"
    write_predictions(path, [ONE, TWO])
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        kept = read_predictions(path, torn=True)
        # A line that lacks its line break alone is whole.
        assert kept == [ONE, TWO][: (length >= first - 1) + (length >= len(whole) - 1)]
        append_predictions(path, [Prediction("c", "later")])
        assert read_predictions(path) == [*kept, Prediction("c", "later")]


@pytest.mark.parametrize("text", ['[{"id": "a"}]', "id,prediction", '{"id": "a", "predict'])
def test_a_file_of_somebody_elses_is_no_answers_only_where_it_says_so(tmp_path, text):
    path = tmp_path / "predictions.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=r"predictions\.jsonl:1: .*; write one answer a line"):
        read_predictions(path)


def test_a_broken_line_in_the_middle_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_text('{"id": "a", "prediction": "x"}\n{"id": "b"}\n{"id": "c", "prediction": "x"}\n')
    with pytest.raises(DataError, match=r'predictions\.jsonl:2: "prediction": Field required'):
        read_predictions(path)


def test_an_unknown_key_is_an_error(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_text('{"id": "a", "prediction": "x", "answer": "y"}\n')
    with pytest.raises(DataError, match=':1: "answer"'):
        read_predictions(path)


def test_a_missing_file_is_an_error_that_says_what_to_give(tmp_path):
    with pytest.raises(DataError, match=r"No such file or directory; give a predictions\.jsonl"):
        read_predictions(tmp_path / "predictions.jsonl")


def test_a_label_that_cannot_be_said_keeps_its_log_likelihood(tmp_path):
    path = tmp_path / "predictions.jsonl"
    never = Prediction("a", "yes", choice_scores={"yes": 0.0, "no": -math.inf})
    append_predictions(path, [never])
    assert read_predictions(path) == [never]
    assert never.choice_probabilities == {"yes": 1, "no": 0}


def test_choice_probabilities_are_the_softmax_of_log_likelihoods():
    chances = Prediction("a", "yes", choice_scores={"yes": -1000.0, "no": -1001.0})
    assert chances.choice_probabilities["yes"] == pytest.approx(math.e / (math.e + 1))
    assert Prediction("a", "yes").choice_probabilities == {}


def test_labels_are_ranked_the_likeliest_first_and_scored_in_the_order_of_the_data():
    ranked = Prediction("a", "b", choice_scores={"a": -3.0, "b": -1.0, "c": -2.0})
    assert list(ranked.choice_probabilities) == ["b", "c", "a"]
    first, second, third = ranked.chances(("a", "b", "c"))
    assert first < third < second


def test_scoring_an_answer_keeps_the_scores_it_has():
    scored = Prediction("a", "Yes.", answers=("yes",), scores={"mine": 0.25})
    found = scored.scored(["accuracy", "exact_match"]).scores
    assert found == {"mine": 0.25, "accuracy": 1.0, "exact_match": 0.0}


def test_scores_are_means_over_answers_with_interval_and_count():
    predictions = [
        Prediction(str(k), "yes" if k < 30 else "no", answers=("yes",)) for k in range(40)
    ]
    scores = score_predictions(predictions, ["accuracy", "anls"])
    assert list(scores) == ["accuracy", "anls"]
    found = scores["accuracy"]
    assert (found.value, found.count) == (0.75, 40)
    assert 0.55 < found.low < 0.7 < 0.8 < found.high < 0.95


def test_an_unknown_metric_is_refused():
    with pytest.raises(ConfigError, match="unknown metric blue"):
        score_predictions([ONE], ["blue"])


def test_closed_answers_are_scored_by_auroc_too():
    # (chance of yes, truth): of 2 x 2 pairs three stand in order.
    rows = [(0.1, "no"), (0.4, "no"), (0.35, "yes"), (0.8, "yes")]
    predictions = [
        Prediction(
            str(place),
            "no",
            answers=(truth.upper(),),
            choice_scores={"yes": math.log(chance), "no": math.log(1 - chance)},
        )
        for place, (chance, truth) in enumerate(rows)
    ]
    assert score_predictions(predictions, ["accuracy"])["auroc"].value == pytest.approx(0.75)


def test_answers_chosen_from_different_labels_have_no_auroc():
    other = Prediction("c", "x", answers=("x",), choice_scores={"x": -0.1, "y": -3.0})
    assert common_labels([ONE, ONE]) == ("yes", "no")
    assert common_labels([ONE, other]) == ()
    assert common_labels([ONE, TWO]) == ()
    assert "auroc" not in score_predictions([ONE, other], ["accuracy"])


def test_the_right_label_is_found_as_accuracy_compares():
    assert right_label(Prediction("a", "", answers=(" No.",)), ("yes", "no")) == 1
    assert right_label(Prediction("a", "", answers=("maybe",)), ("yes", "no")) is None


def test_scores_json_has_the_documented_form(tmp_path):
    path = tmp_path / "before" / "scores.json"
    scores = {"accuracy": Score(0.81, 0.79, 0.83, 1536)}
    write_scores(path, scores)
    assert json.loads(path.read_text()) == {
        "accuracy": {"value": 0.81, "low": 0.79, "high": 0.83, "count": 1536}
    }
    assert read_scores(path) == scores


def test_a_score_over_nothing_is_null_so_that_any_json_reader_takes_it(tmp_path):
    path = tmp_path / "scores.json"
    write_scores(path, score_predictions([], ["anls"]))
    assert json.loads(path.read_text())["anls"] == {
        "value": None,
        "low": None,
        "high": None,
        "count": 0,
    }
    assert math.isnan(read_scores(path)["anls"].value)


@pytest.mark.parametrize("text", ["", "[]", '{"anls": 1}', '{"anls": {"value": 1}}'])
def test_a_scores_file_that_holds_something_else_is_an_error(tmp_path, text):
    path = tmp_path / "scores.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"scores\.json: not scores"):
        read_scores(path)


def test_predictions_made_elsewhere_get_the_answers_of_the_data():
    turns = (Turn(user="?", assistant="yes"), Turn(user="?", assistant="2", answers=("2", "two")))
    examples = [Example(id="a", conversations=turns)]
    found = with_answers([Prediction("a", "two", turn=1), Prediction("a", "no")], examples)
    assert [one.answers for one in found] == [("2", "two"), ("yes",)]
    with pytest.raises(DataError, match="prediction for turn 2 of 'a': the data has no such turn"):
        with_answers([Prediction("a", "x", turn=2)], examples)


def test_a_key_that_is_there_twice_is_an_error_that_names_its_line(tmp_path):
    twice = '{"id": "b", "prediction": "one", "prediction": "other"}'
    (tmp_path / "p.jsonl").write_text(f'{{"id": "a", "prediction": "one"}}\n{twice}\n')
    with pytest.raises(DataError, match=r'p.jsonl:2: key "prediction" is there twice'):
        read_predictions(tmp_path / "p.jsonl")
