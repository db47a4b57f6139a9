"""A run or a model -> what is served: the tuned model, and the one before it where that is near."""

from collections.abc import Callable
from pathlib import Path

import torch

from foveal.config import load_recipe
from foveal.deliver.open import ADAPTER_CONFIG, find_image_budget, open_to_answer, read_base_name
from foveal.models.family import LoadedModel
from foveal.models.generation.generator import Limits as DecodingLimits
from foveal.serve.requests.limits import ServerLimits
from foveal.serve.served import Served

FreeMemory = Callable[[torch.device], int]
"""Device -> bytes that it still has."""

BEFORE = "-before"
"""Ends the name of the model that a run started from."""

FREE_SHARE = 0.6
"""Of the free memory, taken for keys and values."""

MOST_CACHE_TOKENS = 2**18


def find_before(place: str) -> str | None:
    """Find the model that a run or an adapter started from, here; nothing is fetched."""
    recipe = Path(place) / "recipe.yaml"
    if recipe.is_file():
        name = load_recipe(recipe).model
    elif (Path(place) / ADAPTER_CONFIG).is_file():
        name = read_base_name(Path(place))
    else:
        return None
    made_for_it = Path(place) / "model"  # a tiny model is made in the run's folder
    for folder in (Path(name), made_for_it):
        if (folder / "config.json").is_file():
            return str(folder)
    from huggingface_hub import snapshot_download

    try:
        return str(snapshot_download(name, local_files_only=True, allow_patterns=["*.json"]))
    except (OSError, ValueError):
        return None


def served_name(place: str) -> str:
    """Name a model for clients: a hub name as it is, a folder by its last part."""
    folder = Path(place)
    return folder.resolve().name if folder.exists() else place


def open_models(
    place: str, name: str | None, with_before: bool, free_memory: FreeMemory
) -> tuple[list[Served], str]:
    """Load a run's or folder's model, and the one before it.

    Args:
        place: run folder, model folder, adapter folder or hub name.
        name: that clients ask for; none: from the place.
        with_before: also the model that it started from, if that is on this machine.
        free_memory: measures a device.

    Returns:
        The models, and a sentence on the one before.

    Raises:
        ModelError: one cannot be read.
    """
    name = name or served_name(place)
    image_budget = find_image_budget(place)
    tuned = Served.of(name, open_to_answer(place, image_budget))
    before = find_before(place)
    if before is None:
        return [tuned], ""
    if not with_before:
        return [tuned], "the model before tuning is left out"
    needed, free = weight_bytes(tuned.loaded), free_memory(tuned.loaded.model.device)
    if needed > FREE_SHARE * free:
        gib = 2**30
        return [tuned], (
            f"no room for the model before tuning: it needs {needed / gib:.1f} GiB and "
            f"{free / gib:.1f} GiB are free"
        )
    untuned = Served.of(name + BEFORE, open_to_answer(before, image_budget, as_of=place))
    return [tuned, untuned], "before and after tuning"


def weight_bytes(loaded: LoadedModel) -> int:
    """Measure a model's weights."""
    return sum(weight.nbytes for weight in loaded.model.parameters())


def decoding_limits(served: Served, limits: ServerLimits, free_bytes: float) -> DecodingLimits:
    """Say how much one model may hold, given the memory that is left for it."""
    config = served.loaded.model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    number_bytes = served.loaded.model.dtype.itemsize
    token_bytes = 2 * config.num_hidden_layers * heads * width * number_bytes
    room = FREE_SHARE * free_bytes / token_bytes
    return DecodingLimits(
        sequences=limits.running,
        tokens=max(1, min(int(room), MOST_CACHE_TOKENS)),
        kept_prefixes=limits.kept_pictures,
    )
