"""What other people's values become: a text, several, nothing, or a reason."""

from datetime import datetime

import numpy as np
import pytest

from foveal.data.convert.sources.values import (
    UnfitError,
    present,
    refuse_meaningful,
    text_of,
    texts_of,
)

NAN = float("nan")


@pytest.mark.parametrize(
    "nothing", [None, NAN, "", " \n", [], {}, [None], {"en": None}, {"a": [None, {"b": NAN}]}, b""]
)
def test_what_tables_write_for_nothing_is_absent(nothing):
    assert present(nothing) is None
    assert text_of(nothing, "a question") is None
    assert texts_of(nothing, "an answer") == ()


def test_a_null_beside_values_is_dropped_from_a_mapping_and_keeps_its_place_in_a_list():
    assert present({"type": "text", "text": "a", "image": None}) == {"type": "text", "text": "a"}
    assert present(["a", None]) == ["a", None]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("red", "red"),
        (7, "7"),
        (7.0, "7"),
        (2.5, "2.5"),
        (np.int64(7), "7"),
        ({"en": "red"}, "red"),
    ],
)
def test_a_text_or_a_number_is_a_text(value, text):
    assert text_of(value, "an answer") == text


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (True, "true or false"),
        (["red"], "a list, not a text"),
        ({"de": "rot"}, "a mapping of de"),
        (b"red", "a bytes, not a text"),
        # What datasets 5.2.0 makes of the JSON text "2024-01-05" (packaged_modules/json/json.py).
        (datetime(2024, 1, 5), "a moment in time, as datasets makes of texts like dates"),
        (float("inf"), "a float, not a text"),
    ],
)
def test_what_would_have_to_be_guessed_at_is_refused(value, reason):
    with pytest.raises(UnfitError, match=reason):
        text_of(value, "an answer")


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ("red", ("red",)),
        (["red", None, 7, 1.0], ("red", "7", "1")),
        (np.array(["red", "blue"]), ("red", "blue")),
        (3, ("3",)),
        ([{"answer": "red", "answer_id": 1}, {"answer": "blue", "answer_id": 2}], ("red", "blue")),
        ({"text": ["red", "blue"], "answer_start": [0, 1]}, ("red", "blue")),
    ],
)
def test_a_text_alone_is_a_list_of_one(value, texts):
    assert texts_of(value, "an answer") == texts


def test_a_list_in_a_list_is_refused():
    with pytest.raises(UnfitError, match="an answer that is a list"):
        texts_of([["red"]], "an answer")


@pytest.mark.parametrize(
    "key",
    [
        *("videos", "audio", "tools", "function_call", "history"),
        *("chosen", "rejected_messages", "rejected_conversations", "non_preferred_output"),
    ],
)
def test_a_key_that_changes_the_meaning_is_refused_by_name(key):
    with pytest.raises(UnfitError, match=f"`{key}` changes what it means"):
        refuse_meaningful({"text": "a", key: ["x"]})
    refuse_meaningful({"text": "a", key: False})


@pytest.mark.parametrize("key", ["weight", "loss", "train", "loss_mask"])
def test_a_message_that_weighs_as_usual_is_well_and_another_is_not(key):
    refuse_meaningful({key: 1})
    refuse_meaningful({key: True})
    for other in (0, 0.5, False):
        with pytest.raises(UnfitError, match=key):
            refuse_meaningful({key: other})
