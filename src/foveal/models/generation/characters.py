"""Tokens of an answer that was cut anywhere -> its text, in whole characters."""

from collections.abc import Callable, Sequence

HALF_A_CHARACTER = "\N{REPLACEMENT CHARACTER}"
"""What decoders write for bytes that are no character."""

LONGEST_CHARACTER = 4
"""Bytes of the longest character, and so the most tokens that spell one."""


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
