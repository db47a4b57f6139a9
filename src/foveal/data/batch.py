"""Row -> Batch: ids, positions, who branches from whom, crops, and what is to be predicted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveal.data.dataset import Dataset
from foveal.data.encode import Expanded, TurnProcessor
from foveal.data.layout import GroupSpan
from foveal.data.media import open_image
from foveal.data.rows import Group, Row
from foveal.errors import DataError


@dataclass(frozen=True)
class Pictures:
    """What the tower is given, and which place in the text each picture stands at."""

    pixel_values: Tensor | None
    """(crops, 3, size, size), uint8; own crops of each distinct picture, no global views."""

    image_sizes: Tensor | None
    """(pictures, 2), int64; height and width in pixels of each distinct picture, cut."""

    image_indices: tuple[int, ...]
    """Which distinct picture stands at each place for one, in the order of the text."""


@dataclass(frozen=True)
class LeftOut:
    """An example that is not in its row, since a picture of it cannot be used."""

    example_id: str
    reason: str


@dataclass(frozen=True)
class Batch(Pictures):
    """One forward pass: several groups side by side in one row, no padding."""

    input_ids: Tensor
    """(1, length), int64."""

    position_ids: Tensor
    """(1, length), int64; each token's place in its own example."""

    example_lengths: Tensor
    """(1, length), int64; tokens of the whole example that each token belongs to."""

    groups: tuple[GroupSpan, ...]

    predictors: Tensor
    """(targets,), int64; place in the row whose hidden state predicts the target."""

    targets: Tensor
    """(targets,), int64; token ids."""

    weights: Tensor
    """(targets,), float32; what each target counts for in the loss."""

    example_ids: tuple[str, ...]
    tokens: int
    """Tokens that the examples have, shared ones counted once for each."""

    left_out: tuple[LeftOut, ...] = ()

    def model_inputs(self) -> dict[str, Any]:
        """Name what a model's forward pass takes."""
        names = ("input_ids", "position_ids", "example_lengths", "groups")
        pictures = ("pixel_values", "image_sizes", "image_indices")
        kept = names if self.pixel_values is None else names + pictures
        return {name: getattr(self, name) for name in kept}

    def to(self, device: torch.device) -> "Batch":
        """Copy to a device."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)


@dataclass(frozen=True)
class _Laid:
    """A group laid out, counted from its own start."""

    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    longest: int
    branch_starts: tuple[int, ...]
    predictors: NDArray[np.int64]
    targets: NDArray[np.int64]
    weights: NDArray[np.float32]
    images: tuple[int, ...]

    @classmethod
    def empty(cls) -> "_Laid":
        """One token that predicts nothing."""
        whole, real = np.zeros(0, np.int64), np.zeros(0, np.float32)
        token = np.zeros(1, np.int64)
        return cls(token, token, 1, (), whole, whole, real, ())


def build_batch(
    row: Row, dataset: Dataset, processor: TurnProcessor, weighting: str = "token"
) -> Batch:
    """Lay a row out and open its pictures, each once.

    An example with a picture that cannot be used is left out and named; nothing takes its place.

    Args:
        row: without groups where a rank only keeps the others company: one token, no target.
        dataset: that the row's examples belong to.
        processor: that encoded it.
        weighting: "token": each target counts 1; "example": each example's targets together.
    """
    crops, reasons = _cut_all(row, dataset, processor)
    row, left_out = _leave_out(row, dataset, reasons)
    laid = [_lay_out(group, dataset, processor.image_token_id, weighting) for group in row.groups]
    laid = laid or [_Laid.empty()]
    ends = np.cumsum([len(one.ids) for one in laid])
    starts = ends - [len(one.ids) for one in laid]
    spans = tuple(
        GroupSpan(int(start), tuple(int(start) + cut for cut in one.branch_starts), int(end))
        for one, start, end in zip(laid, starts, ends, strict=True)
    )
    pictures = _arrange([image for one in laid for image in one.images], crops, dataset)
    lengths = [np.full(len(one.ids), one.longest, np.int64) for one in laid]
    return Batch(
        input_ids=_tensor([one.ids for one in laid])[None],
        position_ids=_tensor([one.positions for one in laid])[None],
        example_lengths=_tensor(lengths)[None],
        groups=spans,
        **vars(pictures),
        predictors=_tensor(
            [one.predictors + start for one, start in zip(laid, starts, strict=True)]
        ),
        targets=_tensor([one.targets for one in laid]),
        weights=_tensor([one.weights for one in laid]),
        example_ids=tuple(dataset.examples[example].id for example in row.examples),
        tokens=int(dataset.sizes.tokens[list(row.examples)].sum()),
        left_out=left_out,
    )


def open_pictures(shown: Sequence[int], dataset: Dataset, processor: TurnProcessor) -> "Pictures":
    """Open and cut the pictures shown, each distinct one once.

    Raises:
        DataError: a picture cannot be used.
    """
    crops = {image: _cut(image, dataset, processor) for image in dict.fromkeys(shown)}
    return _arrange(shown, crops, dataset)


def _arrange(shown: Sequence[int], crops: Mapping[int, Tensor], dataset: Dataset) -> "Pictures":
    if not shown:
        return Pictures(None, None, ())
    distinct = list(dict.fromkeys(shown))
    side = crops[distinct[0]].shape[-1]
    facts = [dataset.images[image] for image in distinct]
    sizes = [(fact.rows * side, fact.columns * side) for fact in facts]
    indices = tuple(distinct.index(image) for image in shown)
    return Pictures(torch.cat([crops[image] for image in distinct]), torch.tensor(sizes), indices)


def _cut(image: int, dataset: Dataset, processor: TurnProcessor) -> Tensor:
    """Open a picture and cut it into crops, as many as its header promised."""
    fact = dataset.images[image]
    picture = open_image(fact.path)
    try:
        crops = processor.cut(picture)
    except DataError as error:  # it knows no name
        raise DataError(f"{fact.path}: {error}") from None
    if len(crops) != fact.rows * fact.columns:
        raise DataError(f"{fact.path}: it was another picture when the run began; put that back")
    return crops


def _cut_all(
    row: Row, dataset: Dataset, processor: TurnProcessor
) -> tuple[dict[int, Tensor], dict[int, str]]:
    """Cut every picture of a row; of one that cannot be used, say why."""
    crops: dict[int, Tensor] = {}
    reasons: dict[int, str] = {}
    for image in sorted(row.images(dataset.sizes)):
        try:
            crops[image] = _cut(image, dataset, processor)
        except DataError as error:
            reasons[image] = str(error)
    return crops, reasons


def _leave_out(
    row: Row, dataset: Dataset, reasons: Mapping[int, str]
) -> tuple[Row, tuple[LeftOut, ...]]:
    """Take the examples out of a row that show a picture for which there is a reason not to."""
    if not reasons:
        return row, ()
    left_out: list[LeftOut] = []
    groups: list[Group] = []
    for group in row.groups:
        kept: list[int] = []
        for example in group.examples:
            bad = [image for image in dataset.image_numbers(example) if image in reasons]
            if bad:
                left_out.append(LeftOut(dataset.examples[example].id, reasons[bad[0]]))
            else:
                kept.append(example)
        if kept:
            groups.append(Group(tuple(kept), group.prefix_tokens))
    return Row(tuple(groups)), tuple(left_out)


def _tensor(pieces: list[NDArray[np.int64]] | list[NDArray[np.float32]]) -> Tensor:
    return torch.from_numpy(np.concatenate(pieces))


def _lay_out(group: Group, dataset: Dataset, image_token_id: int, weighting: str) -> _Laid:
    expanded = [_expand(example, dataset, image_token_id) for example in group.examples]
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
    return _Laid(
        ids=np.concatenate([expanded[0].ids[:prefix], *tails]),
        positions=np.concatenate(
            [np.arange(prefix), *(np.arange(prefix, prefix + len(tail)) for tail in tails)]
        ),
        longest=max(len(one.ids) for one in expanded),
        branch_starts=tuple(int(start) for start in starts),
        predictors=np.concatenate(predictors),
        targets=np.concatenate(targets),
        weights=np.concatenate(weights),
        images=_images_of(group, prefix, dataset),
    )


def _expand(example: int, dataset: Dataset, image_token_id: int) -> Expanded:
    tokens = [dataset.images[number].tokens for number in dataset.image_numbers(example)]
    return dataset.examples[example].expand(tokens, image_token_id)


def _images_of(group: Group, prefix: int, dataset: Dataset) -> tuple[int, ...]:
    """Name the pictures in the order in which the group's row shows them."""
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
            reached += dataset.images[image].tokens
    return tuple(shown)
