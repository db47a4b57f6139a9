"""Family: all that the house may ask of any model."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from foveal.data.encode import TurnProcessor
from foveal.errors import ModelError
from foveal.models import FAMILIES

PARTS = ("vision", "projector", "language")


@dataclass(frozen=True)
class Family:
    """How one kind of model is loaded, and what its weights are called in everybody's words.

    Freezing, learning rates and adapter targets speak of `part.name`, as in
    `language.layers.0.mlp.down_proj.weight`, never of a model's own names.
    """

    parts: Mapping[str, tuple[str, ...]]
    """Part -> beginnings of the module names that belong to it; the first that fits decides."""

    load_model: Callable[..., nn.Module]
    """(name, attention, dtype, quantization) -> model."""

    load_processor: Callable[..., TurnProcessor]
    """(name, num_crops) -> processor."""

    is_unused: Callable[[nn.Module, str], bool]
    """(model, weight name) -> whether a forward pass never reads the weight."""

    row_hidden_states: Callable[[nn.Module, Mapping[str, Any]], Tensor]
    """(model, inputs of a row) -> (length, hidden)."""

    head: Callable[[nn.Module], nn.Module]
    """Model -> the layer that turns hidden states into logits."""

    blank_features: Callable[[nn.Module], Tensor]
    """Model -> features of a blank picture: a number that hangs on every weight before the text."""

    blocks: Callable[[nn.Module], list[nn.Module]]
    """Model -> its repeated layers, none within another: what engines cut it into."""

    long_context_tokens: Callable[[nn.Module], int | None]
    """Model -> length above which an example is treated as long; none: no difference."""

    renamed: Mapping[str, str] = field(default_factory=dict)
    """Pattern of a weight's second name in published files -> the model's own name."""

    def part_name(self, name: str) -> str:
        """Turn a model's own name of a weight or module into `part.name`."""
        for part, beginnings in self.parts.items():
            for beginning in beginnings:
                if name.startswith(beginning):
                    return f"{part}.{name.removeprefix(beginning)}"
        raise ValueError(f"{name} belongs to no part")


@dataclass(frozen=True)
class LoadedModel:
    """A model, its processor, and what kind it is."""

    model: Any
    processor: Any
    family: Family


def find_family(name: str) -> Family:
    """Find the family of a model folder or hub name.

    Raises:
        ModelError: there is no such model, or it is of no family that we know.
    """
    family: Family = import_module(FAMILIES[_known_type(name)]).FAMILY
    return family


def _known_type(name: str) -> str:
    model_type = read_model_type(name)
    if model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ModelError(f"{name}: model_type {model_type!r} is not one of ours ({known})")
    return model_type


def read_model_type(name: str) -> str:
    """Read `model_type` of a model folder or hub name, without loading it.

    Raises:
        ModelError: there is no such folder or hub name, or its config.json cannot be read.
    """
    from transformers.utils import cached_file

    if Path(name).is_dir() and not (Path(name) / "config.json").exists():
        _point_to_model(Path(name))
    try:
        in_folder = Path(name) / "config.json"
        if not Path(name).is_dir() and "/" not in name:  # no hub name: the hub need not be asked
            raise FileNotFoundError("no such folder")
        path = in_folder if Path(name).is_dir() else Path(cached_file(name, "config.json"))
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model {name}: {_one_line(error)}; give a folder with config.json, or a hub name"
        ) from error
    if not isinstance(config, dict):
        raise ModelError(f"model {name}: its config.json is no mapping of settings")
    return str(config.get("model_type"))


def _point_to_model(folder: Path) -> None:
    """Name the folder to give instead, where somebody gives a run or an adapter.

    Raises:
        ModelError: it is one.
    """
    is_adapter = (folder / "adapter_config.json").is_file()
    run = folder.parent if is_adapter else folder
    whole = run / "final"
    if (whole / "config.json").is_file():
        what = "an adapter, its run's whole model" if is_adapter else "a run, its model"
        raise ModelError(f"model {folder} is {what} is {whole}; give that")
    if is_adapter:
        raise ModelError(
            f"model {folder} is an adapter; give a whole model, such as `foveal export RUN OUT "
            "--merge` writes"
        )
    if (run / "recipe.yaml").is_file():
        raise ModelError(
            f"model {folder} is a run that has not ended; `foveal train {folder / 'recipe.yaml'}` "
            f"ends it, then give {whole}"
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def load(
    name: str,
    num_crops: int | None,
    attention: str = "auto",
    dtype: Any = None,
    quantization: Any = None,
) -> LoadedModel:
    """Load a model and its processor.

    Args:
        name: folder or hub name.
        num_crops: most crops a picture; none: as the model's files say.
        attention: see the recipe's setting.
        dtype: torch dtype of the weights; none: float32.
        quantization: transformers' settings of a model that is held in fewer bits; none: it is not.

    Raises:
        ModelError: the model cannot be read.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    family = find_family(name)
    try:
        model = family.load_model(name, attention, dtype, quantization)
        processor = family.load_processor(name, num_crops)
    except (ImportError, OSError, ValueError, SafetensorError, StrictDataclassError) as error:
        raise ModelError(f"model {name}: {_one_line(error)}") from error
    return LoadedModel(model, processor, family)
