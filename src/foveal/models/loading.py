"""A folder or hub name -> LoadedModel: its family, its weights, and whether its rows are exact."""

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from pkgutil import resolve_name
from shlex import quote
from typing import Any

import numpy as np
import torch
from PIL import Image

from foveal.data.forward_inputs import ForwardInputs, GroupSpan
from foveal.data.shapes import expand_entries
from foveal.data.turn_processor import AskedTurn
from foveal.errors import ConfigError, ModelError, one_line
from foveal.models import FAMILIES, GENERIC
from foveal.models.family import Family, ImageBudget, LoadedModel
from foveal.models.few_bits import keep_layout
from foveal.models.forward import hidden_states

COMPRESSED = "compressed-tensors"
"""Layout of weights that are stored in fewer bits, and the package that reads it."""

OF_PROCESSORS = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
"""Files that published models have, though not each of them all."""

PROBE_SIZE = (160, 96)
QUESTIONS = ("What is in the upper left corner?", "How many of them?", "Which one is larger?")
TOLERANCE = 1e-3
"""Largest difference, in units of the largest number, in float32; a wrong mask shows as 0.1 and
more."""


def find_family(name: str) -> Family:
    """Find the family of a model folder or hub name.

    Raises:
        ModelError: there is no such model, or it is of no kind that can be trained here.
    """
    config = _read_config(name)
    return _derived(name, _type_in(config), json.dumps(config))


@lru_cache(maxsize=8)
def _derived(name: str, model_type: str, config: str) -> Family:
    """Make a family; anew for a folder whose config.json has been written over."""
    family: Family = resolve_name(FAMILIES.get(model_type, GENERIC)).of(name)
    return family


def read_model_type(name: str) -> str:
    """Read `model_type` of a model folder or hub name, without loading it.

    Raises:
        ModelError: there is no such folder or hub name, or its config.json cannot be read.
    """
    return _type_in(_read_config(name))


def _type_in(config: Mapping[str, Any]) -> str:
    return str(config.get("model_type"))


def _read_config(name: str) -> dict[str, Any]:
    from transformers.utils import cached_file

    if Path(name).is_dir() and not (Path(name) / "config.json").exists():
        _point_to_model(Path(name))
    try:
        in_folder = Path(name) / "config.json"
        # No hub name: the hub need not be asked.
        beside_runs = any(Path(name).parent.glob("*/recipe.yaml"))
        if not Path(name).is_dir() and (
            name.count("/") != 1 or name.startswith(("/", ".")) or beside_runs
        ):
            raise FileNotFoundError("no such folder")
        path = in_folder if Path(name).is_dir() else Path(cached_file(name, "config.json"))
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model {name}: {one_line(error)}; give a folder with config.json, or a hub name"
        ) from error
    if not isinstance(config, dict):
        raise ModelError(f"model {name}: its config.json is no mapping of settings")
    return config


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
        command = f"foveal train {quote(str(run / 'recipe.yaml'))}"
        raise ModelError(
            f"model {folder} is a run that has not ended; `{command}` ends it, then give {whole}"
        )


def load(
    name: str,
    image_budget: ImageBudget,
    attention: str = "auto",
    dtype: Any = None,
    quantization: Any = None,
) -> LoadedModel:
    """Load a model and its processor.

    Args:
        name: folder or hub name.
        image_budget: most that is read of an image, in the words of its processor; none: as the
            model's files say.
        attention: see the recipe's setting.
        dtype: torch dtype of the weights; none: float32.
        quantization: transformers' settings of a model that is held in fewer bits; none: it is not.

    Raises:
        ModelError: the model cannot be read.
    """
    family = find_family(name)
    with _told_of(name):
        with read_whole(name) as stored:
            model = family.load_model(name, attention, dtype, quantization or stored)
        processor = family.load_processor(name, image_budget)
    keep_layout(model)
    return _probed(name, LoadedModel(model, processor, family))


def load_without_weights(name: str, image_budget: ImageBudget) -> tuple[Family, Any, Any]:
    """Load all of a model but its weights: family, configuration and processor.

    Raises:
        ModelError: it cannot be read.
    """
    from transformers import AutoConfig

    family = find_family(name)
    with _told_of(name):
        return family, AutoConfig.from_pretrained(name), family.load_processor(name, image_budget)


