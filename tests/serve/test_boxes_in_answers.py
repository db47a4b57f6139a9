"""A model that was tuned with boxes is asked and answers in the numbers of the asker's picture."""

import pytest
from openai import BadRequestError
from serving import image_bytes, question

from foveal.data.images.boxes import BoxFrame, BoxMap
from foveal.serve.exchange import move_boxes

# 60 x 40 in two crops of 28: 56 x 37 on a canvas of 56 x 56, 9 white rows above.
SPOKEN = "One is at [0, 18, 19, 37], or (0,18),(19,37). And [12, a"
MOVED = "One is at [0, 10, 20, 30], or (0,10),(20,30). And [12, a"


@pytest.fixture
def client(stage, tiny, actor, monkeypatch):
    monkeypatch.setattr(tiny.processor, "boxes", "pixels")
    actor.lines = (SPOKEN,)
    return stage().client()


def ask(client, *messages, **more):
    return client.chat.completions.create(model="mine", messages=list(messages), **more)


def test_boxes_of_an_answer_are_moved_whole_or_streamed(client):
    asked = question("Where?", image_bytes(1))
    assert ask(client, asked).choices[0].message.content == MOVED
    pieces = [one.choices[0].delta.content or "" for one in ask(client, asked, stream=True)]
    assert "".join(pieces) == MOVED
    assert sum(map(bool, pieces)) > 5  # what cannot be a box waits for nothing


def test_boxes_of_questions_and_earlier_answers_are_moved_to_the_model(client, tiny, actor):
    earlier = {"role": "assistant", "content": "At [0, 10, 20, 30], not at [9, 9, 1, 1]."}
    ask(client, question("Is [0, 10, 20, 30] one?", image_bytes(1)), earlier, question("Why?"))
    told = tiny.processor.decode_answer([one for one in actor.asked[0].prompt.entries if one > 2])
    assert "Is [0, 18, 19, 37] one?" in told
    with pytest.raises(BadRequestError, match=r"box \[9, 9, 1, 1\] is none in an image of 60 x 40"):
        ask(client, question("Is it [9, 9, 1, 1]?", image_bytes(1)))


def test_pictures_of_several_sizes_leave_boxes_as_the_model_says_them(client):
    asked = question("Where?", image_bytes(1), image_bytes(2, (80, 40)))
    assert ask(client, asked).choices[0].message.content == SPOKEN


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_however_an_answer_comes_its_boxes_are_moved(size):
    boxes = BoxMap(BoxFrame((1000, 1000)), (100, 100))
    text = "see [10, 20, 30, 40] and (f, [[500, 0, 1000, 990], [1,2,3]] or (10 , 20),( 30,40)."
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    made = held = ""
    for piece in pieces:
        certain, held = move_boxes(held + piece, boxes, is_last=False)
        made += certain
    made += move_boxes(held, boxes, is_last=True)[0]
    assert made == "see [1, 2, 3, 4] and (f, [[50, 0, 100, 99], [1,2,3]] or (1 , 2),( 3,4)."
    certain, _ = move_boxes("numbers [" + "1, " * 100, boxes, is_last=False)
    assert certain.startswith("numbers [1")
