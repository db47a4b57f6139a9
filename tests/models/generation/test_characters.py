"""Each token of byte-level BPE is told as the bytes that it stands for."""

import pytest
from tiny_models import make_tokenizer

from foveal.models.generation.characters import token_bytes
from foveal.models.generation.generator import Token
from foveal.serve.answers import GrowingAnswer


@pytest.mark.parametrize(
    "text", ["h\u00e9llo w\u00f6rld \u65e5\u672c \U0001f389 a", "\u00e9", "a\n\n b", "a  b"]
)
def test_the_bytes_of_all_tokens_joined_are_the_text(text):
    tokenizer = make_tokenizer(["<x>"]).backend_tokenizer
    ids = tokenizer.encode(text).ids
    assert b"".join(token_bytes(tokenizer, one) for one in ids) == text.encode()
    answer = GrowingAnswer(tokenizer)
    sent = "".join([*(answer.add(Token(0, one, None, 0.0)) for one in ids), answer.finish()])
    assert sent == text
    assert b"".join(bytes(one.bytes) for one in answer.numbers()) == text.encode()


def test_a_control_token_is_its_own_name():
    tokenizer = make_tokenizer(["<x\u00e9>"]).backend_tokenizer
    added = tokenizer.token_to_id("<x\u00e9>")
    assert token_bytes(tokenizer, added) == "<x\u00e9>".encode()


def test_bytes_that_are_no_character_keep_the_rest_of_the_text_in_its_place():
    tokenizer = make_tokenizer(["<x>"]).backend_tokenizer
    party = tokenizer.encode("\U0001f389").ids
    broken = [*party[:3], *tokenizer.encode("abc").ids]
    answer = GrowingAnswer(tokenizer)
    sent = "".join([*(answer.add(Token(0, one, None, 0.0)) for one in broken), answer.finish()])
    shares = [bytes(one.bytes) for one in answer.numbers()]
    assert sent.endswith("abc")
    assert len(shares) == len(broken)
    assert b"".join(shares).endswith(b"abc")
