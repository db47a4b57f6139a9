"""transformers' own image-text models -> a family, found from a model's folder; one for all types.

A type that does something in another way has a family of its own beside this one; what none of them
can be asked for is refused when the model is loaded, by name.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property, lru_cache, partial
from typing import Any, Self

import torch
from torch import nn

from foveal.data.row_planning.groups import Costs
from foveal.errors import ModelError
from foveal.models.cached_rows import reads_with_cache
from foveal.models.family import Family, ImageBudget
from foveal.models.hub.hub_processor import load_hub_processor, set_images
from foveal.models.hub.hub_reader import HubReader
from foveal.models.hub.row_costs import LayerProducts
from foveal.models.hub.stored_names import Regrouped, StoredNames
from foveal.models.shared_rows import choose_attention

DRAWING = ("vqmodel", "generation_embeddings", "generation_aligner", "generation_head")
"""Beside tower and decoder, what draws images in models that also read them (Janus)."""

IMAGE_EXPERTS = "vision_moe"
"""Experts of images (ERNIE); nothing is read of what the last layer's make of them."""

KINDS = "moe_mm_token_type_ids"
"""By what name a mixture is told which tokens go to the experts of images (ERNIE)."""


class HubFamily(Family):
    """Any image-text model of transformers that keeps to its common form."""

    keeps_stored_names = True
    reader: type[HubReader] = HubReader
    """What reads its words and images."""

    text_config = "text_config"
    """Where its configuration holds the decoder's; empty: at the top."""

    def __init__(self, name: str, config: Any, model_class: Any) -> None:
        """Find its parts.

        Raises:
            ModelError: it has no decoder or no tower of the common form.
        """
        self.name = name
        self.config = config
        self.model_class = model_class
        with torch.device("meta"):
            skeleton = model_class(config)
        super().__init__(self._find_parts(skeleton))
        weights = dict(skeleton.named_parameters())
        # Its own code lets no gradient reach some, such as what balances experts.
        never = (name for name, one in weights.items() if not one.requires_grad)
        self._unused = (*self._find_unused(weights), *never)
        self._products = LayerProducts.count(config, *self._layers(skeleton))
        if reads_with_cache(name, config.get_text_config(), self._decoder(skeleton)):
            self.route = "cache"

    @classmethod
    def of(cls, name: str) -> Self:
        """Make the family of a model folder or hub name.

        Raises:
            ModelError: transformers has no such type, or not of the common form.
        """
        config = config_of(name)
        return cls(name, config, model_class_of(name, config))

    def _layers(self, skeleton: Any) -> tuple[list[nn.Module], list[nn.Module]]:
        """List the repeated layers that are run: of the decoder, and of what stands before it."""
        names = {id(module): name for name, module in skeleton.named_modules()}
        parted: dict[bool, list[nn.Module]] = {True: [], False: []}
        for layer in self.blocks(skeleton):
            name = names[id(layer)]
            if not self.is_unused(skeleton, f"{name}."):
                parted[self.part_name(name).startswith("language")].append(layer)
        return parted[True], parted[False]

    def row_costs(self, processor: Any) -> Costs:
        """Price rows by what the model's layers multiply."""
        return self._products.costs(self.config, processor)

    def _find_parts(self, skeleton: Any) -> dict[str, tuple[str, ...]]:
        names = {id(module): path for path, module in skeleton.named_modules()}
        decoder, tower = skeleton.get_decoder(), skeleton.get_encoder(modality="image")
        if id(tower) not in names or tower in (skeleton, decoder) or decoder is skeleton:
            raise ModelError(f"model {self.name}: no tower and decoder of the common form in it")
        language, vision = names[id(decoder)] + ".", names[id(tower)] + "."
        # Where the projector is built into the tower, it is what merges patches.
        merging = [f"{vision}|{one}." for one, _ in tower.named_children() if "merger" in one]
        return {
            "language": (language, "lm_head|", "lm_head."),
            "projector": (*merging, *_others(skeleton, language, vision)),
            "vision": (vision,),
        }

    def _find_unused(self, names: Iterable[str]) -> tuple[str, ...]:
        layer = getattr(self.config, "vision_feature_layer", None)
        drawing = tuple(f"model.{one}." for one in DRAWING)
        last = self.config.get_text_config().num_hidden_layers - 1
        seen_last = f"model.language_model.layers.{last}.mlp.{IMAGE_EXPERTS}."
        return (*_unused(layer, self.parts["vision"][0], names), *drawing, seen_last)

    def _decoder(self, skeleton: Any) -> nn.Module:
        decoder: nn.Module = skeleton.get_decoder()
        return decoder

    @cached_property
    def _stored_names(self) -> StoredNames:
        with torch.device("meta"):
            return StoredNames(self.model_class(self.config))

    def own_name(self, stored: str) -> str | None:
        """Turn the name of a weight in a model's files into the model's own."""
        return self._stored_names.own(stored)

    def regrouped(self, stored: Mapping[str, tuple[int, ...]]) -> list[Regrouped]:
        """Find which weights of its files a model makes others of, and together with which."""
        return self._stored_names.regrouped(stored)

    def load_model(self, name: str, attention: str, dtype: Any, quantization: Any = None) -> Any:
        """Load weights, in float32 unless told otherwise."""
        towers = [one for one in self.config.sub_configs if one != "text_config"]
        chosen = choose_attention(attention, tuple(towers))
        own = chosen.pop("")
        load = partial(
            self.model_class.from_pretrained,
            name,
            dtype=dtype or torch.float32,
            quantization_config=quantization,
            output_loading_info=True,
        )
        try:
            model, found = load(attn_implementation=chosen | {self.text_config: own})
        except ValueError as error:
            if "scaled_dot_product_attention" not in str(error):
                raise
            plain = dict.fromkeys(chosen, "eager")  # a tower that knows no other attention
            model, found = load(attn_implementation=plain | {self.text_config: own})
        if missing := sorted(found["missing_keys"]):  # transformers draws them at random
            raise ModelError(
                f"model {name}: {len(missing)} of its weights are in none of its files, such as "
                f"{missing[0]}; fetch the folder again"
            )
        if model.config.get_text_config()._attn_implementation != own:
            raise ModelError(f"model {name}: its decoder takes no attention of ours")
        return model

    def load_processor(self, name: str, image_budget: ImageBudget) -> HubReader:
        """Load what reads words and images."""
        processor = load_hub_processor(name)
        if isinstance(image_budget, Mapping):
            set_images(name, processor, image_budget)
        reader = self.reader(name, processor, self.config, self.model_class)
        reader.long_context_tokens = self.long_context_tokens(self.config)
        return reader

    def encode_images(self, model: Any, pixels: Mapping[str, Any]) -> Any:
        """Run the tower and the projector; the features stand in `pooler_output`.

        The bare model is asked: not every head hands all that it takes on to it.
        """
        return super().encode_images(model.model, pixels)

    def decoder_inputs(self, model: Any, ids: Any, images: Any) -> dict[str, Any]:
        """Hand ids and images on; where images have experts of their own, their marks have too."""
        given = super().decoder_inputs(model, ids, images)
        if _has_experts_of_images(type(model.model).forward):
            marks = (f"image{one}_token_id" for one in ("", "_start", "_end"))
            shown = torch.tensor([getattr(model.config, one) for one in marks], device=ids.device)
            given[KINDS] = torch.isin(ids, shown).long()
        return given

    def is_unused(self, model: Any, name: str) -> bool:
        """Tell whether a weight stands behind what is read of a model, or draws."""
        return name.startswith(self._unused)


