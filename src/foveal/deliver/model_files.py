"""A base model's small files -> those of a tuned one: as published, plus what is needed."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foveal.config import DataSettings
from foveal.errors import ModelError
from foveal.storage import write_json

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


def write_model_settings(
    base: Path,
    base_name: str,
    out: Path,
    *,
    dtype: str,
    end_ids: Sequence[int],
    quantization: Mapping[str, Any],
) -> None:
    """Write config.json and the generation config.

    Args:
        base: folder of the model that was tuned.
        base_name: how the recipe names it; a hub name is where its own code is looked for.
        out: folder to write into.
        dtype: torch's name of the number format of the weights.
        end_ids: tokens at which an answer ends.
        quantization: how layers are held in fewer bits, in the words of their layout.
    """
    config = read_tree(base / "config.json")
    if quantization:
        config["quantization_config"] = dict(quantization)
    name_own_code(config, base, base_name)
    name = "torch_dtype" if "torch_dtype" in config else "dtype"
    followed, config[name] = config.get(name), dtype
    for branch in [one for one in config.values() if isinstance(one, dict)]:
        # What said the same as the whole goes on saying so; another format is the base's business.
        same = [key for key in ("torch_dtype", "dtype") if followed and branch.get(key) == followed]
        branch |= dict.fromkeys(same, dtype)
    write_json(out / "config.json", config, indent=2)
    generation = base / "generation_config.json"
    tree = read_tree(generation) if generation.is_file() else _tokens_of(config)
    tree.pop("_from_model_config", None)  # else transformers takes the end token of config.json
    write_json(out / generation.name, tree | {"eos_token_id": sorted(end_ids)}, indent=2)


def write_processor_files(
    base: Path, base_name: str, out: Path, data: DataSettings, images: Mapping[str, Any]
) -> None:
    """Hand the tokenizer and the processor on; pictures and turns are read as in training.

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
