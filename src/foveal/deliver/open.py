"""A run, a model folder, an adapter folder or a hub name -> a model to ask."""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from foveal.adapt.adapters import ADAPTER, merge_adapters
from foveal.config import Recipe, load_recipe
from foveal.data.turn_processor import read_as
from foveal.errors import ModelError, one_line
from foveal.libraries import import_peft, without_bitsandbytes
from foveal.machine import DTYPES, pick_device
from foveal.models.family import ImageBudget, LoadedModel
from foveal.models.loading import load

ADAPTER_CONFIG = "adapter_config.json"

OPENED_BY = ("config.json", ADAPTER_CONFIG)
"""Files that make a folder a model's or an adapter's."""

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


def open_model(
    place: str,
    image_budget: ImageBudget = None,
    dtype: Any = None,
    as_of: str | None = None,
) -> LoadedModel:
    """Load what people point at; an adapter is folded into the base that it names.

    Turns, boxes and clips are read as a run did; from elsewhere, as the model's files say.

    Args:
        place: run folder, model folder, adapter folder or hub name.
        image_budget: how much of an image is read; none: as in training.
        dtype: torch dtype of the weights; none: float32.
        as_of: the run whose way to read is taken; none: the place itself.

    Raises:
        ModelError: it cannot be read.
    """
    found, recipe = find_model(place), recipe_of(as_of or place)
    crops = image_budget or (recipe.data.image_budget if recipe else None)
    is_adapter = (Path(found) / ADAPTER_CONFIG).is_file()
    loaded = (
        _open_adapter(Path(found), crops, dtype) if is_adapter else load(found, crops, dtype=dtype)
    )
    if recipe:
        read_as(loaded.processor, recipe.data)
    return loaded


def _open_adapter(folder: Path, crops: ImageBudget, dtype: Any) -> LoadedModel:
    base = read_base_name(folder)
    try:
        loaded = load(base, crops, dtype=dtype)
    except ModelError as error:
        raise ModelError(f"{folder}: the base that it names cannot be read: {error}") from error
    put_adapter(loaded.model, folder)
    merge_adapters(loaded.model)
    processor = loaded.processor  # a run keeps none beside its adapter, nor does peft by itself
    if any((folder / name).is_file() for name in PROCESSOR_FILES):
        processor = loaded.family.load_processor(str(folder), crops)
        # An adapter's folder brings words and images, not the model's own sizes.
        processor.long_context_tokens = loaded.processor.long_context_tokens
    return replace(loaded, processor=processor)


def open_to_answer(place: str, as_of: str | None = None) -> LoadedModel:
    """Load a model onto the fastest device, in the number format that its run computed in.

    A processor answers in float32; what no run tells of answers in bf16 elsewhere.

    Args:
        place: run folder, model folder, adapter folder or hub name.
        as_of: the run whose format is taken, and whose way to read images, turns, boxes and
            clips; none: the place itself.

    Raises:
        ModelError: it cannot be read.
    """
    device = pick_device()
    recipe = recipe_of(as_of or place)
    precision = "float32" if device.type == "cpu" else recipe.precision if recipe else "bf16"
    loaded = open_model(place, dtype=DTYPES[precision], as_of=as_of)
    loaded.model.to(device).eval()
    return loaded


def read_base_name(folder: Path) -> str:
    """Read which model an adapter belongs to.

    Raises:
        ModelError: it does not say.
    """
    try:
        tree = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        name, kind = tree["base_model_name_or_path"], tree.get("peft_type", "LORA")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{folder / ADAPTER_CONFIG}: it names no base model ({error}); export it again"
        ) from error
    if not name or not isinstance(name, str):
        raise ModelError(f"{folder / ADAPTER_CONFIG}: it names no base model; write it there")
    if kind != "LORA":
        raise ModelError(f"{folder}: an adapter of the kind {kind}; those of LoRA are opened")
    return name


def put_adapter(model: Any, folder: Path) -> None:
    """Put the adapter of a folder beside the layers of its base, through peft alone.

    Raises:
        ModelError: it cannot be read, or does not fit the base to the last tensor.
    """
    peft = import_peft()
    from peft.utils import load_peft_weights

    if not any(folder.glob("adapter_model.*")):
        raise ModelError(f"{folder}: its weights, adapter_model.safetensors, are missing")
    with warnings.catch_warnings():
        # peft asks transformers for a name that it is about to lose.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        warnings.filterwarnings("ignore", "Found missing adapter keys")  # refused below
        try:
            stored = load_peft_weights(str(folder), device="cpu")
            # Its layers go into the model itself.
            with without_bitsandbytes():
                adapted = peft.PeftModel.from_pretrained(model, str(folder))
        except Exception as error:  # peft checks nothing before it loads: it raises what it meets
            reason = one_line(error, 300)
            raise ModelError(f"{folder}: the adapter does not fit its base: {reason}") from error
    put = peft.get_peft_model_state_dict(adapted, adapter_name=ADAPTER, save_embedding_layers=False)
    if differing := stored.keys() ^ put.keys():
        raise ModelError(
            f"{folder}: {len(differing)} tensors of the adapter and its base do not meet, such as "
            f"{min(differing)}; give the base that it was trained on"
        )
    model.requires_grad_(False).eval()


def find_model(place: str) -> str:
    """Find the model of a run folder, a model folder, an adapter folder or a hub name.

    Raises:
        ModelError: a run that has not ended, or a place within a run or a model.
    """
    folder = Path(place)
    if (folder / "final").is_dir():
        return str(folder / "final")
    if (folder / "adapter" / ADAPTER_CONFIG).is_file():
        return str(folder / "adapter")  # its whole model is not written yet
    if (folder / "recipe.yaml").exists():
        raise ModelError(f"{place}: this run has not ended; run `foveal train` on its recipe")
    if folder.is_file():
        if around := find_run(folder) or (folder.parent if _is_model(folder.parent) else None):
            raise ModelError(f"{place}: a file; give the folder {around}")
        raise ModelError(f"{place}: no model; give the folder of a run or a model")
    if folder.is_dir() and not _is_model(folder):
        if run := find_run(folder):
            raise ModelError(f"{place}: no model, but a part of a run; give the folder {run}")
        raise ModelError(f"{place}: no model in it; give a folder with {' or '.join(OPENED_BY)}")
    return place


def _is_model(folder: Path) -> bool:
    return any((folder / name).exists() for name in OPENED_BY)


def find_run(place: Path) -> Path | None:
    """Find the run that a place lies in; none: it lies in no run."""
    return next((one for one in place.absolute().parents if (one / "recipe.yaml").is_file()), None)


def recipe_of(place: str) -> Recipe | None:
    """Read the recipe of a run, or of the run that an adapter folder lies in; none: it is none."""
    folder = Path(place)
    run = folder if (folder / "recipe.yaml").is_file() else None
    if (folder / ADAPTER_CONFIG).is_file():
        run = find_run(folder)
    return load_recipe(run / "recipe.yaml") if run else None
