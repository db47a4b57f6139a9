"""What a run learnt -> a folder: a whole model, tensor by tensor, or its adapters alone."""

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from foveal.adapt.adapters import lora_config
from foveal.config import DataSettings
from foveal.deliver.export_source import RunSource, check_base_fits, find_source
from foveal.deliver.merge import PARTS, Adapter
from foveal.deliver.tensors import in_format, is_finite, write_shards
from foveal.deliver.weight_only import WeightOnly
from foveal.errors import ModelError, RunError
from foveal.machine import DTYPES, Precision
from foveal.storage import folder_written_whole, write_json

MAX_SHARD_BYTES = 2_000_000_000
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""peft's name of the model that its own stands around."""

COPIED = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "chat_template*",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "*.py",
    "LICENSE*",
    "NOTICE*",
)
"""Handed on as they are, byte for byte: a tokenizer written anew may give other ids."""

CROPS = "num_crops"


def save_final(run: Path) -> str | None:
    """Write the tuned model, adapters merged, as the run's folder `final`.

    Unrounded, but after a run on 4-bit weights in the number format of its base: whoever has no
    room for whole weights has none for float32. Adapters also stand by themselves in a folder
    `adapter` beside it, for peft.

    Args:
        run: its folder.

    Returns:
        What a reader of the folders must know, if anything.

    Raises:
        RunError, ModelError: something is missing or cannot be written.
    """
    source = find_source(run)
    note = _save_adapter(source)
    check_base_fits(source, as_model=True)
    with new_folder(run / "final") as folder:
        dtype = format_of_base(source) if source.four_bit_layers else "float32"
        write_model(source, folder, dtype, MAX_SHARD_BYTES)
    return note


def _save_adapter(source: RunSource) -> str | None:
    """Write the folder `adapter` of a run, if adapters are all that it learnt; see `save_final`."""
    if not source.adapters:
        return None
    if others := source.whole_weights:
        return (
            f"{len(others)} weights such as {others[0]} learnt without an adapter: no folder "
            "adapter can hold all that was learnt, only the merged one does"
        )
    with new_folder(source.run / "adapter") as folder:
        write_adapter(source, folder, torch.float32)
    if source.four_bit_layers:
        return (
            "The adapters learnt beside 4-bit weights; the merged folder adds them to the whole "
            f"weights of {source.base_name}, so its scores may differ a little: evaluate it"
        )
    return None


def format_of_base(source: RunSource) -> Precision:
    """Read the number format of the base's weights."""
    names: dict[torch.dtype, Precision] = {torch.bfloat16: "bf16", torch.float16: "fp16"}
    largest = max(source.base_tensors.values(), key=lambda one: math.prod(one.shape))
    return names.get(largest.read().dtype, "float32")


@contextmanager
def new_folder(place: Path) -> Iterator[Path]:
    """Give a folder to fill; it takes its place when all went well, and is gone if not.

    Raises:
        RunError: it cannot be written.
    """
    try:
        with folder_written_whole(place, alone=True) as part:
            yield part
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunError(f"cannot write {place}: {reason}; free space, run again") from error


def write_model(
    source: RunSource,
    folder: Path,
    dtype: Precision,
    max_shard_bytes: int,
    bits: WeightOnly | None = None,
) -> None:
    """Write a whole model: the base's weights with what the run learnt, tensor by tensor."""

    def without_content(name: str) -> Tensor:
        return torch.empty(source.base_tensors[name].shape, device="meta")

    blank = model_tensors(source, without_content, DTYPES[dtype], bits)
    planned = {name: tensor.to("meta") for name, tensor in blank}
    tensors = model_tensors(source, tuned_tensor(source), DTYPES[dtype], bits)
    write_shards(folder, planned, tensors, max_shard_bytes)
    write_model_settings(source, folder, DTYPES[dtype], bits)
    write_processor_files(
        source.base, source.base_name, folder, source.recipe.data, source.image_changes
    )


def model_tensors(
    source: RunSource,
    read: Callable[[str], Tensor],
    dtype: torch.dtype,
    bits: WeightOnly | None,
) -> Iterator[tuple[str, Tensor]]:
    """Make the tensors of a whole model, one after the other, with the names they are stored under.

    Args:
        source: of the model.
        read: gives a weight by the model's own name; from those on the meta device, tensors are
            made that have no content either.
        dtype: of what is not held in fewer bits.
        bits: how layers are.
    """
    for name, own in source.written_names.items():
        weight = read(own)
        if not bits or not bits.holds(own):
            yield name, in_format(weight, dtype, name)
            continue
        if not is_finite(weight):
            raise ModelError(f"weight {own} is not finite in the run")
        for last, tensor in bits.compress(weight.float(), dtype).items():
            yield name.removesuffix("weight") + last, tensor
    for group in source.regrouped:
        if bits and any(map(bits.holds, group.shapes)):
            raise ModelError(
                f"{group.stored[0]} is stored in one with others, for which there are no few bits; "
                "leave --quantize out"
            )
        weights = {own: in_format(read(own), dtype, own) for own in group.shapes}
        yield from group.written(weights).items()


