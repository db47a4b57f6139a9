"""Case -> a model and the optimizer step that is measured, our way or the published recipe's.

The recipe's way is written as the recipe and the published modelling code have it, on transformers'
own `Phi3Model` and `CLIPVisionModel`: one example a forward pass, one question a sequence, crops
padded with zeros to `num_crops` + 1 with the global view first, every tower layer run though the
last is not read, eager attention unless told otherwise, logits in float32 at every position, every
block recomputed in the backward pass.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, nn
from transformers.models.phi3.modeling_phi3 import Phi3Model

from foveal.config import LoraSettings, TrainSettings
from foveal.data.batch import build_batch
from foveal.data.dataset import Dataset
from foveal.data.encode import IGNORED
from foveal.data.forward_inputs import Batch
from foveal.data.images.media import open_image
from foveal.data.rows import RowPlanner
from foveal.machine import Precision
from foveal.models.family import LoadedModel
from foveal.models.phi3_vision.image import CLIP_MEAN, CLIP_STD, CropGrid, crop_grid
from foveal.models.phi3_vision.model import Phi3VisionForConditionalGeneration, Phi3VisionModel
from foveal.models.phi3_vision.read_images import CropReader
from foveal.models.phi3_vision.seam import FAMILY
from foveal.models.shared_rows import choose_attention
from foveal.plan.epoch import count_row
from foveal.plan.model_costs.asked import AskedModel, asked_before
from foveal.plan.model_costs.terms import PassCosts
from foveal.plan.model_costs.work import Ask
from foveal.train.engines.one_process import Engine
from foveal.train.learner import make_learner
from foveal.train.recompute import Recompute
from foveal.train.step import train_step
from foveal_bench.operations import useful_operations
from foveal_bench.random_page import (
    NUM_CROPS,
    BenchSize,
    LetterProcessor,
    find_size,
    make_config,
    make_model,
    make_random_page,
)

Way = Literal["recipe", "separate", "shared", "light", "recompute"]
RECOMPUTE: dict[Way, Recompute] = {"light": "light", "recompute": "blocks"}
"""Way -> what it makes again in the backward pass; the others make nothing again."""

SETTINGS = TrainSettings()
LORA = LoraSettings()

FEATURE_LAYER = -2
"""Hidden states of the tower that are read; the layer behind them is run for nothing."""


@dataclass(frozen=True)
class Case:
    """One thing to measure."""

    size: str
    strategy: str
    questions: int
    """Of the one page; an optimizer step is taken over all of them."""

    way: Way
    """`recipe`; ours with a page for each question; with all questions behind one page; the same
    with what is cheap made again in the backward pass; with whole blocks run again."""

    precision: Precision = "float32"
    attention: str = "auto"
    """As in a recipe of ours; `auto` of the recipe's way is eager."""

    optimizer: str = "adamw"


class Contender:
    """One way of one case, ready to take steps."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case = case
        size = find_size(case.size)
        processor = LetterProcessor(size)
        dataset = make_random_page(size, case.questions, folder)
        plan = RowPlanner(
            dataset.sizes,
            examples_per_step=case.questions,
            tokens_per_pass=size.tokens_per_pass,
            share_images=case.way not in ("recipe", "separate"),
        )
        planned = plan.step(0).ranks[0]
        rows = [build_batch(row, dataset, processor) for row in planned]
        self.counts = tuple(
            count_row(row, dataset.sizes, dataset.examples.targets) for row in planned
        )
        """What is in each of our rows, as a plan counts it."""
        attention = "eager" if case.attention == "auto" else case.attention
        self.model = make_model(size)
        self.model.set_attn_implementation(choose_attention(case.attention))
        self.engine = Engine(case.precision)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # adapters begin at random
            learner = make_learner(
                self.engine,
                LoadedModel(self.model, processor, FAMILY),
                case.strategy,
                SETTINGS.model_copy(update={"optimizer": case.optimizer}),
                LORA,
                RECOMPUTE.get(case.way, "none"),
                partial(RecipeWay, attention=attention) if case.way == "recipe" else None,
            )
        self.optimizer = learner.optimizer
        self.way = learner.loss.train()
        _make_state(self.optimizer)
        self.tokens = sum(row.tokens for row in rows)
        """Of the examples, shared ones counted once for each."""
        self.rows: Sequence[Batch] | None = None if case.way == "recipe" else rows
        self.inputs: Sequence[RecipeInputs] = (
            [
                recipe_inputs(dataset, example, processor).to(self.engine.device)
                for example in range(case.questions)
            ]
            if case.way == "recipe"
            else []
        )

    @cached_property
    def operations(self) -> float:
        """Useful ones of a step: nothing twice, and of attention the pairs that see each other."""
        costs = costs_of(find_size(self.case.size), self.case.strategy)
        return sum(useful_operations(costs, row).total for row in self.counts)

    def step(self) -> float:
        """Take an optimizer step; returns the mean loss before it."""
        if self.rows is None:
            loss = recipe_step(
                self.engine,
                self.way,
                self.optimizer,
                self.inputs,
                len(self.inputs),
                SETTINGS.gradient_clip,
            )
        else:
            loss = train_step(
                self.engine, self.way, self.optimizer, self.rows, SETTINGS.gradient_clip
            ).loss
        if self.engine.device.type != "cpu":
            torch.accelerator.synchronize()
        return loss


def costs_of(size: BenchSize, strategy: str, goes_back: bool = True) -> PassCosts:
    """Ask a model of a size what its own code multiplies in a pass, or in its forward half."""
    processor = LetterProcessor(size)
    model = AskedModel(make_config(size), FAMILY, processor, strategy, LORA, goes_back=goes_back)
    return asked_before(model).costs(Ask("float32", "flex", "none"))


def _make_state(optimizer: torch.optim.Optimizer) -> None:
    """Let the optimizer make its state before anything is measured; no weight moves."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


