"""Family: all that the house may ask of any model."""

import json
import re
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from pkgutil import resolve_name
from shlex import quote
from typing import Any, Literal

from torch import nn

from foveal.data.row_planning.groups import Costs
from foveal.errors import ModelError, one_line
from foveal.models import FAMILIES, GENERIC
from foveal.models.few_bits import keep_layout, read_whole
from foveal.models.generation.tree import ImageSight
from foveal.models.hub.stored_names import Regrouped

PARTS = ("vision", "projector", "language")

CLIP_SECONDS = "clip_seconds"
"""Beside the pixels of images, (images,) float64: from one time of a clip to the next; 0: none."""

ImageBudget = int | Mapping[str, Any] | None
"""Most crops; or settings by the names of the model's own processor; none: as its files say."""

Route = Literal["rows", "cache", "plain"]
"""`rows`: many examples in one row, who sees whom said by the attention; `cache`: a prefix by
itself, then the branches behind what it left; `plain`: each example by itself, in the model's own
way."""


class Family:
    """How one kind of model is loaded and run, and what its weights are called in all words.

    Freezing, learning rates and adapter targets speak of `part.name`, as in
    `language.layers.0.mlp.down_proj.weight`, never of a model's own names.

    What stands here goes for transformers' own image-text models; a kind of model overrides what it
    does in another way.
    """

    image_budget = "size"
    """What the processor calls its own dial: how much of an image is read at most."""

    joins_turns_as_published = False
    """Whether `data.turns` chooses what stands between two turns; else the chat template does."""

    route: Route = "rows"
    """How examples are read."""

    renamed: Mapping[str, str] = {}
    """Pattern of a weight's second name in published files -> the model's own name."""

    keeps_stored_names = False
    """Whether a tuned model's files name weights as the base's do, not as the model itself does."""

    def __init__(self, parts: Mapping[str, tuple[str, ...]]) -> None:
        """Name the parts.

        Args:
            parts: part -> beginnings of the names that belong to it; the first that fits decides.
                Only what stands before a bar is left out of `part.name`.
        """
        self.parts = parts

    @property
    def image_setting(self) -> str:
        """Name the recipe's setting of how much of an image is read."""
        return "data.num_crops" if self.image_budget == "num_crops" else "data.image_settings"

    def reading_plainly(self) -> "Family":
        """Make the same family, each of whose examples is read by itself."""
        plain = copy(self)
        plain.route = "plain"
        return plain

    def part_name(self, name: str) -> str:
        """Turn a model's own name of a weight or module into `part.name`."""
        for part, beginnings in self.parts.items():
            for beginning in beginnings:
                dropped, _, kept = beginning.partition("|")
                if name.startswith(dropped + kept):
                    return f"{part}.{name.removeprefix(dropped)}"
        raise ValueError(f"{name} belongs to no part")

    def own_name(self, stored: str) -> str | None:
        """Turn the name of a weight in a model's files into the model's own.

        None: the model makes of it, and maybe of others, what is named otherwise; see `regrouped`.
        """
        for pattern, own in self.renamed.items():
            stored = re.sub(pattern, own, stored)
        return stored

    def regrouped(self, stored: Mapping[str, tuple[int, ...]]) -> list[Regrouped]:
        """Find which weights of its files a model makes others of, and together with which.

        Args:
            stored: name of each weight in the files -> shape.
        """
        return []

    def load_model(self, name: str, attention: str, dtype: Any, quantization: Any) -> Any:
        """Load weights, in float32 unless told otherwise."""
        raise NotImplementedError

    def load_processor(self, name: str, image_budget: ImageBudget) -> Any:
        """Load what reads words and images; a `TurnProcessor` of the data walk."""
        raise NotImplementedError

    def is_unused(self, model: Any, name: str) -> bool:
        """Tell whether a weight cannot learn: no loss reads it, or its model lets it not."""
        return False

    def encode_images(self, model: Any, pixels: Mapping[str, Any]) -> Any:
        """Run the tower and the projector; the features stand in `pooler_output`."""
        # Not every tower takes numbers of another format than its own.
        own = {
            name: one.to(model.dtype) if one.is_floating_point() else one
            for name, one in pixels.items()
            if name != CLIP_SECONDS
        }
        return model.get_image_features(**own, return_dict=True)

    def decoder_inputs(self, model: Any, ids: Any, images: Any) -> dict[str, Any]:
        """Hand ids and what the tower made of their images to the bare model, in its own words.

        Args:
            model: of transformers, bare.
            ids: (1, length), int64.
            images: what `encode_images` returned, handed out to the places in `ids`; none: there
                are none.
        """
        placed = None if images is None else {"image": images}
        return {"input_ids": ids, "mm_encoder_outputs": placed}

    def token_types(self, model: Any, ids: Any, answer_start: int | None) -> Any:
        """Say what the model's own code is told of each token, (1, length), int64.

        Args:
            model: of transformers, bare.
            ids: (1, length), int64; one example.
            answer_start: where its first answer begins; none: it is all asked.
        """
        return (ids == self.image_token_id(model)).long()

    def image_sight(self, model: Any) -> ImageSight:
        """Say what the tokens of an image see of it."""
        return "causal"

    def image_token_id(self, model: Any) -> int:
        """Id that takes a feature of an image."""
        return int(model.config.image_token_id)

    def head(self, model: Any) -> nn.Module:
        """Find the layer that turns hidden states into logits."""
        head: nn.Module = model.get_output_embeddings()
        return head

    def blocks(self, model: Any) -> list[nn.Module]:
        """List a model's repeated layers, none within another: what engines cut it into."""
        from transformers.modeling_layers import GradientCheckpointingLayer

        found: list[nn.Module] = []
        inside: set[str] = set()
        for name, module in model.named_modules():
            if any(name.startswith(f"{outer}.") for outer in inside):
                continue
            if isinstance(module, GradientCheckpointingLayer):
                found.append(module)
                inside.add(name)
        return found

    def row_costs(self, processor: Any) -> Costs:
        """Say what the rows of examples cost, as it suits the model's sizes.

        Args:
            processor: of the model.
        """
        raise NotImplementedError

    def long_context_tokens(self, config: Any) -> int | None:
        """Length above which an example is treated as long; none: no difference."""
        return None


