"""How tokens with their numbers are named: their bytes joined are the text."""

import math
from pathlib import Path

from tokenizers import Tokenizer

import foveal
from foveal.models.generation.generator import Token
from foveal.serve.logprobs import LEAST, name_logprobs

FOLDER = Path(foveal.__file__).parent / "models" / "phi3_vision" / "tokenizer"
PUBLISHED = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


def test_the_bytes_of_all_tokens_are_the_text():
    ids = PUBLISHED.encode("a 🦊 für 5 €", add_special_tokens=False).ids
    named = [one for id_ in ids for one in name_logprobs(Token(0, id_, None, -0.5), PUBLISHED)]
    assert bytes(byte for one in named for byte in one.bytes).decode() == " a 🦊 für 5 €"
    assert len(named) == len(ids)
    assert {one.logprob for one in named} == {-0.5}


def test_what_cannot_be_is_a_number_that_json_knows():
    (named,) = name_logprobs(Token(0, 5, None, -1.0, ((5, -1.0), (6, -math.inf))), PUBLISHED)
    assert [one.logprob for one in named.top_logprobs] == [-1.0, LEAST]


def test_without_being_asked_for_there_are_none():
    assert name_logprobs(Token(0, 5, None), PUBLISHED) == ()