# -- the recipe's way ------------------------------------------------------------------------------


@dataclass(frozen=True)
class RecipeInputs:
    """One example, as the published processor hands it over."""

    input_ids: Tensor
    """(1, length), int64."""

    labels: Tensor
    """(1, length), int64; IGNORED but on the answer."""

    pixel_values: Tensor
    """(images, num_crops + 1, 3, size, size), float32, normalised; global views first."""

    image_sizes: Tensor
    """(images, 2), int64; height and width after the HD transform, pixels."""

    def to(self, device: torch.device) -> "RecipeInputs":
        """Copy to a device."""
        return RecipeInputs(*(tensor.to(device) for tensor in vars(self).values()))


def recipe_inputs(dataset: Dataset, example: int, processor: CropReader) -> RecipeInputs:
    """Prepare one example; an image is opened and cut for each example that shows it."""
    facts = [dataset.images[number] for number in dataset.image_numbers(example)]
    expanded = dataset.examples[example].expand([fact.shape for fact in facts])
    size, most = processor.crop_size, processor.num_crops
    ids, learnt = torch.from_numpy(expanded.ids), torch.from_numpy(expanded.learnt)
    return RecipeInputs(
        ids[None],
        ids.masked_fill(~learnt, IGNORED)[None],
        torch.stack([recipe_pixels(open_image(fact.path), size, most) for fact in facts]),
        torch.tensor([fact.shape.grid for fact in facts]) * size,
    )


def recipe_pixels(image: Image.Image, crop_size: int, num_crops: int = NUM_CROPS) -> Tensor:
    """Cut an image as the published processor does: in floats, padded to the most crops.

    Returns:
        (num_crops + 1, 3, size, size), float32, normalised; the global view first, zeros last.
    """
    grid = crop_grid(image.width, image.height, num_crops, crop_size)
    fitted = np.array(_fit_lying(image, grid))
    pixels = torch.from_numpy(fitted).permute(2, 0, 1).contiguous()
    mean, deviation = (torch.tensor(of)[:, None, None] for of in (CLIP_MEAN, CLIP_STD))
    pixels = (pixels.to(torch.float32).div(255) - mean) / deviation
    overview = F.interpolate(pixels[None].float(), size=(crop_size, crop_size), mode="bicubic")
    crops = pixels.reshape(3, grid.rows, crop_size, grid.columns, crop_size)
    crops = crops.permute(1, 3, 0, 2, 4).reshape(-1, 3, crop_size, crop_size)
    whole = torch.cat([overview, crops])
    return torch.cat([whole, torch.zeros(num_crops + 1 - len(whole), 3, crop_size, crop_size)])


