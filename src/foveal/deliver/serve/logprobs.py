"""A token with its log-probability -> how OpenAI names it."""

import re
from typing import Any

from foveal.deliver.serve.messages import TokenLogprob, TopLogprob
from foveal.models.generation.generator import Token

LEAST = -9999.0
"""Stands for minus infinity, which JSON does not know."""

BYTE = re.compile(r"<0x([0-9A-F]{2})>")
WORD_START = "\N{LOWER ONE EIGHTH BLOCK}"


def name_logprobs(token: Token, tokenizer: Any) -> tuple[TokenLogprob, ...]:
    """Name a token and the likeliest ones in its place; nothing if no numbers were asked for."""
    if token.logprob is None:
        return ()
    likeliest = [_named(tokenizer, one, number) for one, number in token.likeliest]
    own = _named(tokenizer, token.id, token.logprob)
    return (TokenLogprob(**own.model_dump(), top_logprobs=likeliest),)


def _named(tokenizer: Any, token: int, logprob: float) -> TopLogprob:
    name = str(tokenizer.id_to_token(token)).replace(WORD_START, " ")
    byte = BYTE.fullmatch(name)
    written = [int(byte[1], 16)] if byte else list(name.encode())
    return TopLogprob(token=name, logprob=max(logprob, LEAST), bytes=written)
