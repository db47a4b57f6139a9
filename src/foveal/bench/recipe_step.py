"""One of our models -> the published recipe's way through the same weights, to compare with.

Written as the recipe and the published modelling code have it, on transformers' own `Phi3Model` and
`CLIPVisionModel`: one example a forward pass, one question a sequence, crops padded with zeros to
`num_crops` + 1 with the global view first, every tower layer run though the last is not read, eager
attention unless told otherwise, logits in float32 at every position, every block recomputed in the
backward pass.
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, nn
from transformers.models.phi3.modeling_phi3 import Phi3Model

from foveal.bench.random_page import NUM_CROPS
from foveal.data.dataset import Dataset
from foveal.data.encode import IGNORED
from foveal.data.images.media import open_image
from foveal.models.phi3_vision.image import CLIP_MEAN, CLIP_STD, CropGrid, crop_grid
from foveal.models.phi3_vision.model import Phi3VisionForConditionalGeneration, Phi3VisionModel
from foveal.models.phi3_vision.read_images import CropReader

FEATURE_LAYER = -2
"""Hidden states of the tower that are read; the layer behind them is run for nothing."""


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
    """Prepare one example; a picture is opened and cut for each example that shows it."""
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
    """Cut a picture as the published processor does: in floats, padded to the most crops.

    Returns:
        (num_crops + 1, 3, size, size), float32, normalised; the global view first, zeros last.
    """
    grid = crop_grid(image.width, image.height, num_crops, crop_size)
    fitted = np.array(_fit_lying(image, grid))
    picture = torch.from_numpy(fitted).permute(2, 0, 1).contiguous()
    mean, deviation = (torch.tensor(of)[:, None, None] for of in (CLIP_MEAN, CLIP_STD))
    picture = (picture.to(torch.float32).div(255) - mean) / deviation
    overview = F.interpolate(picture[None].float(), size=(crop_size, crop_size), mode="bicubic")
    crops = picture.reshape(3, grid.rows, crop_size, grid.columns, crop_size)
    crops = crops.permute(1, 3, 0, 2, 4).reshape(-1, 3, crop_size, crop_size)
    whole = torch.cat([overview, crops])
    return torch.cat([whole, torch.zeros(num_crops + 1 - len(whole), 3, crop_size, crop_size)])


def _fit_lying(image: Image.Image, grid: CropGrid) -> Image.Image:
    """Resize and pad with white; a tall picture is turned on its side first, and back."""
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

    def _lines(self, picture: Tensor) -> Tensor:
        """End each line with the separator: (lines * (patches + 1), 4 width)."""
        separator = self.model.model.vision_embed_tokens.sub_GN
        ends = separator[0].expand(len(picture), 1, -1)
        return torch.cat([picture, ends], dim=1).reshape(-1, picture.shape[-1])


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
