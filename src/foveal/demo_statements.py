"""What NLVR says is in its pictures -> exact true/false statements, as examples (pure).

The sentences about two pictures are those of the bundled evaluation pairs. Each sentence is true as
often as it is false, so that the text alone says nothing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foveal.data.convert.statements import CHOICES, ask
from foveal.data.example import Example, Turn

COLORS = {"yellow": "Yellow", "blue": "#0099ff", "black": "Black"}
SHAPES = ("circle", "square", "triangle")
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five"}

Counts = NDArray[np.int64]
"""(3 colors, 3 shapes), objects of one picture, over its three boxes."""


@dataclass(frozen=True)
class Scene:
    """One picture and what is in it."""

    image: str
    counts: Counts


@dataclass(frozen=True)
class Statement:
    """A sentence, and whether it holds for some pictures."""

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
    """Write the sentences about a single picture: a first lesson."""
    made = []
    for color, name in enumerate(COLORS):
        for shape, figure in enumerate(SHAPES):
            made.append(_exists(f"There is a {name} {figure} in the image.", 0, color, shape))
        for number in NUMBERS:
            sentence = f"The image has at least {NUMBERS[number]} {name} objects."
            made.append(_at_least(sentence, 0, color, number))
    return made


def statements_about_two() -> list[Statement]:
    """Write the sentences about a left and a right picture."""
    made = []
    for side, place in enumerate(("left", "right")):
        for color, name in enumerate(COLORS):
            for shape, figure in enumerate(SHAPES):
                sentence = f"There is a {name} {figure} in the {place} image."
                made.append(_exists(sentence, side, color, shape))
            for number in (2, 3, 4, 5):
                sentence = f"The {place} image has at least {NUMBERS[number]} {name} objects."
                made.append(_at_least(sentence, side, color, number))
    for color, name in enumerate(COLORS):
        made += [
            Statement(f"Both images contain at least one {name} object.", _both(color)),
            Statement(
                f"There are more {name} objects in the left image than in the right image.",
                _more(0, 1, color),
            ),
            Statement(
                f"The right image has more {name} objects than the left image.", _more(1, 0, color)
            ),
        ]
        for shape, figure in enumerate(SHAPES):
            sentence = f"Exactly one of the two images contains a {name} {figure}."
            made.append(Statement(sentence, _only_one(color, shape)))
    for shape, figure in enumerate(SHAPES):
        sentence = f"The left image contains more {figure}s than the right image."
        made.append(Statement(sentence, _more_of_shape(shape)))
    sentence = "The two images together contain more than twenty objects."
    made.append(Statement(sentence, lambda seen: bool(seen[0].sum() + seen[1].sum() > 20)))
    return made


def _exists(sentence: str, side: int, color: int, shape: int) -> Statement:
    return Statement(sentence, lambda seen: bool(seen[side][color, shape] >= 1))


def _at_least(sentence: str, side: int, color: int, number: int) -> Statement:
    return Statement(sentence, lambda seen: bool(seen[side][color].sum() >= number))


def _both(color: int) -> Callable[[Sequence[Counts]], bool]:
    return lambda seen: bool(seen[0][color].sum() and seen[1][color].sum())


def _more(side: int, other: int, color: int) -> Callable[[Sequence[Counts]], bool]:
    return lambda seen: bool(seen[side][color].sum() > seen[other][color].sum())


def _more_of_shape(shape: int) -> Callable[[Sequence[Counts]], bool]:
    return lambda seen: bool(seen[0][:, shape].sum() > seen[1][:, shape].sum())


def _only_one(color: int, shape: int) -> Callable[[Sequence[Counts]], bool]:
    return lambda seen: bool(seen[0][color, shape] >= 1) != bool(seen[1][color, shape] >= 1)


KEY_WORDS = (*COLORS, *SHAPES, *NUMBERS.values(), "left", "right", "both", "more")


def reading_lesson(num_examples: int, name: str, seed: int) -> Iterator[Example]:
    """Draw sentences without pictures; the answer repeats the words that matter.

    A model that has learnt where in a question to look learns several times faster from pictures.
    """
    randomness = np.random.default_rng(seed)
    sentences = [one.sentence for one in (*statements_about_one(), *statements_about_two())]
    for number, index in enumerate(randomness.integers(len(sentences), size=num_examples)):
        words = [word.strip(".").removesuffix("s") for word in sentences[index].split()]
        found = " ".join(word for word in words if word in KEY_WORDS)
        turn = Turn(user=f"Which words matter?\n{sentences[index]}", assistant=found)
        yield Example(id=f"{name}-{number:06d}", source="nlvr", conversations=(turn,))


def lesson(
    scenes: Sequence[Scene],
    statements: Sequence[Statement],
    num_images: int,
    num_groups: int,
    statements_per_group: int,
    name: str,
    seed: int,
) -> Iterator[Example]:
    """Draw pictures at random, and for each draw several statements about them.

    A statement is taken so often that, over all pictures, it is true as often as false.

    Args:
        scenes: to draw from.
        statements: to choose from.
        num_images: pictures of a group: 1 or 2.
        num_groups: draws.
        statements_per_group: examples of a draw.
        name: beginning of the ids.
        seed: start of the random choices.
    """
    randomness = np.random.default_rng(seed)
    share_true = _true_shares(scenes, statements, num_images, randomness)
    made = 0
    while made < num_groups:
        drawn = [scenes[index] for index in randomness.integers(len(scenes), size=num_images)]
        seen = [scene.counts for scene in drawn]
        truths = np.array([statement.holds(seen) for statement in statements])
        odds = np.where(truths, (1 - share_true) / share_true, share_true / (1 - share_true))
        taken = np.flatnonzero(randomness.random(len(statements)) < odds)
        if len(taken) < statements_per_group:
            continue
        for index in randomness.permutation(taken)[:statements_per_group]:
            turn = Turn(
                images=tuple(scene.image for scene in drawn),
                user=ask(statements[index].sentence),
                assistant=CHOICES[0] if truths[index] else CHOICES[1],
                choices=CHOICES,
            )
            identity = f"{name}-{made:06d}-{index:02d}"
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
