"""What an image costs with the published settings of each family, counted by its own processor.

The settings are those of the checkpoint's files where they differ from transformers' own for the
type; the words around come from a tiny tokenizer, since the tags of an image are tokens in both.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tiny_models import FAMILIES, image_processor

from foveal.models.hub.hub_family import config_of, model_class_of
from foveal.models.hub.hub_processor import load_hub_processor
from foveal.models.hub.hub_reader import HubReader
from foveal.models.phi3_vision.image import crop_grid
from foveal.models.phi3_vision.processor import Phi3VisionImageProcessor

SIZES = {
    "letter page, 150 dpi": (1275, 1650),
    "photo": (1024, 768),
    "portrait": (768, 1024),
    "screen": (1920, 1080),
    "panorama": (2048, 512),
    "small": (224, 224),
    "icon": (64, 64),
}
"""Width and height in pixels."""

CLIP_336 = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
QWEN_14 = {"patch_size": 14, "size": {"shortest_edge": 3136, "longest_edge": 12845056}}
QWEN_16 = {"patch_size": 16, "size": {"shortest_edge": 65536, "longest_edge": 16777216}}
TILES_448 = {"size": {"height": 448, "width": 448}, "min_patches": 1, "max_patches": 12}

PUBLISHED: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "gemma3": (
        "google/gemma-3-4b-it",
        "Gemma3ImageProcessor",
        {"size": {"height": 896, "width": 896}},
        {"image_seq_length": 256},
    ),
    "gemma4": ("google/gemma-4-E4B-it", "Gemma4ImageProcessor", {}, {}),
    "idefics3": (
        "HuggingFaceM4/Idefics3-8B-Llama3",
        "Idefics3ImageProcessor",
        {},
        {"image_seq_len": 169},
    ),
    "internvl": (
        "OpenGVLab/InternVL3-8B-hf",
        "GotOcr2ImageProcessor",
        {**TILES_448, "crop_to_patches": True},
        {"image_seq_length": 256},
    ),
    "llava": ("llava-hf/llava-1.5-7b-hf", "CLIPImageProcessor", CLIP_336, {"patch_size": 14}),
    "llava_next": (
        "llava-hf/llava-v1.6-mistral-7b-hf",
        "LlavaNextImageProcessor",
        CLIP_336,
        {"patch_size": 14},
    ),
    "phi3_v": ("microsoft/Phi-3.5-vision-instruct, data.num_crops 16", "", {}, {}),
    "qwen2_5_vl": ("Qwen/Qwen2.5-VL-7B-Instruct", "Qwen2VLImageProcessor", QWEN_14, {}),
    "qwen3_5": ("Qwen/Qwen3.5-27B", "Qwen2VLImageProcessor", QWEN_16, {}),
    "qwen3_vl": ("Qwen/Qwen3-VL-8B-Instruct", "Qwen2VLImageProcessor", QWEN_16, {}),
    "smolvlm": (
        "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
        "SmolVLMImageProcessor",
        {"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}},
        {"image_seq_len": 64},
    ),
}
"""Type -> checkpoint, image processor, its settings, those of the processor around it."""


def published_reader(model_type: str, folder: Path) -> HubReader:
    """Build what reads images as the published checkpoint does; no weights are needed."""
    _, images, of_images, of_processor = PUBLISHED[model_type]
    return _reader(model_type, folder, image_processor(images, **of_images), of_processor)


def tiny_reader(model_type: str, folder: Path) -> HubReader:
    """Build what reads images as the tiny model of a type does; no weights are needed."""
    return _reader(model_type, folder, None, {})


def _reader(model_type: str, folder: Path, images: Any, changes: dict[str, Any]) -> HubReader:
    config, tokenizer, own, settings = FAMILIES[model_type]()
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (images or own).save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps({**settings, **changes}))
    made = config_of(str(folder))
    own = load_hub_processor(str(folder))
    return HubReader(str(folder), own, made, model_class_of(str(folder), made))


def cost_of(reader: HubReader, size: tuple[int, int]) -> list[int]:
    """Count tokens of an image, and crops or patches that the tower reads."""
    shape = reader.shape(*size)
    return [shape.tokens, shape.crops]


def phi_cost(num_crops: int, size: tuple[int, int]) -> list[int]:
    """Count the same for Phi-3.5-vision, whose dial is its number of crops."""
    grid = crop_grid(*size, num_crops)
    return [Phi3VisionImageProcessor(num_crops).num_tokens(*size), grid.rows * grid.columns + 1]


def costs_of(model_type: str, folder: Path, sizes: Iterable[str] = SIZES) -> list[list[int]]:
    """Count for images of several sizes."""
    if model_type == "phi3_v":
        return [phi_cost(16, SIZES[size]) for size in sizes]
    reader = published_reader(model_type, folder)
    return [cost_of(reader, SIZES[size]) for size in sizes]
