"""Tokens of an answer that was cut anywhere -> its text, in whole characters, and its bytes."""

import re
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from itertools import takewhile
from typing import Any

HALF_A_CHARACTER = "\N{REPLACEMENT CHARACTER}"
"""What decoders write for bytes that are no character."""

LONGEST_CHARACTER = 4
"""Bytes of the longest character, and so the most tokens that spell one."""

BYTE = re.compile(r"<0x([0-9A-F]{2})>")
"""A token that stands for one byte, where others are whole words."""

WORD_START = "\N{LOWER ONE EIGHTH BLOCK}"
"""How such a token writes a space."""


def whole_characters(
    ids: Sequence[int], decode: Callable[[list[int]], str]
) -> tuple[list[int], str]:
    """Leave out the tokens at the end that spell only a part of a character.

    A decoder reads bytes together: the part would also spoil the characters before it.

    Args:
        ids: tokens.
        decode: tokens -> text.

    Returns:
        The tokens that are left, and their text.
    """
    whole = list(ids)
    for left_out in range(min(len(whole), LONGEST_CHARACTER - 1) + 1):
        kept = whole[: len(whole) - left_out]
        text = decode(kept)
        if not text.endswith(HALF_A_CHARACTER):
            return kept, text
    return whole, decode(whole)


def read_answer(tokenizer: Any, ids: Sequence[int], ends: Collection[int]) -> str:
    """Read the text of an answer up to its end, in whole characters.

    Args:
        tokenizer: of transformers.
        ids: as they were made.
        ends: of which the first ends it.
    """
    special = set(tokenizer.all_special_ids)
    said = [one for one in takewhile(lambda one: one not in ends, ids) if one not in special]
    return whole_characters(said, tokenizer.decode)[1].strip()


def token_bytes(tokenizer: Any, token: int) -> bytes:
    """Say which bytes a token of the `tokenizers` library stands for."""
    name = str(tokenizer.id_to_token(token))
    if token in _added_ids(tokenizer):
        return name.encode()
    if _spells_bytes(tokenizer):
        return bytes(_byte_of_letter()[letter] for letter in name)
    byte = BYTE.fullmatch(name)
    return bytes([int(byte[1], 16)]) if byte else name.replace(WORD_START, " ").encode()


@lru_cache(maxsize=8)
def _added_ids(tokenizer: Any) -> frozenset[int]:
    names = {one: str(added.content) for one, added in tokenizer.get_added_tokens_decoder().items()}
    return frozenset(
        one for one, name in names.items() if not BYTE.fullmatch(name) and WORD_START not in name
    )


@lru_cache(maxsize=8)
def _spells_bytes(tokenizer: Any) -> bool:
    """Tell whether each letter of a token's name stands for one byte."""
    return "ByteLevel" in repr(tokenizer.decoder)


@lru_cache
def _byte_of_letter() -> dict[str, int]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {letter: byte for byte, letter in bytes_to_unicode().items()}
