"""Token ids and crops -> hidden states and logits; the decoder layers are transformers' own."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.phi3.modeling_phi3 import Phi3DecoderLayer, Phi3RMSNorm
from transformers.utils import can_return_tuple

from foveal.errors import ModelError
from foveal.models.phi3_vision.config import (
    SHARED_EMBEDDING,
    Phi3VisionConfig,
    end_of_answer_ids,
)
from foveal.models.phi3_vision.rotary import PerExampleRotaryEmbedding
from foveal.models.phi3_vision.vision import ImageEmbedding


class Phi3VisionPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """What transformers needs to know of the family; no weight is passed over in silence."""

    config: Phi3VisionConfig
    config_class = Phi3VisionConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["Phi3DecoderLayer", "CLIPEncoderLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @classmethod
    def from_pretrained(cls, name: str | Path, *args: Any, **kwargs: Any) -> Self:
        """Load a model folder or hub name.

        Raises:
            ModelError: a weight is missing, unexpected, or has a wrong shape.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs.setdefault("key_mapping", SHARED_EMBEDDING)
        model, info = super().from_pretrained(
            name, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
        problems = [f"missing weight {key}" for key in sorted(info["missing_keys"])]
        problems += [f"unexpected weight {key}" for key in sorted(info["unexpected_keys"])]
        problems += [
            f"weight {key} has shape {tuple(stored)} where the config asks for {tuple(wanted)}"
            for key, stored, wanted in sorted(info["mismatched_keys"])
        ]
        if problems:
            more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
            raise ModelError(f"{name}: {'; '.join(problems[:3])}{more}")
        # transformers would write each weight under the name that it was read from.
        model._weight_conversions = []
        if model.can_generate():
            generation = model.generation_config
            generation.eos_token_id = end_of_answer_ids(generation, model.config)
        return (model, info) if wants_info else model  # type: ignore[return-value]


class Phi3VisionModel(Phi3VisionPreTrainedModel):
    """Text and images to hidden states."""

    def __init__(self, config: Phi3VisionConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.vision_embed_tokens = ImageEmbedding(config)
        self.layers = nn.ModuleList(
            Phi3DecoderLayer(config, index) for index in range(config.num_hidden_layers)
        )
        self.norm = Phi3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = PerExampleRotaryEmbedding(config)
        self.post_init()

    def get_image_features(
        self, pixel_values: Tensor, image_sizes: Tensor | Sequence[Sequence[int]]
    ) -> list[Tensor]:
        """Encode images.

        Args:
            pixel_values: see `ImageEmbedding`; also the published processor's padded form,
                (images, 1 + most crops, 3, size, size), whose padding is left out.
            image_sizes: (images, 2), height and width after the HD transform, pixels.

        Returns:
            (tokens, hidden) of each image.

        Raises:
            ValueError: crops and sizes do not belong together.
        """
        size = self.config.crop_size
        grids = []
        for height, width in torch.as_tensor(image_sizes).tolist():
            if height % size or width % size:
                raise ValueError(
                    f"an image of {height} x {width} pixels is no grid of {size} pixel crops; "
                    "image_sizes are those after the HD transform"
                )
            grids.append((height // size, width // size))
        if pixel_values.dim() == 5:
            if len(pixel_values) != len(grids):
                raise ValueError(
                    f"pixel_values of {len(pixel_values)} images, sizes of {len(grids)}"
                )
            counts = [1 + rows * columns for rows, columns in grids]
            pairs = zip(pixel_values, counts, strict=True)
            pixel_values = torch.cat([padded[:count] for padded, count in pairs])
        features: list[Tensor] = self.vision_embed_tokens(pixel_values, grids)
        return features

    def _images(
        self,
        pixel_values: Tensor | None,
        image_sizes: Tensor | None,
        encoded: Mapping[str, Any] | None,
    ) -> Sequence[Tensor] | None:
        """Encode the images, unless that is done; none: there is none."""
        if encoded and encoded.get("image") is not None:
            done: Sequence[Tensor] = encoded["image"].pooler_output
            return done
        if pixel_values is None:
            return None
        if image_sizes is None:
            raise ValueError("pixel_values without image_sizes")
        return self.get_image_features(pixel_values, image_sizes)

    def embed(self, input_ids: Tensor, images: Sequence[Tensor] | None) -> Tensor:
        """Look up the tokens and put the images in their places.

        Args:
            input_ids: (batch, length); an image stands as a run of `image_token_id`, or of
                negative ids that count the images of a row from -1 on.
            images: (tokens, hidden) of each image, in the order of the text; none: there is none.

        Returns:
            (batch, length, hidden).

        Raises:
            ValueError: image tokens and image features do not match, or are out of order.
        """
        is_image = (input_ids == self.config.image_token_id) | (input_ids < 0)
        _check_order(input_ids)
        embeddings: Tensor = self.embed_tokens(
            input_ids.masked_fill(is_image, self.config.pad_token_id)
        )
        places = int(is_image.sum())
        if images is None:
            if places:
                raise ValueError(f"{places} image tokens, but no pixel_values and image_sizes")
            return embeddings
        features = torch.cat(list(images))
        if len(features) != places:
            raise ValueError(
                f"{places} image tokens do not fit {len(features)} features of {len(images)} images"
            )
        _check_runs(is_image, images)
        return embeddings.masked_scatter(is_image[..., None], features.to(embeddings.dtype))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        mm_encoder_outputs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the decoder.

        Args:
            input_ids: (batch, length), see `embed`.
            attention_mask: (batch, past + length), 0 on padding, left or right.
            position_ids: (batch, length); with a second axis before these, (2, batch, length), it
                says of each token whether its example is a long one. None: counted from the mask.
            past_key_values: what came before.
            inputs_embeds: (batch, length, hidden), instead of ids and images.
            pixel_values: see `get_image_features`.
            image_sizes: see `get_image_features`.
            use_cache: return the keys and values.
            output_hidden_states: return the embeddings and what each layer makes of them, the
                last one after the final norm.
            mm_encoder_outputs: under "image", images that are encoded already.
            kwargs: handed on to the attention.
        """
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("give input_ids or inputs_embeds")
            if input_ids.shape[1] == 1 and past_key_values is not None and pixel_values is None:
                inputs_embeds = self.embed_tokens(input_ids)  # generated: whatever it is, a word
            else:
                # The tower before the words, see `models.forward`.
                images = self._images(pixel_values, image_sizes, mm_encoder_outputs)
                inputs_embeds = self.embed(input_ids, images)
        if use_cache is None:
            use_cache = bool(self.config.use_cache) and not self.training
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        if position_ids is None:
            position_ids = _positions(attention_mask, inputs_embeds, past)
        if position_ids.dim() == 3:
            position_ids, is_long = position_ids[0], position_ids[1].bool()
        else:
            border = self.config.original_max_position_embeddings
            is_long = _lengths(attention_mask, position_ids) > border
        window = self.config.sliding_window
        make = create_causal_mask if window is None else create_sliding_window_causal_mask
        mask = make(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        rotation = self.rotary_emb(position_ids, is_long, inputs_embeds.dtype)
        hidden = inputs_embeds
        trace = [hidden]
        for layer in self.layers:
            hidden = layer(
                hidden,
                attention_mask=mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                position_embeddings=rotation,
                **kwargs,
            )
            if output_hidden_states:
                trace.append(hidden)
        hidden = self.norm(hidden)
        return BaseModelOutputWithPast(
            last_hidden_state=hidden,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=(*trace[:-1], hidden) if output_hidden_states else None,
        )


class Phi3VisionForConditionalGeneration(Phi3VisionPreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """Phi-3-vision and Phi-3.5-vision: answers from images and text.

    Reads and writes the published checkpoint; see `Phi3VisionModel.forward` for the inputs.
    """

    def __init__(self, config: Phi3VisionConfig) -> None:
        super().__init__(config)
        self.model = Phi3VisionModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
        self.generation_config.eos_token_id = end_of_answer_ids(self.generation_config, config)

    def get_image_features(self, pixel_values: Tensor, image_sizes: Tensor) -> list[Tensor]:
        """Encode images; see `Phi3VisionModel.get_image_features`."""
        return self.model.get_image_features(pixel_values, image_sizes)

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Predict the next token at each position.

        Args:
            input_ids: (batch, length); the other inputs as in `Phi3VisionModel.forward`.
            attention_mask: (batch, past + length).
            position_ids: (batch, length).
            past_key_values: what came before.
            inputs_embeds: (batch, length, hidden).
            pixel_values: (crops, 3, size, size), uint8 or normalised float.
            image_sizes: (images, 2), height and width after the HD transform.
            labels: (batch, length), unshifted; -100 where nothing is to be learnt.
            use_cache: return the keys and values.
            logits_to_keep: last positions to predict at, or their indices; 0: all.
            kwargs: handed on.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            image_sizes=image_sizes,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            items = kwargs.get("num_items_in_batch")
            loss = self.loss_function(
                logits, labels, vocab_size=self.config.vocab_size, num_items_in_batch=items
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Start over from the whole sequence when it has just grown past the short factors.

        The cached keys were rotated with short factors; cache-free decoding would rotate all of
        them with long ones from here on.
        """
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        if past and self._has_crossed(input_ids, attention_mask, past):
            past_key_values, is_first_iteration = None, True
            kwargs["next_sequence_length"] = None
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        return inputs

    def _has_crossed(self, input_ids: Tensor, attention_mask: Tensor | None, past: int) -> bool:
        border = self.config.original_max_position_embeddings
        if attention_mask is None or attention_mask.dim() != 2:
            return bool(past <= border < input_ids.shape[1])
        cached, now = attention_mask[:, :past].sum(-1), attention_mask.sum(-1)
        return bool(((cached <= border) & (now > border)).any())


def _positions(attention_mask: Tensor | None, embeddings: Tensor, past: int) -> Tensor:
    length = embeddings.shape[1]
    if attention_mask is None or attention_mask.dim() != 2:
        return torch.arange(past, past + length, device=embeddings.device)[None]
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]


def _lengths(attention_mask: Tensor | None, position_ids: Tensor) -> Tensor:
    if attention_mask is None or attention_mask.dim() != 2:
        return position_ids.amax(-1, keepdim=True) + 1
    return attention_mask.long().sum(-1, keepdim=True)


def _check_order(input_ids: Tensor) -> None:
    """Refuse negative image ids that do not count up: images are placed in order."""
    tags = -input_ids.clamp(max=0)
    for row in tags[(tags > 0).any(-1)]:
        seen = torch.unique_consecutive(row[row > 0]).tolist()
        if seen != list(range(1, len(seen) + 1)):
            raise ValueError(f"image tags out of order: {seen}; they count up from 1 in a row")


def _check_runs(is_image: Tensor, images: Sequence[Tensor]) -> None:
    """Refuse places that cut an image in two, or run on from row to row."""
    flat = F.pad(is_image, (0, 1)).flatten()
    run_ends = flat.cumsum(0)[:-1][flat[:-1] & ~flat[1:]].tolist()
    if not set(run_ends) <= set(accumulate(map(len, images))):
        raise ValueError(
            f"image tokens end after {run_ends} in all, where images of "
            f"{[len(one) for one in images]} tokens do not end"
        )