def tuned_tensor(source: RunSource) -> Callable[[str], Tensor]:
    """Make the function that gives a weight of the tuned model by its name."""
    sizes, rank_stabilized = source.adapter_sizes, source.recipe.lora.rslora

    def read(name: str) -> Tensor:
        if name in source.learnt:
            return source.learnt[name].read()
        weight = source.base_tensors[name].read()
        layer = name.removesuffix(".weight")
        parts = source.adapters.get(layer)
        if parts is None or layer == name:
            return weight
        adapter = Adapter(**{part: stored.read() for part, stored in parts.items()})
        return adapter.merged_with(weight, sizes[layer].alpha, rank_stabilized)

    return read


def write_adapter(source: RunSource, folder: Path, dtype: torch.dtype) -> None:
    """Write what peft loads onto the base: adapter_model.safetensors and adapter_config.json."""
    endings = {part: f"lora_{name}" for name, part in PARTS.items()}
    tensors = {}
    for layer, parts in source.adapters.items():
        for part, stored in parts.items():
            ending = endings[part] + ("" if part == "magnitude" else ".weight")
            tensors[f"{PREFIX}{layer}.{ending}"] = stored.read().to(dtype).contiguous()
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config = lora_config(source.adapter_sizes, source.recipe.lora)
    on_hub, base = source.base_is_on_hub, source.base.resolve()  # a folder, wherever it is read
    config.base_model_name_or_path = source.base_name if on_hub else str(base)
    config.inference_mode = True
    config.target_modules = sorted(config.target_modules)  # peft writes a set as it comes
    config.save_pretrained(str(folder))


def write_model_settings(
    source: RunSource, out: Path, dtype: torch.dtype, bits: WeightOnly | None
) -> None:
    """Write config.json and the generation config."""
    config = read_tree(source.base / "config.json")
    if bits:
        config["quantization_config"] = bits.settings()
    name_own_code(config, source.base, source.base_name)
    name = "torch_dtype" if "torch_dtype" in config else "dtype"
    followed, config[name] = config.get(name), str(dtype).removeprefix("torch.")
    for branch in [one for one in config.values() if isinstance(one, dict)]:
        # What said the same as the whole goes on saying so; another format is the base's business.
        same = [key for key in ("torch_dtype", "dtype") if followed and branch.get(key) == followed]
        branch |= dict.fromkeys(same, config[name])
    write_json(out / "config.json", config, indent=2)
    generation = source.base / "generation_config.json"
    tree = read_tree(generation) if generation.is_file() else _tokens_of(config)
    tree.pop("_from_model_config", None)  # else transformers takes the end token of config.json
    write_json(
        out / generation.name, tree | {"eos_token_id": sorted(source.processor.end_ids)}, indent=2
    )


def write_processor_files(
    base: Path, base_name: str, out: Path, data: DataSettings, images: Mapping[str, Any]
) -> None:
    """Hand the tokenizer and the processor on; images and turns are read as in training.

    `images` are the settings of the image processor that are others than the base's.
    """
    for pattern in COPIED:
        for path in base.glob(pattern):
            if path.is_file():
                shutil.copyfile(path, out / path.name)
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (out / name).is_file():
            tree = read_tree(out / name)
            name_own_code(tree, base, base_name)
            for branch in (tree, tree.get("image_processor")):
                if isinstance(branch, dict) and CROPS in branch:
                    branch[CROPS] = data.num_crops
                    if data.turns != "recipe" or "turns" in branch:
                        branch["turns"] = data.turns
                if isinstance(branch, dict) and "image_processor_type" in branch:
                    branch.update(images)
            write_json(out / name, tree, indent=2)


def name_own_code(tree: dict[str, Any], base: Path, base_name: str) -> None:
    """Say where the code that a settings file names lies, if it does not come along.

    Servers that open this family with `--trust-remote-code` fetch it from there.
    """
    if Path(base_name) == base or "auto_map" not in tree:
        return
    tree["auto_map"] = {
        task: place if "--" in place or _comes_along(base, place) else f"{base_name}--{place}"
        for task, place in tree["auto_map"].items()
    }


def _comes_along(base: Path, place: str) -> bool:
    return (base / f"{place.partition('.')[0]}.py").is_file()


def _tokens_of(config: dict[str, Any]) -> dict[str, Any]:
    names = ("bos_token_id", "pad_token_id")
    return {name: config[name] for name in names if config.get(name) is not None}


def read_tree(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ModelError: it is none.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: {error}; fetch the model again") from error
    if not isinstance(tree, dict):
        raise ModelError(f"{path}: not a mapping of settings; fetch the model again")
    return tree
