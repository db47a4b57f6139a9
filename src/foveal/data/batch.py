"""Row -> Batch: ids, positions, who branches from whom, crops, and what is to be predicted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveal.data.dataset import Dataset, ImageFact
from foveal.data.encode import Expanded
from foveal.data.forward_inputs import Batch, GroupSpan, LeftOut, Pairs
from foveal.data.images.archives import fetch_side_by_side
from foveal.data.images.media import open_image
from foveal.data.images.objects import called
from foveal.data.row_planning.groups import Group, Row
from foveal.data.shapes import ImageShape
from foveal.data.turn_processor import TurnProcessor, pixels_of, shape_of
from foveal.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class _Laid:
    """A group laid out, counted from its own start."""

    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    branch_starts: tuple[int, ...]
    predictors: NDArray[np.int64]
    targets: NDArray[np.int64]
    weights: NDArray[np.float32]
    lengths: tuple[int, ...]
    """Targets of each example."""

    images: tuple[int, ...]


def build_batch(
    row: Row,
    dataset: Dataset,
    processor: TurnProcessor,
    weighting: str = "token",
    reference: NDArray[np.float32] | None = None,
) -> Batch:
    """Lay a row out and open its images, each once.

    An example with an image that cannot be used is left out and named; nothing takes its place.

    Args:
        row: without groups where a rank only keeps the others company: one token, no target.
        dataset: that the row's examples belong to.
        processor: that encoded it.
        weighting: "token": each target counts 1; "example": each example's targets together.
        reference: (examples,) log-probability of each answer before the run, where it is known.
    """
    pixels, reasons = _open_all(row, dataset, processor)
    row, left_out = _leave_out(row, dataset, reasons)
    laid = [_lay_out(group, dataset, processor, weighting) for group in row.groups]
    laid = laid or [_empty(processor)]
    ends = np.cumsum([len(one.ids) for one in laid])
    starts = ends - [len(one.ids) for one in laid]
    spans = tuple(
        GroupSpan(int(start), tuple(int(start) + cut for cut in one.branch_starts), int(end))
        for one, start, end in zip(laid, starts, ends, strict=True)
    )
    shown = [image for one in laid for image in one.images]
    distinct = list(dict.fromkeys(shown))
    shapes = [dataset.images[image].shape for image in distinct]
    return Batch(
        pixels=processor.stack([pixels[image] for image in distinct], shapes) if distinct else {},
        image_features=tuple(shape.features for shape in shapes),
        image_indices=tuple(distinct.index(image) for image in shown),
        input_ids=_tensor([one.ids for one in laid])[None],
        positions=_tensor([one.positions for one in laid])[:, None],
        groups=spans,
        predictors=_tensor(
            [one.predictors + start for one, start in zip(laid, starts, strict=True)]
        ),
        targets=_tensor([one.targets for one in laid]),
        weights=_tensor([one.weights for one in laid]),
        example_ids=tuple(
            dataset.examples[example].id
            for example in row.examples
            if dataset.sizes.is_first(example)
        ),
        tokens=int(dataset.sizes.tokens[list(row.examples)].sum()),
        left_out=left_out,
        pairs=_pair(row, dataset, [length for one in laid for length in one.lengths], reference),
    )


def _pair(
    row: Row, dataset: Dataset, lengths: Sequence[int], reference: NDArray[np.float32] | None
) -> Pairs | None:
    """Pair the first answer of each set with those behind it; a lone answer pairs with none."""
    sizes, examples = dataset.sizes, row.examples
    if sizes.sets is None:
        return None
    sets = sizes.set_of(examples)
    chosen, rejected, first = [], [], -1
    for place, example in enumerate(examples):
        if sizes.is_first(example):
            first = place
        elif first >= 0 and sets[first] == sets[place]:
            chosen.append(first)
            rejected.append(place)
    known = (
        np.full(len(examples), np.nan, np.float32)
        if reference is None
        else reference[list(examples)]
    )
    return Pairs(
        lengths=tuple(lengths),
        chosen=torch.tensor(chosen, dtype=torch.long),
        rejected=torch.tensor(rejected, dtype=torch.long),
        reference=torch.from_numpy(known),
        examples=examples,
    )


def open_pixels(image: int, dataset: Dataset, processor: TurnProcessor) -> Mapping[str, Tensor]:
    """Open an image as the tower takes it, of the shape that its header promised.

    Raises:
        DataError: it cannot be opened, or is another one by now.
    """
    fact = dataset.images[image]
    return pixels_of(processor, fact.path, open_as_planned(fact, processor))


def open_as_planned(fact: ImageFact, processor: TurnProcessor) -> "Image":
    """Open an image, of the shape that its header promised.

    Raises:
        DataError: it cannot be opened, or is another one by now.
    """
    opened = open_image(fact.path)
    try:
        if shape_of(processor, fact.path, opened.size) != fact.shape:
            raise ValueError("it was another picture when the run began; put that back")
    except (DataError, ValueError) as error:  # too elongated by now; it knows no name
        raise DataError(f"{called(fact.path)}: {error}") from None
    return opened


def _open_all(
    row: Row, dataset: Dataset, processor: TurnProcessor
) -> tuple[dict[int, Mapping[str, Tensor]], dict[int, str]]:
    """Open every image of a row; of one that cannot be used, say why."""
    opened: dict[int, Mapping[str, Tensor]] = {}
    reasons: dict[int, str] = {}
    images = sorted(row.images(dataset.sizes))
    fetch_side_by_side(dataset.images[image].path for image in images)
    for image in images:
        try:
            opened[image] = open_pixels(image, dataset, processor)
        except DataError as error:
            reasons[image] = str(error)
    return opened, reasons


def _leave_out(
    row: Row, dataset: Dataset, reasons: Mapping[int, str]
) -> tuple[Row, tuple[LeftOut, ...]]:
    """Take the examples out of a row that show an image for which there is a reason not to."""
    if not reasons:
        return row, ()
    left_out: list[LeftOut] = []
    groups: list[Group] = []
    for group in row.groups:
        kept: list[int] = []
        for example in group.examples:
            bad = [image for image in dataset.image_numbers(example) if image in reasons]
            if bad:
                if dataset.sizes.is_first(example):  # the others of its set show the same
                    left_out.append(LeftOut(dataset.examples[example].id, reasons[bad[0]]))
            else:
                kept.append(example)
        if kept:
            groups.append(Group(tuple(kept), group.prefix_tokens))
    return Row(tuple(groups)), tuple(left_out)


def _tensor(chunks: list[NDArray[np.int64]] | list[NDArray[np.float32]]) -> Tensor:
    return torch.from_numpy(np.concatenate(chunks, axis=-1))


def place_tokens(
    processor: TurnProcessor, ids: NDArray[np.int64], shapes: Sequence[ImageShape], is_long: bool
) -> NDArray[np.int64]:
    """Place the tokens of one example, and mark them where long examples are treated apart.

    Returns:
        (axes, tokens); the mark is the last axis.
    """
    places = processor.positions(ids, shapes)
    if processor.long_context_tokens is None:
        return places
    return np.concatenate([places, np.full((1, len(ids)), int(is_long))])


def _empty(processor: TurnProcessor) -> _Laid:
    """One token that predicts nothing."""
    token, nothing = np.zeros(1, np.int64), np.zeros(0, np.int64)
    positions = place_tokens(processor, token, (), False)
    return _Laid(token, positions, (), nothing, nothing, np.zeros(0, np.float32), (), ())


def _lay_out(group: Group, dataset: Dataset, processor: TurnProcessor, weighting: str) -> _Laid:
    expanded = [_expand(example, dataset) for example in group.examples]
    prefix = len(expanded[0].ids) if len(expanded) == 1 else group.prefix_tokens
    tails = [one.ids[prefix:] for one in expanded] if len(expanded) > 1 else []
    starts = np.cumsum([prefix, *(len(tail) for tail in tails)])[: len(tails)]
    predictors, targets, weights = [], [], []
    for one, start in zip(expanded, starts if tails else [prefix], strict=True):
        learnt = np.flatnonzero(one.learnt)
        before = learnt - 1  # the first token of an example is never learnt
        # In the row, what lies behind the prefix stands in the example's own branch.
        predictors.append(np.where(before < prefix, before, before - prefix + start))
        targets.append(one.ids[learnt])
        weight = 1.0 if weighting == "token" else 1.0 / max(len(learnt), 1)
        weights.append(np.full(len(learnt), weight, np.float32))
    border = processor.long_context_tokens
    is_long = border is not None and max(len(one.ids) for one in expanded) > border
    placed = [place_tokens(processor, one.ids, one.shown, is_long) for one in expanded]
    behind = [places[:, prefix:] for places in placed] if tails else []
    return _Laid(
        ids=np.concatenate([expanded[0].ids[:prefix], *tails]),
        positions=np.concatenate([placed[0][:, :prefix], *behind], axis=1),
        branch_starts=tuple(int(start) for start in starts),
        predictors=np.concatenate(predictors),
        targets=np.concatenate(targets),
        weights=np.concatenate(weights),
        lengths=tuple(map(len, targets)),
        images=_images_of(group, prefix, dataset),
    )


def _expand(example: int, dataset: Dataset) -> Expanded:
    shapes = [dataset.images[number].shape for number in dataset.image_numbers(example)]
    return dataset.examples[example].expand(shapes)


def _images_of(group: Group, prefix: int, dataset: Dataset) -> tuple[int, ...]:
    """Name the images in the order in which the group's row shows them."""
    shown: list[int] = []
    for place, example in enumerate(group.examples):
        numbers, reached = dataset.image_numbers(example), 0
        for entry in dataset.examples[example].entries.tolist():
            if entry >= 0:
                reached += 1
                continue
            image = numbers[-1 - entry]
            if place == 0 or reached >= prefix:
                shown.append(image)
            reached += dataset.images[image].shape.tokens
    return tuple(shown)
