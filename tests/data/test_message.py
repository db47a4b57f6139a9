"""Texts and images of a turn in any order are written in one way."""

import pytest

from foveal.data.message import join_system, write_tags, write_turn


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (["What?"], "What?"),
        ([None, "What?"], "What?"),
        (["What?", None], "What?"),
        ([None, None, "First.", "Second."], "First.\nSecond."),
        (["First.", "Second.", None], "First.\nSecond."),
        (["First:", None, "Second:", None], "First:\n<|image_1|>\nSecond:\n<|image_2|>"),
        (["Of", None, None, "which?"], "Of\n<|image_1|><|image_2|>\nwhich?"),
        ([None, "like", None], "<|image_1|>\nlike\n<|image_2|>"),
        ([None, "Is <|image_2|> like <|image_1|>?", None], "Is <|image_2|> like <|image_1|>?"),
        ([None, "", None, "What?"], "What?"),
        ([None], ""),
        ([], ""),
    ],
)
def test_images_stand_before_the_text_unless_texts_stand_between_them(parts, text):
    assert write_turn(parts) == text


def test_tags_go_in_front_where_a_text_has_none_and_count_on():
    assert write_tags("What?", 0) == "What?"
    assert write_tags("What?", 2) == "<|image_1|><|image_2|>\nWhat?"
    assert write_tags("What?", 1, images_before=3) == "<|image_4|>\nWhat?"
    assert write_tags("<|image_2|> or <|image_1|>?", 2, 3) == "<|image_5|> or <|image_4|>?"


def test_system_messages_are_paragraphs_and_empty_ones_say_nothing():
    assert join_system(["Be brief.", "", "In German."]) == "Be brief.\n\nIn German."
    assert join_system([""]) == ""
