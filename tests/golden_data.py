"""Reads the reference model's numbers; `golden/README.md` says how they were made."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from foveal.models.family import LoadedModel
from foveal.models.phi3_vision import Phi3VisionForConditionalGeneration
from foveal.models.phi3_vision.image import cut_crops, global_view, normalize
from foveal.models.phi3_vision.read_images import CropReader
from foveal.models.phi3_vision.seam import FAMILY
from foveal.models.shared_rows import choose_attention

GOLDEN = Path(__file__).parent / "golden"


def read_json(name: str) -> Any:
    return json.loads((GOLDEN / name).read_text())


def expand(rows: list[list[list[int]]]) -> torch.Tensor:
    return torch.tensor([[v for value, count in row for v in [value] * count] for row in rows])


def synthetic_image(width: int, height: int, seed: int) -> Image.Image:
    x = np.arange(width, dtype=np.int64)[None, :]
    y = np.arange(height, dtype=np.int64)[:, None]
    red = (7 * x + 3 * y + 11 * seed) % 256
    green = (x * y // 16 + 5 * x + 13 * seed) % 256
    blue = ((x ^ y) * 5 + x * x // 64 + 29 * seed) % 256
    colours = np.stack(np.broadcast_arrays(red, green, blue), -1)
    return Image.fromarray(colours.astype(np.uint8))


def formula_pixels(images: int, crops: int, seed: int) -> torch.Tensor:
    count = images * crops * 3 * 336 * 336
    steps = np.arange(count, dtype=np.float64) * 0.6180339887498949 + 0.1 * seed
    values = 2 * (steps - np.floor(steps)) - 1
    return torch.from_numpy(values.astype(np.float32).reshape(images, crops, 3, 336, 336))


def processed_pixels(image: Image.Image, num_crops: int, size: tuple[int, int]) -> torch.Tensor:
    from foveal.models.phi3_vision.image import CLIP_MEAN, CLIP_STD

    own = normalize(cut_crops(image, num_crops), CLIP_MEAN, CLIP_STD)
    return torch.cat([global_view(own, size[0] // 336, size[1] // 336), own])


@dataclass(frozen=True)
class Case:
    """One forward pass of the reference model."""

    folder: str
    name: str
    facts: dict[str, Any]
    inputs: dict[str, torch.Tensor]

    @property
    def labels(self) -> torch.Tensor:
        return expand(self.facts["labels_rle"])

    def tensor(self, name: str) -> torch.Tensor:
        return tensors(self.folder)[f"{self.name}.{name}"]

    def has(self, name: str) -> bool:
        return f"{self.name}.{name}" in tensors(self.folder)


@cache
def tensors(folder: str) -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / folder / "tensors.safetensors")


@cache
def case(folder: str, name: str) -> Case:
    facts = read_json(f"{folder}/cases.json")["cases"][name]
    inputs = {"input_ids": expand(facts["input_ids_rle"])}
    if "attention_mask_rle" in facts:
        inputs["attention_mask"] = expand(facts["attention_mask_rle"])
    if sizes := facts.get("image_sizes"):
        inputs["image_sizes"] = torch.tensor(sizes)
        inputs["pixel_values"] = pixels(facts, sizes)
    return Case(folder, name, facts, inputs)


def pixels(facts: dict[str, Any], sizes: list[list[int]]) -> torch.Tensor:
    if "pixel_seed" in facts:
        padded = formula_pixels(*facts["pixel_values_shape"][:2], facts["pixel_seed"])
        pairs = zip(padded, sizes, strict=True)
        return torch.cat([one[: 1 + (h // 336) * (w // 336)] for one, (h, w) in pairs])
    made = [synthetic_image(i["width"], i["height"], i["s"]) for i in facts["images"]]
    pairs = zip(made, sizes, strict=True)
    return torch.cat([processed_pixels(image, facts["num_crops"], size) for image, size in pairs])


def load_model(
    folder: str, attention: str | dict[str, str] = "sdpa"
) -> Phi3VisionForConditionalGeneration:
    model = Phi3VisionForConditionalGeneration.from_pretrained(
        GOLDEN / folder,
        vision_config=read_json(f"{folder}/vision_config.json"),
        dtype=torch.float32,
        attn_implementation=attention,
    )
    return model.eval()


class ReferenceReader(CropReader):
    """Reads ids as they are: the reference's prompts are written out already."""

    image_token_id, end_ids = 0, ()

    def __init__(self, config: Any) -> None:
        self.image_token_id = config.image_token_id
        self.long_context_tokens = config.original_max_position_embeddings


def load_reference(folder: str) -> LoadedModel:
    """The reference model as the house runs it."""
    model = load_model(folder, choose_attention("blocks"))
    return LoadedModel(model, ReferenceReader(model.config), FAMILY)