def most_tokens(config: Any) -> int | None:
    """Most tokens that a model was made for; none: its configuration does not say."""
    stated = getattr(config.get_text_config(), "max_position_embeddings", None)
    return None if stated is None else int(stated)


@dataclass(frozen=True)
class LoadedModel:
    """A model, its processor, and what kind it is."""

    model: Any
    processor: Any
    family: Family
    note: str | None = None
    """What a person should hear of how it is read."""


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
        if not Path(name).is_dir() and (name.count("/") != 1 or name.startswith(("/", "."))):
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
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    family = find_family(name)
    try:
        with read_whole(name) as stored:
            model = family.load_model(name, attention, dtype, quantization or stored)
        processor = family.load_processor(name, image_budget)
    except (ImportError, OSError, ValueError, SafetensorError, StrictDataclassError) as error:
        raise ModelError(f"model {name}: {one_line(error)}") from error
    except (AttributeError, KeyError, TypeError) as error:
        raise _unknown_form(name, error) from error
    keep_layout(model)
    return _probed(name, LoadedModel(model, processor, family))


def _unknown_form(name: str, error: Exception) -> Exception:
    """Say of a type that no test of ours holds that it is not of the common form."""
    model_type = read_model_type(name)
    if model_type in FAMILIES:
        return error
    return ModelError(
        f"model {name}: model_type {model_type!r} is not of the form that is known here "
        f"({type(error).__name__}: {one_line(error)}); `foveal models` lists those that are"
    )


def _probed(name: str, loaded: LoadedModel) -> LoadedModel:
    """See that rows may be built for a model of which no test of ours has shown it."""
    from foveal.models.probe import rows_are_exact

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
