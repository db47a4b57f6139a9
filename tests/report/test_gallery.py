"""What the gallery promises."""

import base64
import io

import numpy as np
import pytest
from PIL import Image
from run_folders import make_examples, predict

from foveal.data.example import Example, Turn, read_examples
from foveal.data.images.image_folder import ImageFolder
from foveal.evaluate.prediction import Prediction
from foveal.report.gallery import CARDS, IMAGES, Pair, choose_cards, match, shrink


def accuracy(prediction):
    return prediction.scores["accuracy"]


def groups(gallery):
    return {group.title: [card.pair.after.id for card in group.cards] for group in gallery.groups}


def test_answers_are_matched_by_example_and_turn():
    turns = (
        Turn(images=("a.png",), user="first?", assistant="1"),
        Turn(user="second?", assistant="2"),
    )
    example = Example(id="x", conversations=turns)
    after = [Prediction("x", "2", turn=1), Prediction("x", "1"), Prediction("y", "?")]
    before = [Prediction("x", "one"), Prediction("x", "two", turn=1)]
    pairs = match(after, before, [example])
    assert [pair.before and pair.before.prediction for pair in pairs] == ["two", "one", None]
    assert [pair.question for pair in pairs] == ["second?", "first?", ""]
    assert pairs[0].images == ("a.png",)  # the model saw the pictures of earlier turns too


def test_a_turn_that_the_data_does_not_have_is_shown_without_a_question():
    example = Example(id="x", conversations=(Turn(user="?", assistant="1"),))
    pairs = match([Prediction("x", "2", turn=5)], [], [example])
    assert (pairs[0].question, pairs[0].images) == ("", ())


def test_improved_and_broken_answers_stand_where_they_belong():
    pairs = match(predict(wrong=[3]), predict(wrong=[4, 6]), [])
    found = groups(choose_cards(pairs, accuracy, None))
    assert sorted(found["Most improved"]) == ["example-4", "example-6"]
    assert found["Most broken"] == ["example-3"]
    assert len(found["Random"]) == CARDS


def test_no_turn_stands_twice():
    pairs = match(predict(wrong=[3, 5]), predict(wrong=[4]), [])
    shown = [one for ids in groups(choose_cards(pairs, accuracy, None)).values() for one in ids]
    assert len(shown) == len(set(shown))


def test_the_surest_mistakes_come_first_and_right_answers_never():
    sureness = [0.6, 0.9, 0.99, 0.7]
    pairs = [
        Pair(
            Prediction(
                str(place),
                "yes",
                scores={"accuracy": float(place == 2)},
                choice_scores={"yes": np.log(chance), "no": np.log(1 - chance)},
            )
        )
        for place, chance in enumerate(sureness)
    ]
    gallery = choose_cards(pairs, accuracy, None)
    assert groups(gallery)["Most confident mistakes"] == ["1", "3", "0"]
    assert gallery.groups[0].cards[0].confidence == pytest.approx(0.9)


def test_without_a_before_nothing_improved_or_broke():
    found = groups(choose_cards(match(predict(wrong=[1]), [], []), accuracy, None))
    assert list(found) == ["Random"]


def test_ties_fall_at_random_but_the_same_each_time():
    pairs = match(predict(), [], [])
    first = groups(choose_cards(pairs, accuracy, None))["Random"]
    assert first == groups(choose_cards(pairs, accuracy, None))["Random"]
    assert first != groups(choose_cards(pairs, accuracy, None, seed=1))["Random"]
    assert first != sorted(first)


def test_a_picture_that_several_cards_show_is_kept_once(tmp_path):
    data = make_examples(tmp_path)
    examples = list(read_examples(data))[-2:]  # both over the same picture
    gallery = choose_cards(match(predict()[-2:], [], examples), accuracy, ImageFolder(data))
    assert len(gallery.images) == 1
    names = {card.images[0].name for group in gallery.groups for card in group.cards}
    assert names == {gallery.images[0].name}


def test_a_missing_picture_says_so_on_its_card(tmp_path):
    data = make_examples(tmp_path)
    examples = list(read_examples(data))
    (tmp_path / "images" / "0.png").unlink()
    gallery = choose_cards(match(predict()[:1], [], examples), accuracy, ImageFolder(data))
    (card,) = gallery.groups[0].cards
    assert gallery.images == ()
    assert card.images[0].problem.startswith("image 0.png is not in ")


def test_of_many_pictures_the_first_are_shown_and_the_rest_counted(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "frame.png")
    turn = Turn(images=("frame.png",) * 11, user="?", assistant="yes")
    example = Example(id="example-0", conversations=(turn,))
    folder = ImageFolder(tmp_path / "data.jsonl", tmp_path)
    gallery = choose_cards(match(predict()[:1], [], [example]), accuracy, folder)
    (card,) = gallery.groups[0].cards
    assert (len(card.images), card.more_images) == (IMAGES, 11 - IMAGES)


def test_a_picture_is_shrunk_until_it_fits_its_share_and_keeps_its_shape(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (600, 1200, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    folder = ImageFolder(tmp_path / "data.jsonl", tmp_path)
    image = shrink("picture-0", "noise.png", folder, 100_000)
    assert len(image.uri) <= 100_000
    kind, _, text = image.uri.partition(",")
    assert kind == "data:image/webp;base64"
    opened = Image.open(io.BytesIO(base64.b64decode(text)))
    assert opened.size == (image.width, image.height)
    assert image.width == 2 * image.height
    assert len(shrink("picture-0", "noise.png", folder, 1).uri) > 1  # the smallest stays anyway


def test_a_small_picture_is_not_blown_up(tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "small.png")
    folder = ImageFolder(tmp_path / "data.jsonl", tmp_path)
    image = shrink("picture-0", "small.png", folder, 50_000)
    assert (image.width, image.height) == (30, 20)
