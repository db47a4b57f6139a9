"""A token with its log-probability -> how OpenAI names it."""

from typing import Any

from openai.types.chat import ChatCompletionTokenLogprob
from openai.types.chat.chat_completion_token_logprob import TopLogprob

from foveal.models.generation.characters import BYTE, token_bytes
from foveal.models.generation.generator import Token
from foveal.serve.text import TokenText

LEAST = -9999.0
"""Stands for minus infinity, which JSON does not know."""


def name_logprobs(
    token: Token, tokenizer: Any, share: TokenText | None = None
) -> tuple[ChatCompletionTokenLogprob, ...]:
    """Name a token and the likeliest ones in its place; nothing if no numbers were asked for.

    Args:
        token: with its numbers.
        tokenizer: of the `tokenizers` library.
        share: what it brought to the text, whose bytes are then its own; none: all that it says.
    """
    if token.logprob is None:
        return ()
    begins = share is not None and share.begins
    likeliest = [_named(tokenizer, one, number, begins) for one, number in token.likeliest]
    own = _named(tokenizer, token.id, token.logprob, begins)
    if share is not None:
        own = own.model_copy(update={"bytes": list(share.bytes)})
    return (ChatCompletionTokenLogprob(**own.model_dump(), top_logprobs=likeliest),)


def _named(tokenizer: Any, token: int, logprob: float, begins: bool) -> TopLogprob:
    """Name a token; where the text begins, the space before its first word is not said."""
    written, name = token_bytes(tokenizer, token), str(tokenizer.id_to_token(token))
    if not BYTE.fullmatch(name):
        name = written.decode(errors="replace")
    if begins and not BYTE.fullmatch(name):
        name, written = name.lstrip(), written.lstrip()
    return TopLogprob(token=name, logprob=max(logprob, LEAST), bytes=list(written))