@contextmanager
def _told_of(name: str) -> Iterator[None]:
    """Say in one line why a model cannot be read, whatever reads it."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        reason = one_line(error)
        raise ModelError(f"model {name}: broken weights ({reason}); fetch it again") from error
    except (ImportError, OSError, ValueError, StrictDataclassError) as error:
        raise ModelError(f"model {name}: {one_line(error)}") from error
    except (AttributeError, KeyError, TypeError) as error:
        raise _unknown_form(name, error) from error


def _unknown_form(name: str, error: Exception) -> Exception:
    """Say of a folder which files it lacks, of a type that no test holds that it is not common."""
    model_type = read_model_type(name)
    if model_type in FAMILIES:
        missing = [one for one in OF_PROCESSORS if not (Path(name) / one).exists()]
        if not (missing and Path(name).is_dir()):
            return error
        reason = f"{type(error).__name__}: {one_line(error)}"
        lacks = " and ".join(missing)
        return ModelError(
            f"model {name}: it has no {lacks}, and cannot be read ({reason}); bring all its files"
        )
    return ModelError(
        f"model {name}: model_type {model_type!r} is not of the form that is known here "
        f"({type(error).__name__}: {one_line(error)}); `foveal models` lists those that are"
    )


def _probed(name: str, loaded: LoadedModel) -> LoadedModel:
    """See that rows may be built for a model of which no test of ours has shown it."""
    model, family = loaded.model, loaded.family
    if family.route == "plain" or model.config.model_type in FAMILIES:
        return loaded
    was_training = model.training
    try:
        exact = rows_are_exact(replace(loaded, model=model.eval()))
    except (AttributeError, KeyError, TypeError) as error:
        raise _unknown_form(name, error) from error
    model.train(was_training)
    if exact:
        return loaded
    note = (
        f"{name}: a row of several questions is not exact with model_type "
        f"{model.config.model_type!r}; each example is read by itself"
    )
    return replace(loaded, family=family.reading_plainly(), note=note)


# -- stored in fewer bits ------------------------------------------------------------------------


def is_compressed(name: str) -> bool:
    """Tell whether a folder or hub name holds weights in fewer bits, in this layout."""
    try:
        stored = _read_config(name).get("quantization_config")
    except ModelError:
        return False  # whoever loads it says so
    return isinstance(stored, dict) and stored.get("quant_method") == COMPRESSED


def refuse_compressed(name: str) -> None:
    """See that a model can be learnt from.

    Raises:
        ConfigError: its weights are in fewer bits.
    """
    if is_compressed(name):
        raise ConfigError(
            f"model={name}: its weights are in fewer bits; give the whole model that it was made "
            "from (strategy=qlora holds that in 4 bits by itself)"
        )


@contextmanager
def read_whole(name: str) -> Iterator[Any]:
    """Give transformers' settings that read such a model as a whole one; none: it is no such model.

    Raises:
        ModelError: the package that reads it is missing.
    """
    if not is_compressed(name):
        yield None
        return
    from transformers import CompressedTensorsConfig

    try:
        settings = CompressedTensorsConfig(dequantize=True)
    except ImportError as error:
        raise ModelError(
            f"model {name}: its weights are in fewer bits, which needs the package "
            f"{COMPRESSED}: pip install 'foveal[quantize]'"
        ) from error
    with warnings.catch_warnings():
        # It says that what the folder holds stands, and this one setting beside it.
        warnings.filterwarnings("ignore", "You passed `quantization_config`")
        yield settings


# -- rows of a type that no test of ours holds ---------------------------------------------------


@torch.no_grad()
def rows_are_exact(loaded: LoadedModel) -> bool:
    """Read an image of noise with three questions behind it, as one row and one by one."""
    model, processor, family = loaded.model, loaded.processor, loaded.family
    noise = np.random.default_rng(0).integers(0, 256, (*PROBE_SIZE[::-1], 3), np.uint8)
    image = Image.fromarray(noise)
    shape = processor.shape(*image.size)
    pixels = processor.stack([processor.pixels(image)], [shape])
    moved = {name: one.to(model.device) for name, one in pixels.items()}
    samples = []
    for question in QUESTIONS:
        entries = processor.encode_turns([AskedTurn(question, 1, None)]).entries
        ids, _ = expand_entries(np.asarray(entries, np.int32), [shape])
        samples.append((ids, processor.positions(ids, [shape])))
    prefix = next(
        at
        for at, some in enumerate(zip(*(ids for ids, _ in samples), strict=False))
        if len(set(some)) > 1
    )

    def run(ids: np.ndarray, positions: np.ndarray, cuts: list[int], plainly: bool) -> torch.Tensor:
        inputs = ForwardInputs(
            torch.from_numpy(ids)[None].to(model.device),
            torch.from_numpy(positions)[:, None].to(model.device),
            moved,
            (shape.features,),
            (0,),
        )
        group = GroupSpan(0, tuple(cuts), len(ids))
        return hidden_states(model, family, inputs, groups=(group,), plainly=plainly).float()

    row = np.concatenate([samples[0][0][:prefix], *(ids[prefix:] for ids, _ in samples)])
    places = [samples[0][1][:, :prefix], *(where[:, prefix:] for _, where in samples)]
    lengths = [len(ids) - prefix for ids, _ in samples]
    starts = [prefix + sum(lengths[:number]) for number in range(len(samples))]
    ours = run(row, np.concatenate(places, axis=1), starts, False)
    for (ids, where), start, length in zip(samples, starts, lengths, strict=True):
        own = run(ids, where, [], True)
        mine = torch.cat([ours[:prefix], ours[start : start + length]])
        if (own - mine).abs().max() > TOLERANCE * own.abs().max():
            return False
    return True
