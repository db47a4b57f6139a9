"""Predictions before and after + their examples -> cards worth looking at, with images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from foveal.data.example import Example
from foveal.data.images.boxes import Box, BoxUnit, box_edges, box_shares, read_boxes
from foveal.data.images.frames import name_frames
from foveal.data.images.image_folder import ImageFolder
from foveal.data.images.media import open_image
from foveal.errors import DataError
from foveal.evaluate.metrics import iou
from foveal.evaluate.prediction import Prediction
from foveal.report.html import data_uri

CARDS = 6
"""Cards of one group."""

IMAGES = 8
"""Images shown on one card; the rest are counted."""

FRAMES = 4
"""Frames shown of a clip."""

IMAGE_BYTES = 3_000_000
"""Size of all images together, as they stand in the page."""

SIDES = (1024, 768, 512, 384, 256, 160)
"""Longest sides, in pixels, of which an image gets the first that fits its share."""


@dataclass(frozen=True)
class Pair:
    """One turn and what was answered to it, before and after."""

    after: Prediction
    before: Prediction | None = None
    example: Example | None = None

    @property
    def question(self) -> str:
        """The user's words; empty where the data is not at hand."""
        return self.example.turns[self.after.turn].user if self.example else ""

    @property
    def images(self) -> tuple[str, ...]:
        """Images that the model saw up to this turn; of clips some frames."""
        turns = self.example.turns[: self.after.turn + 1] if self.example else ()
        shown: list[str] = []
        for turn in turns:
            frames = (name_frames(Path(clip), FRAMES) for clip in turn.videos)
            shown += [*turn.images, *map(str, chain.from_iterable(frames))]
        return tuple(shown)


@dataclass(frozen=True)
class CardImage:
    """An image, shrunk, as it stands in the page; without `uri`, why it is not there."""

    name: str
    """Id of its element."""

    path: str
    uri: str = ""
    width: int = 0
    height: int = 0
    problem: str = ""
    full_size: tuple[int, int] = (0, 0)
    """(width, height) before it was shrunk."""


DrawnBox = tuple[str, Box]
"""`accepted` or `answered`, and a box of that answer, each edge as a share of the image."""


@dataclass(frozen=True)
class Card:
    """One turn to look at."""

    pair: Pair
    before: float | None
    """Score, 0 to 1."""

    after: float
    confidence: float | None
    """Probability of the answer after, where it was one of a closed set."""

    images: tuple[CardImage, ...] = ()
    more_images: int = 0
    boxes: tuple[DrawnBox, ...] = ()

    @property
    def gain(self) -> float:
        """By how much the score rose; 0 where there is no before."""
        return 0.0 if self.before is None else self.after - self.before


@dataclass(frozen=True)
class CardGroup:
    """Cards that show one thing."""

    title: str
    words: str
    cards: tuple[Card, ...]


@dataclass(frozen=True)
class Gallery:
    """What there is to look at; each image stands in it once."""

    groups: tuple[CardGroup, ...] = ()
    images: tuple[CardImage, ...] = ()


def match(
    after: Sequence[Prediction], before: Sequence[Prediction], examples: Sequence[Example]
) -> list[Pair]:
    """Put together what belongs to one turn, in the order of `after`."""
    earlier = {one.key: one for one in before}
    known = {example.id: example for example in examples}
    pairs = []
    for one in after:
        example = known.get(one.id)
        if example and one.turn >= len(example.turns):
            example = None  # another version of the data
        pairs.append(Pair(one, earlier.get(one.key), example))
    return pairs


def choose_cards(
    pairs: Sequence[Pair],
    score: Callable[[Prediction], float],
    folder: ImageFolder | None,
    seed: int = 0,
    unit: BoxUnit | None = None,
) -> Gallery:
    """Choose the turns that teach most, and shrink their images.

    Args:
        pairs: all turns.
        score: score of one answer, 0 to 1; higher is better.
        folder: where images are; none: cards without images.
        seed: start of every random choice.
        unit: what numbers of boxes in the data count; none: no box is drawn.
    """
    cards = [
        Card(
            pair,
            before=score(pair.before) if pair.before else None,
            after=score(pair.after),
            confidence=max(pair.after.choice_probabilities.values(), default=None),
        )
        for place in np.random.default_rng(seed).permutation(len(pairs))  # ties fall at random
        for pair in (pairs[place],)
    ]
    kinds: list[tuple[str, str, Callable[[Card], float]]] = [
        ("Most improved", "Wrong before, right or closer now.", lambda card: card.gain),
        ("Most broken", "Better before than now: what the run cost.", lambda card: -card.gain),
        ("Most confident mistakes", "Wrong, and most sure of it.", _confident_mistake),
        ("Random", "Drawn blindly from the rest.", lambda card: 1),
    ]
    groups = []
    for title, words, worth in kinds:
        first = sorted((card for card in cards if worth(card) > 0), key=worth, reverse=True)[:CARDS]
        if first:
            groups.append(CardGroup(title, words, tuple(first)))
            taken = {card.pair.after.key for card in first}
            cards = [card for card in cards if card.pair.after.key not in taken]
    return with_images(groups, folder, unit) if folder else Gallery(tuple(groups))


def _confident_mistake(card: Card) -> float:
    return card.confidence or 0 if card.after < 1 else 0


def with_images(
    groups: Sequence[CardGroup], folder: ImageFolder, unit: BoxUnit | None = None
) -> Gallery:
    """Give every card its images; an image that several cards show is kept once."""
    paths = dict.fromkeys(
        path for group in groups for card in group.cards for path in card.pair.images[:IMAGES]
    )
    share = IMAGE_BYTES // max(1, len(paths))
    shrunk = {
        path: shrink(f"picture-{number}", path, folder, share) for number, path in enumerate(paths)
    }

    def filled(card: Card) -> Card:
        images = card.pair.images
        shown = tuple(shrunk[path] for path in images[:IMAGES])
        boxes = _draw_boxes(card.pair.after, shown, unit) if unit else ()
        more = max(0, len(images) - IMAGES)
        return replace(card, images=shown, more_images=more, boxes=boxes)

    shown = [replace(group, cards=tuple(map(filled, group.cards))) for group in groups]
    return Gallery(tuple(shown), tuple(one for one in shrunk.values() if one.uri))


def _draw_boxes(
    prediction: Prediction, shown: Sequence[CardImage], unit: BoxUnit
) -> tuple[DrawnBox, ...]:
    """Place the boxes of an answer, and of the accepted one that it is nearest to."""
    sizes = {one.full_size for one in shown if one.uri}
    if len(sizes) != 1:
        return ()
    edges = box_edges(unit, sizes.pop())
    said = prediction.prediction
    accepted = max(prediction.answers, key=lambda one: iou(said, [one]), default="")
    return tuple(
        (whose, box)
        for whose, text in (("accepted", accepted), ("answered", said))
        for box in box_shares(read_boxes(text), edges)
    )


def shrink(name: str, path: str, folder: ImageFolder, most_bytes: int) -> CardImage:
    """Open an image and make it fit into `most_bytes` as a data URI; at 160 pixels it stays."""
    try:
        image = open_image(folder.find(path))
    except DataError as error:
        return CardImage(name, path, problem=str(error))
    full_size = image.size
    for side in SIDES:
        image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3)
        uri = data_uri(image)
        if len(uri) <= most_bytes:
            break
    return CardImage(name, path, uri, image.width, image.height, full_size=full_size)
