"""What turning tokens into text promises: the same text as all at once, and never past a stop."""

from pathlib import Path

import pytest
from daily import daily
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

import foveal
from foveal.models.generation.characters import whole_characters
from foveal.models.generation.generator import Token
from foveal.serve.exchange import GrowingAnswer

FOLDER = Path(foveal.__file__).parent / "models" / "phi3_vision" / "tokenizer"
PUBLISHED = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
BEGIN, END = 1, 32007
SPACE = 29871
NO_WORD = 32050
"""A row of the published model's embedding that its tokenizer has no word for."""

BYTES = st.integers(3, 258)
PIECES = st.one_of(BYTES, st.integers(259, 31999), st.sampled_from([END, 29871, 1]))


def grown(ids, stops=(), growing=None):
    """What an answer grows by at each of its tokens; it ends before a last one, or at a stop."""
    growing = growing or GrowingAnswer(PUBLISHED, stops)
    choices = []
    for one in [*ids, END]:
        finish = "stop" if len(choices) == len(ids) else None
        choices.append(growing.grow(Token(0, one, finish, 0.0)))
        if growing.has_ended:
            break
    return choices


def said(ids, stops=(), growing=None):
    return [one.delta.content or "" for one in grown(ids, stops, growing)]


def ids_of(text):
    return PUBLISHED.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("times", daily(100, beside=[2000]))
def test_pieces_joined_are_the_whole_answer(times):
    @settings(max_examples=times)
    @given(st.lists(PIECES, max_size=12))
    def check(ids):
        _, whole = whole_characters([one for one in ids if one not in (1, END)], PUBLISHED.decode)
        assert "".join(said(ids)) == whole.strip()

    check()


@pytest.mark.parametrize("times", daily(100, beside=[2000]))
def test_the_bytes_of_all_tokens_are_the_text_wherever_it_ends(times):
    ends = st.sampled_from([(), (" ",), ("a",), ("\n", "é")])
    settings(max_examples=times)(given(st.text(max_size=8), ends, st.integers(0, 9))(check_bytes))()
    check_bytes("\n The\n", (), 0)  # space at the ends is not sent


def check_bytes(text, stops, cut):
    ids = ids_of(text)
    choices = grown(ids[: len(ids) - cut], stops)
    shown, shares = "", []
    for one in choices:
        shown += one.delta.content or ""
        shares += [bytes(name.bytes) for name in (one.logprobs.content if one.logprobs else ())]
        assert shown.encode().startswith(b"".join(shares)), "no byte before its text"
    met = len(choices) <= len(ids[: len(ids) - cut])
    assert len(shares) == len(choices) - (not met)  # the token that ends it has none
    assert b"".join(shares).decode() == shown


@pytest.mark.parametrize(
    ("text", "tokens_cut", "left"),
    [("a 🦊🦊", 1, "a 🦊"), ("a 🦊🦊", 3, "a 🦊"), ("🦊", 1, ""), ("a 🦊🦊", 0, "a 🦊🦊")],
)
def test_an_answer_that_is_cut_within_a_character_ends_before_it(text, tokens_cut, left):
    ids = ids_of(text)
    assert "".join(said(ids[: len(ids) - tokens_cut])) == left


def test_a_token_that_is_no_text_does_not_part_a_character_that_is_cut():
    first, second, third, _ = (3 + byte for byte in "🦊".encode())  # byte b is token b + 3
    assert "".join(said([*ids_of("a"), first, second, BEGIN, third])) == "a"


def test_a_stop_of_one_space_does_not_meet_the_space_before_the_first_word():
    pieces = said(ids_of("The total is"), (" ",))
    assert "".join(pieces) == "The"
    assert "".join(said(ids_of("The total is"), (" T",))) == "The total is"
    assert "".join(said(ids_of("\nThe"), ("\n",))) == "", "what the model wrote itself counts"
    assert "".join(said([SPACE, *ids_of("The")], (" T",))) == "", "so does a space of its own"


def test_text_comes_as_it_grows():
    pieces = said(ids_of("The total is twelve."))
    assert pieces[0] == "The"
    assert sum(map(bool, pieces)) > 3


def test_a_token_without_a_word_is_no_text():
    pieces = said([*ids_of("one"), NO_WORD, *ids_of("two")])
    assert [one for one in pieces if one] == ["one", " two"]


def test_a_character_of_several_bytes_is_never_cut():
    ids = ids_of("a 🦊 b")
    assert len(ids) > 5, "the fox is spelt in bytes"
    assert not any("\ufffd" in piece for piece in said(ids))


def test_bytes_without_end_are_read_once_and_not_at_each_of_them(monkeypatch):
    decoded = []
    growing = GrowingAnswer(PUBLISHED)
    usual = growing._decode
    monkeypatch.setattr(growing, "_decode", lambda ids: (decoded.append(1), usual(ids))[1])
    spelt = [3 + byte for byte in "🦊".encode()] * 500  # byte b is token b + 3
    *pieces, last = said(spelt, growing=growing)
    assert "".join(pieces) == ""
    assert last == "🦊" * 500
    assert len(decoded) == 1


@pytest.mark.parametrize(
    ("text", "stops", "left"),
    [
        ("one two three", ("two",), "one"),
        ("one two three", ("three", "two"), "one"),
        ("one\n\ntwo", ("\n",), "one"),
        ("aaab", ("aab",), "a"),
        ("abcabd", ("abd",), "abc"),
        ("never met", ("zzz",), "never met"),
        ("half a sto", ("stop",), "half a sto"),
        ("stop", ("stop",), ""),
    ],
)
def test_an_answer_ends_before_its_stop(text, stops, left):
    ids = ids_of(text)
    choices = grown(ids, stops)
    assert "".join(one.delta.content or "" for one in choices) == left
    assert choices[-1].finish_reason == "stop"
    assert (len(choices) <= len(ids)) == (left != text), "it ends at its stop"


@settings(max_examples=200)
@given(st.text("ab", max_size=14), st.lists(st.text("ab", min_size=1, max_size=3), max_size=2))
def test_no_piece_ever_shows_part_of_a_stop(text, stops):
    whole = "".join(said(ids_of(text), stops))
    ends = [place for stop in stops if (place := text.find(stop)) >= 0]
    assert whole == text[: min(ends, default=len(text))]
