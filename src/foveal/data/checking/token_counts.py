"""An example and the sizes of its images -> how long each of its turns is for a model."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from foveal.data.example import Example
from foveal.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from foveal.data.encode import Encoded
    from foveal.data.turn_processor import TurnProcessor


@dataclass(frozen=True)
class TokenCounts:
    """How long an example is for a model."""

    turns: tuple[int, ...]
    """Tokens of each turn: prompt, images and answer."""

    learnt: int
    """Tokens of all turns that are learnt."""

    rejected: tuple[tuple[int, int], ...] = ()
    """Turn from 1, and all tokens up to the end of a rejected answer of it."""


class ShownSize(NamedTuple):
    """An image of a turn, or a frame of a clip."""

    name: str
    size: tuple[int, int]
    """(width, height)"""

    path: Path = Path()
    """Tells how many frames a clip is shown by."""


CountTokens = Callable[[Example, Sequence[Sequence[ShownSize]]], TokenCounts]
"""From an example and what each of its turns shows; a function of a module, or a partial."""


def count_tokens(
    processor: "TurnProcessor", example: Example, shown: Sequence[Sequence[ShownSize]]
) -> TokenCounts:
    """Count as a run over the same processor would."""
    # And numpy, which checking alone needs not.
    from foveal.data.read_turns import asked_turns, box_map_for, holds_boxes, move_boxes

    turns, rejected, boxes = [], [], None
    asked = asked_turns(example, [len(some) for some in shown], processor.frame_choice)
    if processor.boxes and holds_boxes(example, with_rejected=True):
        sizes = [one.size for some in shown for one in some]
        boxes = box_map_for(example, sizes, processor)
        asked = move_boxes(asked, boxes)
    learnt = images = before = 0
    for number, some in enumerate(shown, start=1):
        encoded = processor.encode_turns(asked[:number], example.system)
        images += sum(_image_tokens(processor, one) - 1 for one in some)
        tokens, learnt = len(encoded.entries) + images, sum(encoded.learnt)
        turns.append(tokens - before)
        before = tokens
        for text in example.turns[number - 1].rejected:
            worse = asked[number - 1]._replace(assistant=boxes.to_model(text) if boxes else text)
            said = [*asked[: number - 1], worse]
            entries = processor.encode_turns(said, example.system).entries
            rejected.append((number, len(entries) + images))
    return TokenCounts(tuple(turns), learnt, tuple(rejected))


def _image_tokens(processor: "TurnProcessor", shown: ShownSize) -> int:
    from foveal.data.shapes import shape_of

    try:
        return shape_of(processor, shown.path, shown.size).tokens
    except (DataError, ValueError) as error:
        raise DataError(f"image {shown.name}: {error}") from error


def length_problems(counts: TokenCounts, most: int | None) -> Iterator[str]:
    """Find what is wrong with how long an example is for a model that takes `most` tokens."""
    if most is not None:
        totals = enumerate(accumulate(counts.turns), start=1)
        if over := next(((turn, total) for turn, total in totals if total > most), None):
            yield f"turn {over[0]}: {over[1]} tokens up to here, more than {most}"
        for turn, tokens in counts.rejected:
            if tokens > most:
                where = f"{tokens} tokens up to a rejected answer's end"
                yield f"turn {turn}: {where}, more than {most}"
    if not counts.learnt:
        yield "no token of it would be learnt"


def check_lengths(
    tokens: "NDArray[np.int32]",
    examples: "Sequence[Encoded]",
    window: int | None,
    tokens_per_pass: int,
    image_setting: str,
) -> str | None:
    """Compare the lengths of examples with what a model and a pass can hold.

    Args:
        tokens: of each example.
        examples: the same, for their ids.
        window: most tokens that the model was made for; none: not known.
        tokens_per_pass: of the recipe.
        image_setting: which of its settings says how much of an image is read.

    Returns:
        What is worth saying about those that fill a pass alone.

    Raises:
        DataError: one is longer than the model's window.
    """
    longest = int(tokens.argmax())
    if window is not None and tokens[longest] > window:
        count = int((tokens > window).sum())
        raise DataError(
            f"example {examples[longest].id} has {tokens[longest]:,} tokens, more than the "
            f"{window:,} that the model was made for ({count:,} such); shorten it, or lower "
            f"{image_setting}"
        )
    count = int((tokens > tokens_per_pass).sum())
    if not count:
        return None
    return (
        f"{count:,} examples are longer than train.tokens_per_pass={tokens_per_pass:,} and fill a "
        f"pass alone; the longest, {examples[longest].id}, has {tokens[longest]:,} tokens"
    )