def _fit_lying(image: Image.Image, grid: CropGrid) -> Image.Image:
    """Resize and pad with white; a tall image is turned on its side first, and back."""
    tall = image.width < image.height
    long, short = sorted(grid.resized, reverse=True)
    if tall:
        image = image.transpose(Image.Transpose.TRANSPOSE)
    image = image.resize((long, short), Image.Resampling.BILINEAR)
    missing = min(grid.width, grid.height) - short
    border = (0, missing // 2, 0, missing - missing // 2)
    image = ImageOps.expand(image, border, fill=(255, 255, 255))
    return image.transpose(Image.Transpose.TRANSPOSE) if tall else image


class RecipeWay(nn.Module):
    """The recipe's model: our weights, its walk."""

    def __init__(self, model: Phi3VisionForConditionalGeneration, attention: str = "eager") -> None:
        """Take a model over, with whatever adapters and frozen parts it has.

        Args:
            model: ours.
            attention: "eager", the recipe's default, or "sdpa", what its flash attention comes to.
        """
        super().__init__()
        self.model = model
        self.model.set_attn_implementation({"": attention, "vision_config": attention})
        self.image_token_id = int(model.config.image_token_id)
        self.decoder = _borrowed_decoder(model.model)
        self.model.activation_checkpointing_enable({"use_reentrant": False})

    def forward(self, inputs: RecipeInputs) -> Tensor:
        """Mean cross-entropy of the answer, (), float32, nats."""
        ids = inputs.input_ids
        is_image = ids == self.image_token_id
        embeddings = self.model.model.embed_tokens(ids.masked_fill(is_image, 0))
        positions = torch.nonzero(is_image, as_tuple=True)
        images = self._image_embeddings(inputs.pixel_values, inputs.image_sizes)
        embeddings = embeddings.index_put(positions, images.to(embeddings.dtype))
        hidden = self.decoder(
            inputs_embeds=embeddings, attention_mask=torch.ones_like(ids), use_cache=False
        ).last_hidden_state
        logits = self.model.lm_head(hidden).float()
        predicted = logits[..., :-1, :].contiguous().view(-1, logits.shape[-1])
        return F.cross_entropy(predicted, inputs.labels[..., 1:].reshape(-1), ignore_index=IGNORED)

    def _image_embeddings(self, pixel_values: Tensor, image_sizes: Tensor) -> Tensor:
        """Encode all crops, padding too, then arrange image by image; (tokens, hidden)."""
        images, padded = pixel_values.shape[:2]
        vision = self.model.model.vision_embed_tokens
        tower = vision.img_processor.vision_model
        states = tower(pixel_values.flatten(0, 1), output_hidden_states=True).hidden_states
        features = states[FEATURE_LAYER][:, 1:].unflatten(0, (images, padded))
        side = pixel_values.shape[-1]
        arranged = []
        for image, (height, width) in zip(features, image_sizes.tolist(), strict=True):
            rows, columns = height // side, width // side
            overview = self._lines(self._merge(image[:1], 1, 1))
            own = self._lines(self._merge(image[1 : 1 + rows * columns], rows, columns))
            arranged += [own, vision.glb_GN[0], overview]
        embeddings: Tensor = vision.img_projection(torch.cat(arranged))
        return embeddings

    def _merge(self, crops: Tensor, rows: int, columns: int) -> Tensor:
        """Join 2 x 2 patches and lay crops out: (lines, merged patches a line, 4 width)."""
        count, patches, width = crops.shape
        side = int(patches**0.5)
        merged = (
            crops.reshape(count, side, side, width)
            .reshape(count, side // 2, 2, side // 2, 2, width)
            .permute(0, 1, 3, 2, 4, 5)
            .reshape(count, side // 2, side // 2, 4 * width)
        )
        return (
            merged.reshape(rows, columns, side // 2, side // 2, 4 * width)
            .permute(0, 2, 1, 3, 4)
            .reshape(rows * side // 2, columns * side // 2, 4 * width)
        )

    def _lines(self, image: Tensor) -> Tensor:
        """End each line with the separator: (lines * (patches + 1), 4 width)."""
        separator = self.model.model.vision_embed_tokens.sub_GN
        ends = separator[0].expand(len(image), 1, -1)
        return torch.cat([image, ends], dim=1).reshape(-1, image.shape[-1])


def _borrowed_decoder(model: Phi3VisionModel) -> Phi3Model:
    """Make transformers' own decoder, its masks and rotary positions, around our layers."""
    without_layers = copy.deepcopy(model.config)
    without_layers.num_hidden_layers = 0
    decoder = Phi3Model(without_layers)
    decoder.config = model.config
    decoder.embed_tokens, decoder.layers, decoder.norm = (
        model.embed_tokens,
        model.layers,
        model.norm,
    )
    return decoder


def recipe_step(
    engine: Engine,
    way: nn.Module,
    optimizer: torch.optim.Optimizer,
    examples: Iterable[RecipeInputs],
    num_examples: int,
    gradient_clip: float,
) -> float:
    """Take one optimizer step as the recipe does: a pass for each example, gradients added up.

    Returns:
        The mean loss of the examples, before the step.
    """
    total = 0.0
    for example in examples:
        with engine.autocast():
            loss = way(example) / num_examples
        engine.backward(loss)
        total += float(loss.detach())
    engine.clip(optimizer, gradient_clip)
    engine.optimizer_step(optimizer)
    return total
