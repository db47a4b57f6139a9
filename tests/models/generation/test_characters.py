"""Each token of byte-level BPE is told as the bytes that it stands for."""

import pytest
from tiny_models import make_tokenizer

from foveal.models.generation.characters import token_bytes
from foveal.models.generation.generator import Token
from foveal.serve.exchange import GrowingAnswer


def said(tokenizer, ids):
    """The text of an answer that is cut behind some tokens, and the bytes of each of them."""
    answer = GrowingAnswer(tokenizer)
    ends = [*[None] * (len(ids) - 1), "length"]
    grown = [answer.grow(Token(0, *one, 0.0)) for one in zip(ids, ends, strict=True)]
    names = [name for one in grown if one.logprobs for name in one.logprobs.content]
    text = "".join(one.delta.content or "" for one in grown)
    return text, [bytes(name.bytes) for name in names]


@pytest.mark.parametrize(
    "text", ["h\u00e9llo w\u00f6rld \u65e5\u672c \U0001f389 a", "\u00e9", "a\n\n b", "a  b"]
)
def test_the_bytes_of_all_tokens_joined_are_the_text(text):
    tokenizer = make_tokenizer(["<x>"]).backend_tokenizer
    ids = tokenizer.encode(text).ids
    assert b"".join(token_bytes(tokenizer, one) for one in ids) == text.encode()
    sent, shares = said(tokenizer, ids)
    assert sent == text
    assert b"".join(shares) == text.encode()


def test_a_control_token_is_its_own_name():
    tokenizer = make_tokenizer(["<x\u00e9>"]).backend_tokenizer
    added = tokenizer.token_to_id("<x\u00e9>")
    assert token_bytes(tokenizer, added) == "<x\u00e9>".encode()


def test_bytes_that_are_no_character_keep_the_rest_of_the_text_in_its_place():
    tokenizer = make_tokenizer(["<x>"]).backend_tokenizer
    party = tokenizer.encode("\U0001f389").ids
    broken = [*party[:3], *tokenizer.encode("abc").ids]
    sent, shares = said(tokenizer, broken)
    assert sent.endswith("abc")
    assert len(shares) == len(broken)
    assert b"".join(shares).endswith(b"abc")
