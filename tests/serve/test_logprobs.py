"""How tokens with their numbers are named: their bytes joined are the text."""

import math
from pathlib import Path

from tokenizers import Tokenizer

import foveal
from foveal.models.generation.generator import Token
from foveal.serve.answers import LEAST, name_logprobs

FOLDER = Path(foveal.__file__).parent / "models" / "phi3_vision" / "tokenizer"
PUBLISHED = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


def test_the_bytes_of_all_tokens_are_the_text():
    ids = PUBLISHED.encode("a 🦊 für 5 €", add_special_tokens=False).ids
    numbers = [Token(0, one, None, -0.5, ((one, -0.5),)) for one in ids]
    named = [name_logprobs(one, b"", False, PUBLISHED) for one in numbers]
    tops = [one for names in named for one in names.top_logprobs]
    assert bytes(byte for one in tops for byte in one.bytes).decode() == " a 🦊 für 5 €"
    assert {one.logprob for one in [*named, *tops]} == {-0.5}


def test_what_cannot_be_is_a_number_that_json_knows():
    token = Token(0, 5, None, -1.0, ((5, -1.0), (6, -math.inf)))
    named = name_logprobs(token, b"x", False, PUBLISHED)
    assert named.bytes == [ord("x")]
    assert [one.logprob for one in named.top_logprobs] == [-1.0, LEAST]
