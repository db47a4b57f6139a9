"""The demo's statements are exact, and their text alone says nothing."""

import json
import zipfile
from collections import Counter

import numpy as np

from foveal.demo.lessons import (
    Lesson,
    Scene,
    count,
    count_objects,
    examples_of,
    statements_about_one,
    statements_about_two,
)
from foveal.demo.walk import DATA


def lines(archive: str, name: str) -> list[dict]:
    with zipfile.ZipFile(DATA / archive) as opened:
        return [json.loads(line) for line in opened.read(name).decode().splitlines()]


def scenes() -> list[Scene]:
    return [
        Scene(line["identifier"], count_objects(line["structured_rep"]))
        for line in lines("nlvr_dev.zip", "nlvr/dev/dev.json")
    ]


def test_every_bundled_evaluation_sentence_is_one_that_is_taught():
    taught = {one.sentence for one in statements_about_two()}
    pairs = lines("nlvr_pairs.zip", "nlvr_pairs/dev.json")
    assert len(pairs) == 512
    assert {pair["sentence"] for pair in pairs} == taught


def test_every_bundled_evaluation_sentence_is_true_as_often_as_false():
    pairs = lines("nlvr_pairs.zip", "nlvr_pairs/dev.json")
    labels = Counter((pair["sentence"], pair["label"]) for pair in pairs)
    for sentence in {pair["sentence"] for pair in pairs}:
        assert labels[sentence, "True"] == labels[sentence, "False"]


def test_no_training_picture_is_an_evaluation_picture():
    def contents(archive):
        with zipfile.ZipFile(DATA / archive) as opened:
            names = [name for name in opened.namelist() if name.endswith(".png")]
            return {opened.read(name) for name in names}

    assert contents("nlvr_dev.zip").isdisjoint(contents("nlvr_test.zip"))


def test_answers_follow_the_counts():
    """Worked out a second way for one kind of sentence, from the scene's own objects."""
    known = {scene.image: scene.counts for scene in scenes()}
    found = 0
    for example in examples_of(Lesson("x", 1, 300, 4), scenes(), statements_about_one(), 0):
        (turn,) = example.turns
        if not turn.choices:
            continue
        sentence = turn.user.splitlines()[1]
        if sentence == "There is a blue triangle in the image.":
            assert turn.assistant == str(bool(known[turn.images[0]][1, 2]))
            found += 1
    assert found > 10


def test_a_lesson_is_true_about_as_often_as_false_for_each_sentence():
    counted: dict[str, Counter] = {}
    for example in examples_of(Lesson("x", 2, 4000, 6), scenes(), statements_about_two(), 0):
        (turn,) = example.turns
        if turn.choices:
            counted.setdefault(turn.user, Counter())[turn.assistant] += 1
    for question, answers in counted.items():
        assert 0.35 < answers["True"] / answers.total() < 0.65, question


def test_counting_names_each_color_and_how_many_of_each_shape_and_in_all():
    seen = np.array([[2, 0, 1], [0, 0, 0], [5, 6, 4]])
    assert count([seen], range) == "yellow 2013 blue 0000 black 5649"
    assert count([seen, seen * 0], range).startswith("left yellow 2013")


def test_counting_in_any_order_hangs_the_numbers_on_the_words():
    answers = set()
    for example in examples_of(Lesson("x", 2, 60, 0), scenes(), statements_about_two(), 0):
        words = example.turns[0].assistant.split()
        assert sorted(words[::7]) == ["left", "right"]
        answers.add(tuple(words[1:7:2]))
    assert len(answers) == 6


def test_no_picture_that_is_asked_about_is_learnt_from():
    def images(archive: str) -> set[tuple[int, int]]:
        with zipfile.ZipFile(DATA / archive) as opened:
            files = [one for one in opened.infolist() if one.filename.endswith(".png")]
        return {(one.CRC, one.file_size) for one in files}

    learnt, asked = images("nlvr_dev.zip"), images("nlvr_test.zip")
    assert min(len(learnt), len(asked)) > 800
    assert not learnt & asked