@lru_cache(maxsize=64)
def _has_experts_of_images(forward: Callable[..., Any]) -> bool:
    return KINDS in inspect.signature(forward).parameters


def _others(model: nn.Module, language: str, vision: str) -> list[str]:
    """Name what stands beside tower and decoder, with `model.` left out of their part's names."""
    inner = model.get_submodule("model")
    beside = [f"model.{name}" for name, _ in inner.named_children()]
    beside += [f"model.{name}" for name, _ in inner.named_parameters(recurse=False)]
    return [
        "model.|" + one.removeprefix("model.")
        for one in beside
        if not language.startswith(one + ".") and not vision.startswith(one + ".")
    ]


def _unused(layer: Any, vision: str, names: Iterable[str]) -> tuple[str, ...]:
    """Name the beginnings of tower weights that no forward pass reads.

    Features that are taken from a layer leave those behind it; SigLIP's pooling head is for
    another use of the tower.

    Args:
        layer: number of the layer whose features are taken, or a list; none: the last one's.
        vision: beginning of the tower's names.
        names: of all weights.
    """
    if layer is None:
        return (f"{vision}head.",)
    numbered = re.compile(re.escape(vision) + r"(.*?layers?\.)(\d+)\.")
    layers = {found[1]: int(found[2]) + 1 for name in names if (found := numbered.match(name))}
    prefix, depth = next(iter(layers.items()), ("", 0))  # the last of its name is the deepest
    wanted = layer if isinstance(layer, list) else [layer]
    used = max(depth + 1 + one if one < 0 else one for one in wanted)
    behind = tuple(f"{vision}{prefix}{one}." for one in range(used, depth))
    return (*behind, f"{vision}post_layernorm.", f"{vision}head.")


def config_of(name: str) -> Any:
    """Read a model's configuration.

    Raises:
        ModelError: transformers has no such type.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name)
    except (KeyError, ValueError, OSError) as error:
        raise ModelError(f"model {name}: {' '.join(str(error).split())}") from error


def model_class_of(name: str, config: Any) -> Any:
    """Find the class of a model.

    Raises:
        ModelError: its type is no image-text model of transformers.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    try:
        return MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    except KeyError as error:
        raise ModelError(
            f"model {name}: model_type {config.model_type!r} is no image-text model of transformers"
        ) from error
