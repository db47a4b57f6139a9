"""Tiny families whose image processors need torchvision; loaded behind `torchvision_alone`."""

from typing import Any

import tiny_models_more as more
import torchvision_alone  # noqa: F401  # first of all that looks for torchvision
from tiny_models import (
    TOWER,
    Written,
    _ids,
    _of,
    _text,
    chat_template,
    chatml,
    family,
    make_tokenizer,
)
from transformers.models.auto.image_processing_auto import _load_backend_class


def _images(name: str, **settings: Any) -> Any:
    return _load_backend_class(name, "torchvision")(**settings)


@family
def phi4_multimodal() -> Written:
    ends = ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
    tokenizer = make_tokenizer(ends, {"image_token": "<|image|>", "audio_token": "<|audio|>"})
    tokenizer.chat_template = chat_template("<|ROLE|>CONTENT<|end|>", "<|assistant|>", "<|image|>")
    text = {key: one for key, one in _text(tokenizer, "<|end|>").items() if key != "head_dim"}
    factors = 8 * 3 // 4  # half of the three quarters of a head that turn
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "partial_rotary_factor": 0.75,
        "short_factor": [1.0] * factors,
        "long_factor": [1.0 + 0.5 * number for number in range(factors)],
    }
    sounds = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_blocks": 1,
        "num_attention_heads": 2,
        "nemo_conv_channels": 16,
        "ext_pw_out_channel": 32,
        "depthwise_separable_out_channel": 32,
    }
    # Its processor counts on 16 by 16 features of a crop.
    tower = {**TOWER, "hidden_size": 24, "image_size": 64, "crop_size": 64, "patch_size": 2}
    tower |= {"num_hidden_layers": 3, "feature_layer": -2}
    config = _of(
        "Phi4Multimodal",
        "Phi4MultimodalForCausalLM",
        **text | {"eos_token_id": [text["eos_token_id"]]},
        original_max_position_embeddings=600,
        rope_parameters=rope,
        vision_config={**tower, **_ids(tokenizer, image_token_id="<|image|>")},
        audio_config={**sounds, **_ids(tokenizer, audio_token_id="<|audio|>")},
    )
    size = {"height": 64, "width": 64}
    images = _images("Phi4MultimodalImageProcessor", size=size, patch_size=2, dynamic_hd=4)
    return config, tokenizer, images, {"processor_class": "Phi4MultimodalProcessor"}


PIXTRAL = {
    "model_type": "pixtral",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "head_dim": 16,
    "image_size": 128,
    "patch_size": 8,
}


def _pixtral(kind: str, text_type: str, merge: int, **more_settings: Any) -> Written:
    tokenizer = make_tokenizer(
        ["[IMG]", "[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]"], bos="<s>"
    )
    tokenizer.chat_template = (
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}[INST]"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}[IMG]"
        "{% else %}{{ part['text'] }}{% endif %}{% endfor %}[/INST]"
        "{% else %}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{{ message['content'][0]['text'] }}{% endif %}{{ eos_token }}{% endif %}{% endfor %}"
    )
    text = {"model_type": text_type, **_text(tokenizer, "<eos>"), "sliding_window": None}
    config = _of(
        kind,
        f"{kind}ForConditionalGeneration",
        text_config=text,
        vision_config=PIXTRAL,
        **_ids(tokenizer, image_token_id="[IMG]"),
        **more_settings,
    )
    images = _images("PixtralImageProcessor", size={"longest_edge": 96}, patch_size=8)
    settings = {"processor_class": "PixtralProcessor", "patch_size": 8, "spatial_merge_size": merge}
    return config, tokenizer, images, settings


@family
def mistral3() -> Written:
    return _pixtral("Mistral3", "mistral", 2, spatial_merge_size=2)


@family
def pixtral() -> Written:
    return _pixtral(
        "Llava",
        "mistral",
        1,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )


@family
def lfm2_vl() -> Written:
    places = [f"<|img_row_{row}_col_{column}|>" for row in range(1, 5) for column in range(1, 5)]
    named = {
        "image_token": "<image>",
        "image_start_token": "<|image_start|>",
        "image_end_token": "<|image_end|>",
        "image_thumbnail_token": "<|img_thumbnail|>",
    }
    tokenizer = make_tokenizer(["<|im_start|>", "<|im_end|>", *places], named)
    tokenizer.chat_template = chatml("<image>")
    kinds = ["conv", "full_attention", "conv"]
    text = {"model_type": "lfm2", **_text(tokenizer, "<|im_end|>"), "layer_types": kinds}
    tower = {
        "model_type": "siglip2_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 8,
        "num_patches": 64,
        "vision_use_head": False,
    }
    config = _of(
        "Lfm2Vl",
        "Lfm2VlForConditionalGeneration",
        text_config=text | {"block_auto_adjust_ff_dim": False},
        vision_config=tower,
        projector_hidden_size=48,
        downsample_factor=2,
        **_ids(tokenizer, image_token_id="<image>"),
    )
    images = _images(
        "Lfm2VlImageProcessor",
        encoder_patch_size=8,
        tile_size=32,
        downsample_factor=2,
        min_image_tokens=4,
        max_image_tokens=9,
        max_num_patches=64,
        max_tiles=4,
    )
    return config, tokenizer, images, {"processor_class": "Lfm2VlProcessor"}


@family
def cohere2_vision() -> Written:
    named = {
        "boi_token": "<|START_OF_IMG|>",
        "eoi_token": "<|END_OF_IMG|>",
        "image_token": "<|IMG_PATCH|>",
        "img_line_break_token": "<|IMG_LINE_BREAK|>",
    }
    tokenizer = make_tokenizer(["<|im_start|>", "<|im_end|>"], named)
    tokenizer.chat_template = chatml("<|IMG_PATCH|>")
    text = more._flat(_text(tokenizer, "<|im_end|>", sliding_window=12))
    config = _of(
        "Cohere2Vision",
        "Cohere2VisionForConditionalGeneration",
        text_config={"model_type": "cohere2", **text},
        vision_config=more.SIGLIP,
        downsample_factor=2,
        alignment_intermediate_size=64,
        **_ids(tokenizer, image_token_id="<|IMG_PATCH|>"),
    )
    images = _images(
        "Cohere2VisionImageProcessor",
        size={"height": 32, "width": 32},
        patch_size=2,  # features of a crop's side, for its processor
        max_patches=4,
        crop_to_patches=True,
    )
    return config, tokenizer, images, {"processor_class": "Cohere2VisionProcessor"}
