"""What NLVR says is in its images -> exact true/false statements, as examples (pure).

The sentences about two images are those of the bundled evaluation pairs. Each sentence is true as
often as it is false, so that the text alone says nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foveal.data.convert.annotations import CHOICES, ask_statement
from foveal.data.example import Example, Turn

COLORS = {"yellow": "Yellow", "blue": "#0099ff", "black": "Black"}
SHAPES = ("circle", "square", "triangle")
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five"}

Counts = NDArray[np.int64]
"""(3 colors, 3 shapes), objects of one image, over its three boxes."""


@dataclass(frozen=True)
class Scene:
    """One image and what is in it."""

    image: str
    counts: Counts


@dataclass(frozen=True)
class Statement:
    """A sentence, and whether it holds for some images."""

    sentence: str
    holds: Callable[[Sequence[Counts]], bool]


def count_objects(boxes: Sequence[Sequence[Mapping[str, object]]]) -> Counts:
    """Count the objects of a `structured_rep` by color and shape."""
    counts = np.zeros((len(COLORS), len(SHAPES)), np.int64)
    colors = list(COLORS.values())
    for box in boxes:
        for thing in box:
            counts[colors.index(str(thing["color"])), SHAPES.index(str(thing["type"]))] += 1
    return counts


def statements_about_one() -> list[Statement]:
    """Write the sentences about a single image: a first lesson."""
    made = []
    for color, name in enumerate(COLORS):
        for shape, figure in enumerate(SHAPES):
            made.append(_at_least(f"There is a {name} {figure} in the image.", 0, (color, shape)))
        for number in NUMBERS:
            sentence = f"The image has at least {NUMBERS[number]} {name} objects."
            made.append(_at_least(sentence, 0, (color,), number))
    return made


def statements_about_two() -> list[Statement]:
    """Write the sentences about a left and a right image."""
    made = []
    for side, place in enumerate(("left", "right")):
        for color, name in enumerate(COLORS):
            for shape, figure in enumerate(SHAPES):
                sentence = f"There is a {name} {figure} in the {place} image."
                made.append(_at_least(sentence, side, (color, shape)))
            for number in (2, 3, 4, 5):
                sentence = f"The {place} image has at least {NUMBERS[number]} {name} objects."
                made.append(_at_least(sentence, side, (color,), number))
    for color, name in enumerate(COLORS):
        made += [
            _both(f"Both images contain at least one {name} object.", (color,)),
            _more(
                f"There are more {name} objects in the left image than in the right image.",
                0,
                (color,),
            ),
            _more(f"The right image has more {name} objects than the left image.", 1, (color,)),
        ]
        for shape, figure in enumerate(SHAPES):
            sentence = f"Exactly one of the two images contains a {name} {figure}."
            made.append(_only_one(sentence, (color, shape)))
    for shape, figure in enumerate(SHAPES):
        sentence = f"The left image contains more {figure}s than the right image."
        made.append(_more(sentence, 0, (slice(None), shape)))
    sentence = "The two images together contain more than twenty objects."
    made.append(Statement(sentence, lambda seen: sum(one.sum() for one in seen) > 20))
    return made


Things = tuple[int | slice, ...]
"""Color, or color and shape, of what is counted."""


def _at_least(sentence: str, side: int, things: Things, number: int = 1) -> Statement:
    return Statement(sentence, lambda seen: seen[side][things].sum() >= number)


def _both(sentence: str, things: Things) -> Statement:
    return Statement(sentence, lambda seen: all(one[things].any() for one in seen))


def _more(sentence: str, side: int, things: Things) -> Statement:
    return Statement(sentence, lambda seen: seen[side][things].sum() > seen[1 - side][things].sum())


def _only_one(sentence: str, things: Things) -> Statement:
    return Statement(sentence, lambda seen: seen[0][things].any() != seen[1][things].any())


def count(seen: Sequence[Counts], order: Callable[[int], Iterable[int]]) -> str:
    """Say for each color how many circles, squares and triangles there are, and in all.

    `yellow 2013` is two circles, no square, one triangle, three objects; more than nine are nine.

    Args:
        seen: the image, or the left and the right one.
        order: of so many things, in which they are named.
    """
    said = []
    for side in order(len(seen)) if len(seen) > 1 else (0,):
        said += [("left", "right")[side]] if len(seen) > 1 else []
        for color in order(len(COLORS)):
            counts = seen[side][color]
            numbers = "".join(str(min(9, int(number))) for number in (*counts, counts.sum()))
            said += [tuple(COLORS)[color], numbers]
    return " ".join(said)


@dataclass(frozen=True)
class Lesson:
    """What a part of the training file teaches: to count, and to judge statements."""

    name: str
    num_images: int
    """Images of a draw: 1 or 2."""

    num_draws: int
    statements_per_draw: int
    """Examples of a draw besides the one that counts."""

    any_order: bool = True
    """Whether counting names the colors in any order: so the numbers hang on the words.

    The fixed order is learnt much faster, and what it teaches the tower makes the other possible.
    """


def examples_of(
    lesson: Lesson, scenes: Sequence[Scene], statements: Sequence[Statement], seed: int
) -> Iterator[Example]:
    """Draw images at random; count each draw and judge several statements about it.

    Counting teaches what is to be seen, a dozen numbers at a time where a statement gives one bit.
    A statement is taken so often that, over all images, it is true as often as false.
    """
    randomness = np.random.default_rng((seed, *lesson.name.encode()))
    order = randomness.permutation if lesson.any_order else range
    share_true = _true_shares(scenes, statements, lesson.num_images, randomness)
    made = 0
    while made < lesson.num_draws:
        drawn = [
            scenes[index] for index in randomness.integers(len(scenes), size=lesson.num_images)
        ]
        seen = [scene.counts for scene in drawn]
        truths = np.array([statement.holds(seen) for statement in statements])
        odds = np.where(truths, (1 - share_true) / share_true, share_true / (1 - share_true))
        taken = np.flatnonzero(randomness.random(len(statements)) < odds)
        if len(taken) < lesson.statements_per_draw:
            continue
        images = tuple(scene.image for scene in drawn)
        turn = Turn(images=images, user="Count what you see.", assistant=count(seen, order))
        yield Example(id=f"{lesson.name}-{made:06d}-count", source="nlvr", conversations=(turn,))
        for index in randomness.permutation(taken)[: lesson.statements_per_draw]:
            turn = Turn(
                images=images,
                user=ask_statement(statements[index].sentence),
                assistant=CHOICES[0] if truths[index] else CHOICES[1],
                choices=CHOICES,
            )
            identity = f"{lesson.name}-{made:06d}-{index:02d}"
            yield Example(id=identity, source="nlvr", conversations=(turn,))
        made += 1


def _true_shares(
    scenes: Sequence[Scene],
    statements: Sequence[Statement],
    num_images: int,
    randomness: np.random.Generator,
    draws: int = 2000,
) -> NDArray[np.float64]:
    counts = np.full(len(statements), 0.5)  # neither share may be 0
    for drawn in randomness.integers(len(scenes), size=(draws, num_images)):
        seen = [scenes[index].counts for index in drawn]
        counts += [statement.holds(seen) for statement in statements]
    return counts / (draws + 1)
