"""How tokens with their numbers are named: their bytes joined are the text."""

import math
from pathlib import Path

from tokenizers import Tokenizer

import foveal
from foveal.models.generation.generator import Token
from foveal.serve.exchange import LEAST, GrowingAnswer

FOLDER = Path(foveal.__file__).parent / "models" / "phi3_vision" / "tokenizer"
PUBLISHED = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


def test_the_bytes_of_all_tokens_are_the_text():
    ids = PUBLISHED.encode("a 🦊 für 5 €", add_special_tokens=False).ids
    answer = GrowingAnswer(PUBLISHED)
    ends = [*[None] * (len(ids) - 1), "length"]
    numbers = [Token(0, *one, -0.5, ((one[0], -0.5),)) for one in zip(ids, ends, strict=True)]
    grown = [answer.grow(one).logprobs for one in numbers]
    named = [one for some in grown if some for one in some.content]
    tops = [one for names in named for one in names.top_logprobs]
    assert bytes(byte for one in tops for byte in one.bytes).decode() == "a 🦊 für 5 €"
    assert {one.logprob for one in [*named, *tops]} == {-0.5}


def test_what_cannot_be_is_a_number_that_json_knows():
    one, other = PUBLISHED.token_to_id("x"), PUBLISHED.token_to_id("y")
    token = Token(0, one, "length", -1.0, ((one, -1.0), (other, -math.inf)))
    (named,) = GrowingAnswer(PUBLISHED).grow(token).logprobs.content
    assert named.bytes == [ord("x")]
    assert [one.logprob for one in named.top_logprobs] == [-1.0, LEAST]
