"""Row -> Batch: ids, positions, who branches from whom, crops, and what is to be predicted."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveal.data.archives import fetch_side_by_side
from foveal.data.dataset import Dataset, ImageFact
from foveal.data.encode import Expanded, TurnProcessor
from foveal.data.layout import GroupSpan
from foveal.data.media import open_image
from foveal.data.objects import called
from foveal.data.rows import Group, Row
from foveal.data.shapes import ImageShape, pixels_of, shape_of
from foveal.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class ForwardInputs:
    """What a model reads in one forward pass."""

    input_ids: Tensor
    """(1, length), int64."""

    positions: Tensor
    """(axes, 1, length), int64; where each token stands in its own example. Where a model treats
    long examples differently, a last axis says whether the token's example is one."""

    pixels: Mapping[str, Tensor]
    """Of each distinct image, as the model's tower takes them; empty: none."""

    image_features: tuple[int, ...]
    """Features of each distinct image."""

    image_indices: tuple[int, ...]
    """Which distinct image stands at each place for one, in the order of the text."""


@dataclass(frozen=True)
class LeftOut:
    """An example that is not in its row, since a picture of it cannot be used."""

    example_id: str
    reason: str


@dataclass(frozen=True)
class Pairs:
    """Which answers of a row are compared; answers are counted in the order of its targets."""

    lengths: tuple[int, ...]
    """Targets of each answer."""

    chosen: Tensor
    """(pairs,), int64; the better answer of each pair."""

    rejected: Tensor
    """(pairs,), int64; the worse one."""

    reference: Tensor
    """(answers,), float32; log-probability of each answer before the run, nats; NaN: not known."""

    examples: tuple[int, ...]
    """Number of each answer in the data set."""

    def with_each(self, change: Callable[[Tensor], Tensor]) -> "Pairs":
        """Change every tensor."""
        return replace(
            self,
            chosen=change(self.chosen),
            rejected=change(self.rejected),
            reference=change(self.reference),
        )


@dataclass(frozen=True)
class Batch(ForwardInputs):
    """One forward pass: several groups side by side in one row, no padding."""

    groups: tuple[GroupSpan, ...]

    predictors: Tensor
    """(targets,), int64; place in the row whose hidden state predicts the target."""

    targets: Tensor
    """(targets,), int64; token ids."""

    weights: Tensor
    """(targets,), float32; what each target counts for in the loss."""

    example_ids: tuple[str, ...]
    """Of what a step counts: of several answers to one prompt, once."""

    tokens: int
    """Tokens that the examples have, shared ones counted once for each."""

    left_out: tuple[LeftOut, ...] = ()
    pairs: "Pairs | None" = None
    """None: every answer is learnt for itself."""

    plainly: bool = False
    """Whether the model is to read it in its own way, see `models.forward`: of one example."""

    @property
    def count(self) -> float:
        """What the row's share of a loss is divided by: weights of targets, or pairs."""
        return float(self.weights.sum()) if self.pairs is None else float(len(self.pairs.chosen))

    @property
    def reads(self) -> int:
        """Times that a decoder runs which reads prefixes, and then what branches off them."""
        return sum(2 if group.branch_starts else 1 for group in self.groups)

    def with_idle_reads(self, count: int) -> "Batch":
        """Add tokens that stand alone and predict nothing, each of them read by itself."""
        length = self.input_ids.shape[1]
        idle = tuple(GroupSpan(at, (), at + 1) for at in range(length, length + count))
        behind = (0, 0) * (self.positions.dim() - 3) + (0, count)
        ids = torch.nn.functional.pad(self.input_ids, (0, count))
        positions = torch.nn.functional.pad(self.positions, behind)
        return replace(self, input_ids=ids, positions=positions, groups=self.groups + idle)

    @property
    def answer_starts(self) -> tuple[int | None, ...]:
        """Of each example of a row that shares nothing, where its answer begins; none: it has none.

        Counted from the example's own start.
        """
        predictors = self.predictors.tolist()
        starts = (
            [one for one in predictors if group.start <= one < group.end] for group in self.groups
        )
        return tuple(
            own[0] + 1 - group.start if own else None
            for own, group in zip(starts, self.groups, strict=True)
        )

    def to(self, device: torch.device) -> "Batch":
        """Copy to a device."""
        return self._with_each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """Copy to memory that a GPU reads by itself; torch's loader looks for this name."""
        return self._with_each(Tensor.pin_memory)

    def _with_each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        changed: dict[str, Any] = {
            name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        pixels = {name: change(value) for name, value in self.pixels.items()}
        pairs = self.pairs and self.pairs.with_each(change)
        return replace(self, **changed, pixels=pixels, pairs=pairs)


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
    """Lay a row out and open its pictures, each once.

    An example with a picture that cannot be used is left out and named; nothing takes its place.

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
                if dataset.sizes.is_first(example):  # the others of its set show the same
                    left_out.append(LeftOut(dataset.examples[example].id, reasons[bad[0]]))
            else:
                kept.append(example)
        if kept:
            groups.append(Group(tuple(kept), group.prefix_tokens))
    return Row(tuple(groups)), tuple(left_out)


def _tensor(pieces: list[NDArray[np.int64]] | list[NDArray[np.float32]]) -> Tensor:
    return torch.from_numpy(np.concatenate(pieces, axis=-1))


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
            reached += dataset.images[image].shape.tokens
    return tuple(shown)
