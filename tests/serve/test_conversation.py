"""What sorting messages into turns promises."""

import pytest

from foveal.serve.limits import RequestError
from foveal.serve.messages import Message, read_conversation
from foveal.serve.sent_files import SentFile


def said(role, *parts):
    """A message whose parts are texts, and addresses that begin with `@`."""
    made = [
        {"type": "image_url", "image_url": {"url": part[1:]}}
        if part.startswith("@")
        else {"type": "text", "text": part}
        for part in parts
    ]
    return Message(role=role, content=tuple(made))


def read(*messages, uploads=()):
    return read_conversation(
        messages, lambda url, name, is_clip: SentFile(name, url.encode(), is_clip), uploads
    )


def shown(turn):
    return [image.data for image in turn.files]


def test_turns_keep_their_pictures_and_answers():
    read_back = read(
        said("user", "@a", "First?"),
        said("assistant", "One."),
        said("user", "Second?", "@b", "@c"),
    )
    first, second = read_back.turns
    assert (first.user, shown(first), first.assistant) == ("First?", [b"a"], "One.")
    assert (second.user, shown(second), second.assistant) == ("Second?", [b"b", b"c"], None)
    named = [one.name for turn in read_back.turns for one in turn.files]
    assert named == ["picture 1", "picture 2", "picture 3"]


def test_pictures_on_one_side_of_the_text_stand_before_it_as_in_training():
    before, after = read(said("user", "@a", "What?")), read(said("user", "What?", "@a"))
    assert before.turns[0].user == after.turns[0].user == "What?"


def test_pictures_between_texts_stay_in_their_place():
    turn = read(said("user", "First:", "@a", "Second:", "@b")).turns[0]
    assert turn.user == "First:\n<|image_1|>\nSecond:\n<|image_2|>"
    assert shown(turn) == [b"a", b"b"]


def test_a_user_who_writes_tags_decides_where_pictures_stand():
    turn = read(said("user", "@a", "Is <|image_2|> like <|image_1|>?", "@b")).turns[0]
    assert turn.user == "Is <|image_2|> like <|image_1|>?"


def test_messages_of_a_user_in_a_row_are_one_turn():
    turn = read(said("user", "@a"), said("user", "What?")).turns[0]
    assert (turn.user, shown(turn)) == ("What?", [b"a"])


def test_system_messages_come_first_and_are_joined():
    read_back = read(
        said("system", "Be brief."), said("developer", "In German."), said("user", "?")
    )
    assert read_back.system == "Be brief.\n\nIn German."
    assert len(read_back.turns) == 1


def test_uploads_stand_before_the_last_question():
    upload = SentFile("upload", b"up")
    turns = read(
        said("user", "@a", "1?"), said("assistant", "1."), said("user", "2?"), uploads=[upload]
    ).turns
    assert [shown(turn) for turn in turns] == [[b"a"], [b"up"]]


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([said("user", "?"), said("assistant", "!")], "last message must be a user's"),
        ([said("system", "Be brief.")], "last message must be a user's"),
        ([said("assistant", "!"), said("user", "?")], "first message"),
        ([said("user", "?"), said("system", "x"), said("user", "?")], "system messages stand"),
        (
            [said("user", "?"), said("assistant", "!"), said("assistant", "!"), said("user", "?")],
            "follow each other",
        ),
        ([said("system", "@a"), said("user", "?")], "users alone show them"),
    ],
)
def test_messages_out_of_order_are_refused_in_a_sentence(messages, why):
    with pytest.raises(RequestError, match=why) as caught:
        read(*messages)
    assert caught.value.status == 400
