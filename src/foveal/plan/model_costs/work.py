"""A hollow model + a few small rows -> what any row keeps and multiplies, part by part.

A pass is linear in what is in its row (tokens, crops, cells of masks, ...): the real code runs on a
few small rows, and the coefficients are solved for. Of repeated layers of one kind the first and
the last are run; the others hand on what they are given, and count as the last.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from foveal.data.batch import place_tokens
from foveal.data.forward_inputs import Batch, GroupSpan
from foveal.data.turn_processor import AskedTurn
from foveal.machine import DTYPES
from foveal.models.family import Family
from foveal.models.forward import hidden_states
from foveal.models.shared_rows import PREFIX
from foveal.plan.epoch import RowCounts, count_groups
from foveal.plan.model_costs.hollow import FUSED, Hollow, Spent
from foveal.plan.model_costs.terms import PartCosts, PassCosts, Terms
from foveal.train.loss import answer_loss
from foveal.train.recompute import Recompute, recompute_blocks

BRANCHED = "branch_tokens", "branch_cells", "branch_keys", "prefix_squares"
"""What more there is to tell of rows whose groups are read piece by piece."""

SIZES = (96, 80), (200, 100), (420, 100), (400, 300), (640, 480)
"""Of images of the rows, pixels; some of them."""


@dataclass(frozen=True)
class Ask:
    """How the passes run that are asked about."""

    precision: Literal["float32", "bf16", "fp16"]
    attention: str
    recompute: Recompute


def ask_model(
    model: Any, family: Family, processor: Any, mode: Hollow, ask: Ask, goes_back: bool = True
) -> PassCosts:
    """Run a few small rows and solve for what any row costs.

    Args:
        model: hollow in `mode`, its rules assigned.
        family: of it.
        processor: of it.
        mode: that follows its passes.
        ask: how they run.
        goes_back: run them back as well.
    """
    _set_up(model, family, ask)
    watch = Watch(model, family, mode, DTYPES[ask.precision])
    rows = _rows(family, ask.attention, _choose_sizes(processor))
    made = [_make_row(processor, mode, *one) for one in rows]
    first, counts = made[0][0], [count for _, count in made]
    with watch.hooks():
        if ask.recompute == "light":  # decides by what it saw of a pass before
            watch.run(first, goes_back)
        spent = [watch.run(batch, goes_back) for batch, _ in made]
    solve = partial(_solve_part, counts, spent, watch)
    head: Any = family.head(model)
    square = ("token_squares",) if ask.attention in ("sdpa", "eager") else ()
    branched = any(one.branch_tokens for one in counts)
    branches = BRANCHED if branched else ()
    return PassCosts(
        vision=solve("vision", ("one", "image_tokens", "crops", "crop_pairs")),
        language=solve("language", ("one", "tokens", "image_tokens", *square, *branches)),
        head=solve("head", ("one", "targets")),
        head_sides=(int(head.weight.shape[1]), int(head.weight.shape[0])),
        pixels_of_crop=sum(one.numel() for one in first.pixels.values()) / counts[0].crops,
    )


def _set_up(model: Any, family: Family, ask: Ask) -> None:
    """Let passes run as they are asked about."""
    form = FUSED if ask.attention in ("flex", "flash_attention_2") else PREFIX + ask.attention
    text = model.config.get_text_config()
    text._attn_implementation = form
    for name in model.config.sub_configs if ask.attention == "eager" else ():
        if getattr(model.config, name) is not text:
            getattr(model.config, name)._attn_implementation = "eager"
    for module in model.modules():
        if vars(module).get("gradient_checkpointing"):
            module.gradient_checkpointing = False
    if ask.recompute != "none":
        recompute_blocks(model, family, ask.recompute)


# -- rows ----------------------------------------------------------------------------------------


def _rows(
    family: Family, attention: str, sizes: Sequence[tuple[int, int]]
) -> list[tuple[Any, ...]]:
    """Name rows by the sizes of their images, their words, their branches and targets."""
    first, other, large = sizes
    plain = [
        ((first,), 9, (), 3),
        ((other,), 47, (), 7),
        ((first, first), 19, (), 3),
        ((large,), 29, (), 3),
    ]
    if attention in ("sdpa", "eager"):
        return [*plain, ((first,), 71, (), 3)]
    if attention != "blocks" or family.route != "rows":
        return plain
    return [*plain, *(((first,), *one, 3) for one in ((9, (7, 11)), (13, (19,)), (5, (5, 23))))]


def _choose_sizes(processor: Any) -> list[tuple[int, int]]:
    """Choose three sizes of images, of as many different numbers of crops as they can have."""
    found = {processor.shape(*size).crops: size for size in reversed(SIZES)}
    chosen = [size for _, size in sorted(found.items())]
    return [*chosen, *(size for size in SIZES if size not in chosen)][:3]


def _make_row(
    processor: Any,
    mode: Hollow,
    sizes: Sequence[tuple[int, int]],
    words: int,
    branches: Sequence[int],
    targets: int,
) -> tuple[Batch, RowCounts]:
    """Build a row of one group whose images show nothing, and count what is in it."""
    word = next(one for one in processor.encode_turns([AskedTurn("a", 0, "b")]).entries if one > 0)
    shapes = [processor.shape(*size) for size in sizes]
    ids = [word]
    for shape in shapes:
        ids += [token for token, count in shape.runs for _ in range(count)] + [word]
    ids += [word] * words
    prefix, longest = len(ids), max(branches, default=0)
    placed = place_tokens(processor, np.array(ids + [word] * longest), shapes, False)
    behind = [placed[:, prefix : prefix + size] for size in branches]
    starts = [prefix + sum(branches[:place]) for place in range(len(branches))]
    end = prefix + sum(branches)
    pixels = processor.stack([processor.pixels(Image.new("RGB", one)) for one in sizes], shapes)
    batch = Batch(
        input_ids=torch.tensor([ids + [word] * sum(branches)]),
        positions=torch.from_numpy(np.concatenate([placed[:, :prefix], *behind], axis=1))[:, None],
        pixels={name: mode.hollowed(one) for name, one in pixels.items()},
        image_features=tuple(shape.features for shape in shapes),
        image_indices=tuple(range(len(shapes))),
        groups=(GroupSpan(0, tuple(starts), end),),
        predictors=torch.arange(end - targets, end),
        targets=torch.full((targets,), word),
        weights=torch.ones(targets),
        example_ids=(),
        tokens=end,
    )
    counts = count_groups(
        [(prefix, branches)],
        np.array([shape.tokens for shape in shapes]),
        np.array([shape.crops for shape in shapes]),
        examples=max(1, len(branches)),
        targets=targets,
    )
    return batch, counts


# -- passes --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """Repeated layers that are alike."""

    part: str
    first: str
    """Name of the first of them."""

    last: str
    count: int


class Watch:
    """Runs rows through a hollow model, and tells part from part and layer from layer."""

    def __init__(self, model: Any, family: Family, mode: Hollow, dtype: torch.dtype) -> None:
        self.model = model.train()
        self.mode = mode
        self.dtype = dtype
        self.family = copy(family)
        self.family.encode_images = self._encode_images  # type: ignore[method-assign]
        self._encode = family.encode_images
        names = {id(module): name for name, module in model.named_modules()}
        blocks = {names[id(one)]: one for one in family.blocks(model)}
        alike: dict[Any, list[str]] = {}
        for name, block in blocks.items():
            weights = (f"{name}.{one}" for one, _ in block.named_parameters())
            if not all(family.is_unused(model, one) for one in weights):
                part = "language" if family.part_name(name).startswith("language") else "vision"
                alike.setdefault((part, *_signature(block)), []).append(name)
        self.kinds = [Kind(key[0], one[0], one[-1], len(one)) for key, one in alike.items()]
        run = {name for kind in self.kinds for name in (kind.first, kind.last)}
        self._watched = {name: blocks[name] for name in run}
        self._passed = [block for name, block in blocks.items() if name not in run]
        mode.gradients = {tuple(one.shape) for one in model.parameters() if one.requires_grad}

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Watch the first and the last layer of each kind, and pass the others by."""
        handles = []
        for block in self._passed:
            block.forward = _hand_on
        for name, block in self._watched.items():
            before = partial(self._begin_block, name)
            handles.append(block.register_forward_pre_hook(before, with_kwargs=True))
            after = partial(self._end_block, name)
            handles.append(block.register_forward_hook(after, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for block in self._passed:
                del block.forward

    def run(self, batch: Batch, goes_back: bool = True) -> dict[str, Spent]:
        """Run a row; returns what each layer and each part's rest have spent."""
        mode = self.mode
        mode.begin("language")
        with mode, torch.autocast("cpu", torch.bfloat16, enabled=self.dtype != torch.float32):
            hidden = hidden_states(self.model, self.family, batch, groups=batch.groups)
            self._comes_back(hidden, "language")
            mode.owner = "head"
            head = self.family.head(self.model)
            total = answer_loss(hidden[batch.predictors], head, batch.targets, batch.weights)
        del hidden
        mode.turn()
        if goes_back and total.requires_grad:
            with mode:
                total.backward()
        mode.end_work()
        for one in self.model.parameters():
            one.grad = None
        return dict(mode.spent)

    def _encode_images(self, model: Any, pixels: Any) -> Any:
        with self.mode.owned_by("vision"):
            made = self._encode(model, pixels)
        pooled = made.pooler_output
        for one in [pooled] if isinstance(pooled, Tensor) else pooled:
            self._comes_back(one, "vision")
        return made

    def _begin_block(self, name: str, block: nn.Module, inputs: Any, named: Any) -> None:
        self._outside = self.mode.owner
        self.mode.owner = name
        self.mode.begin_work()

    def _end_block(self, name: str, block: nn.Module, inputs: Any, named: Any, made: Any) -> None:
        self.mode.end_work()
        outside = self.mode.owner = self._outside
        self._comes_back(made if isinstance(made, Tensor) else made[0], name)
        given = inputs[0] if inputs else named["hidden_states"]
        if given.requires_grad:
            given.register_hook(lambda _: self._leave(name, outside))

    def _comes_back(self, made: Tensor, owner: str) -> None:
        """Let the backward pass from a tensor on be somebody's."""
        if made.requires_grad:
            made.register_hook(lambda _: self._enter(owner))

    def _enter(self, owner: str) -> None:
        self.mode.end_work()
        self.mode.owner = owner
        self.mode.begin_work()

    def _leave(self, name: str, outside: str) -> None:
        if self.mode.owner == name:
            self._enter(outside)


def _hand_on(hidden_states: Tensor, *_inputs: Any, **_named: Any) -> Tensor:
    return hidden_states


def _signature(block: nn.Module) -> tuple[Any, ...]:
    """Say what two layers that cost the same have in common."""
    said = [
        str(vars(module)[name])
        for module in block.modules()
        for name in ("sliding_window", "attention_type", "layer_type")
        if name in vars(module)
    ]
    weights = [
        (name, one.shape, one.dtype, one.requires_grad) for name, one in block.named_parameters()
    ]
    return type(block), tuple(said), tuple(weights)


# -- solving -------------------------------------------------------------------------------------


def _solve_part(
    counts: Sequence[RowCounts],
    spent: Sequence[dict[str, Spent]],
    watch: Watch,
    part: str,
    names: Sequence[str],
) -> PartCosts:
    kinds = [kind for kind in watch.kinds if kind.part == part]

    def added(name: str) -> list[float]:
        """Add the part's own, and all its layers, of each row."""
        return [
            getattr(one[part], name)
            + sum(
                getattr(one[kind.first], name) + (kind.count - 1) * getattr(one[kind.last], name)
                for kind in kinds
            )
            for one in spent
        ]

    def largest(name: str) -> list[float]:
        return [max((getattr(one[kind.last], name) for kind in kinds), default=0) for one in spent]

    def solve(values: Sequence[float]) -> Terms:
        return _solve(counts, values, names)

    fused = part == "language"
    attention = [0.0] * len(spent) if fused else added("attention")
    pairs = 0.0
    if fused:
        last = spent[0]
        pairs = sum(
            last[kind.first].attention_of_pair
            + (kind.count - 1) * last[kind.last].attention_of_pair
            for kind in kinds
        )
    return PartCosts(
        saved_bytes=solve(added("saved_bytes")),
        operations=solve([sum(pair) for pair in zip(added("operations"), attention, strict=True)]),
        attention_of_pair=pairs,
        forward_work_bytes=solve(largest("forward_work_bytes")),
        backward_work_bytes=solve(largest("backward_work_bytes")),
    )


def _solve(counts: Sequence[RowCounts], values: Sequence[float], names: Sequence[str]) -> Terms:
    """Solve for the coefficients; the smallest where several explain the rows."""
    table = np.array([[getattr(row, name) for name in names] for row in counts])
    scale = np.maximum(np.abs(table).max(axis=0), 1.0)
    found = np.linalg.lstsq(table / scale, np.array(values, np.float64), rcond=1e-12)[0] / scale
    return Terms(dict(zip(names, found.tolist(), strict=True)))
