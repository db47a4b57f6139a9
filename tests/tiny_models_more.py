"""More tiny families for the table of model types, beside those that we hold."""

from typing import Any

from tiny_models import (
    MROPE,
    PINPOINTS,
    QWEN_TOKENS,
    QWEN_TOWER,
    TOWER,
    Written,
    _ids,
    _of,
    _qwen_images,
    _qwen_words,
    _text,
    chat_template,
    chatml,
    family,
    image_processor,
    make_tokenizer,
)

PARTIAL_MROPE = {**MROPE, "partial_rotary_factor": 1.0}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "num_hidden_layers": 4,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
}
CLIP = {"model_type": "clip_vision_model", **TOWER}
SIGLIP = {"model_type": "siglip_vision_model", **TOWER, "vision_use_head": False}
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 1e4}


def _flat(text: dict[str, Any]) -> dict[str, Any]:
    """Leave out the width of heads, for those that take it from the hidden size."""
    return {key: one for key, one in text.items() if key != "head_dim"}


def _on_qwens_words(
    kind: str,
    processor: str,
    text: dict[str, Any],
    tower: dict[str, Any],
    text_type: str | None = None,
    images: Any = None,
    model: str | None = None,
    **more: Any,
) -> Written:
    tokenizer, ids = _qwen_words()
    words = {**_text(tokenizer, "<|im_end|>"), **text}
    if text_type:
        words["model_type"] = text_type
    config = _of(
        kind,
        model or f"{kind}ForConditionalGeneration",
        text_config=words,
        vision_config=tower,
        **ids,
        **more,
    )
    return config, tokenizer, images or _qwen_images(), {"processor_class": processor}


# -- three axes of positions -----------------------------------------------------------------------


@family
def qwen2_vl() -> Written:
    tower = {
        "depth": 2,
        "embed_dim": 32,
        "hidden_size": 64,
        "num_heads": 2,
        "patch_size": 16,
        "mlp_ratio": 2,
    }
    return _on_qwens_words("Qwen2VL", "Qwen2VLProcessor", {"rope_parameters": MROPE}, tower)


QWEN3_TOWER = {**QWEN_TOWER, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}


@family
def qwen3_vl_moe() -> Written:
    text = {"rope_parameters": MROPE, **EXPERTS}
    return _on_qwens_words("Qwen3VLMoe", "Qwen3VLProcessor", text, QWEN3_TOWER)


@family
def cosmos3_omni() -> Written:
    return _on_qwens_words(
        "Cosmos3Omni", "Qwen3VLProcessor", {"rope_parameters": MROPE}, QWEN3_TOWER
    )


QWEN35_ROPE = {
    "rope_type": "default",
    "mrope_section": [2, 1, 1],
    "mrope_interleaved": True,
    "rope_theta": 1e4,
    "partial_rotary_factor": 0.5,
}


@family
def qwen3_5_moe() -> Written:
    text = {
        "rope_parameters": QWEN35_ROPE,
        **LINEAR,
        **EXPERTS,
        "shared_expert_intermediate_size": 32,
    }
    tower = {**QWEN_TOWER, "num_position_embeddings": 64}
    return _on_qwens_words("Qwen3_5Moe", "Qwen3VLProcessor", text, tower)


def _glm(kind: str, processor: str, images: str = "Glm4vImageProcessor", **text: Any) -> Written:
    named = {"image_token": "<|image|>", "video_token": "<|video|>"}
    marks = {
        "image_start_token_id": "<|begin_of_image|>",
        "image_end_token_id": "<|end_of_image|>",
        "video_start_token_id": "<|begin_of_video|>",
        "video_end_token_id": "<|end_of_video|>",
    }
    tokenizer = make_tokenizer(["<|user|>", "<|assistant|>", *marks.values()], named)
    tokenizer.chat_template = chat_template(
        "<|ROLE|>\nCONTENT", "<|assistant|>\n", "<|begin_of_image|><|image|><|end_of_image|>"
    )
    tower = {**QWEN_TOWER, "patch_size": 14, "image_size": 56}
    model = "Glm46V" if kind == "Glmga" else kind
    words = {**_text(tokenizer, "<|user|>", rope_parameters=PARTIAL_MROPE), **text}
    if kind in ("Glm46V", "Glmga"):
        words["model_type"], tower["model_type"] = "glm4v_text", "glm4v_vision"
    config = _of(
        kind,
        f"{model}ForConditionalGeneration",
        text_config=words,
        vision_config=tower,
        **_ids(tokenizer, image_token_id="<|image|>", video_token_id="<|video|>", **marks),
    )
    size = {"shortest_edge": 56 * 56 * 2, "longest_edge": 140 * 140 * 2}
    return config, tokenizer, image_processor(images, size=size), {"processor_class": processor}


@family
def glm46v() -> Written:
    return _glm("Glm46V", "Glm46VProcessor", "Glm46VImageProcessor")


@family
def glm4v_moe() -> Written:
    return _glm("Glm4vMoe", "Glm4vProcessor", **ROUTED)


@family
def glm_ocr() -> Written:
    return _glm("GlmOcr", "Glm46VProcessor", "Glm46VImageProcessor")


@family
def glmga() -> Written:
    return _glm("Glmga", "Glm46VProcessor", "Glm46VImageProcessor")


@family
def exaone4_5() -> Written:
    tokenizer, ids = _qwen_words()
    text = _text(tokenizer, "<|im_end|>", sliding_window=12, sliding_window_pattern=3)
    tower = {
        **QWEN_TOWER,
        "num_key_value_heads": 1,
        "window_size": 64,
        "fullatt_block_indexes": [1],
    }
    config = _of(
        "Exaone4_5_",
        "Exaone4_5_ForConditionalGeneration",
        text_config={"model_type": "exaone4", **text},
        vision_config=tower,
        **{key: one for key, one in ids.items() if key in ("image_token_id", "video_token_id")},
    )
    return config, tokenizer, _qwen_images(), {"processor_class": "Exaone4_5_Processor"}


@family
def video_llama_3() -> Written:
    tokenizer, ids = _qwen_words()
    tower = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 14,
    }
    config = _of(
        "VideoLlama3",
        "VideoLlama3ForConditionalGeneration",
        text_config={"model_type": "qwen2", **_text(tokenizer, "<|im_end|>")},
        vision_config=tower,
        **{key: one for key, one in ids.items() if key in ("image_token_id", "video_token_id")},
    )
    size = {"shortest_edge": 28 * 28, "longest_edge": 140 * 140}
    images = image_processor("VideoLlama3ImageProcessor", size=size)
    return config, tokenizer, images, {"processor_class": "VideoLlama3Processor"}


@family
def hyperclovax_vision_v2() -> Written:
    tokenizer, ids = _qwen_words()
    tower = {
        "model_type": "qwen2_5_vl_vision",
        **QWEN_TOWER,
        "window_size": 64,
        "fullatt_block_indexes": [1],
    }
    config = _of(
        "HyperCLOVAXVisionV2",
        "HyperCLOVAXVisionV2ForConditionalGeneration",
        text_config={"model_type": "hyperclovax", **_text(tokenizer, "<|im_end|>")},
        vision_config=tower,
        **{key: one for key, one in ids.items() if key in ("image_token_id", "video_token_id")},
    )
    return config, tokenizer, _qwen_images(), {"processor_class": "HyperCLOVAXVisionV2Processor"}


@family
def cohere_compass() -> Written:
    named = {
        **QWEN_TOKENS,
        "image_token": "<|IMAGE_PAD|>",
        "video_token": "<|VIDEO_PAD|>",
    }
    tokenizer = make_tokenizer(["<|im_start|>", "<|im_end|>"], named)
    tokenizer.chat_template = chatml("<|vision_start|><|IMAGE_PAD|><|vision_end|>")
    text = _flat(
        _text(tokenizer, "<|im_end|>", sliding_window=12, layer_types=["full_attention"] * 3)
    )
    text["rope_parameters"] = {"full_attention": MROPE}
    config = _of(
        "CohereCompass",
        "CohereCompassForConditionalGeneration",
        text_config=text,
        vision_config=QWEN3_TOWER,
        **_ids(tokenizer, **{f"{name}_id": one for name, one in named.items()}),
    )
    size = {"shortest_edge": 32 * 32, "longest_edge": 160 * 160}
    images = image_processor("CohereCompassImageProcessor", patch_size=16, size=size)
    return config, tokenizer, images, {"processor_class": "CohereCompassProcessor"}


@family
def cosmos3_edge() -> Written:
    tokenizer, ids = _qwen_words()
    tower = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_patches": 64,
    }
    config = _of(
        "Cosmos3Edge",
        "Cosmos3EdgeForConditionalGeneration",
        text_config=_text(tokenizer, "<|im_end|>", rope_parameters=MROPE),
        vision_config=tower,
        projector_hidden_size=48,
        **ids,
    )
    size = {"shortest_edge": 32 * 32, "longest_edge": 160 * 160}
    images = image_processor("Cosmos3EdgeImageProcessor", size=size)
    return config, tokenizer, images, {"processor_class": "Cosmos3EdgeProcessor"}


@family
def ernie4_5_vl_moe() -> Written:
    named = {
        "image_token": "<|IMAGE_PLACEHOLDER|>",
        "image_start_token": "<|IMAGE_START|>",
        "image_end_token": "<|IMAGE_END|>",
        "video_token": "<|VIDEO_PLACEHOLDER|>",
        "video_start_token": "<|VIDEO_START|>",
        "video_end_token": "<|VIDEO_END|>",
    }
    tokenizer = make_tokenizer(["<|im_start|>", "<|im_end|>"], named)
    tokenizer.chat_template = chatml("<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>")
    text = _flat(
        _text(
            tokenizer,
            "<|im_end|>",
            rope_parameters={**PLAIN_ROPE, "mrope_section": [3, 3, 2]},
            moe_intermediate_size=[32, 16],
            moe_k=2,
            moe_num_experts=4,
            moe_num_shared_experts=1,
        )
    )
    tower = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "spatial_merge_size": 2,
    }
    config = _of(
        "Ernie4_5_VLMoe",
        "Ernie4_5_VLMoeForConditionalGeneration",
        text_config=text,
        vision_config=tower,
        **_ids(tokenizer, **{f"{name}_id": one for name, one in named.items()}),
    )
    size = {"shortest_edge": 28 * 28, "longest_edge": 140 * 140}
    images = image_processor("Ernie4_5_VLMoeImageProcessor", size=size)
    return config, tokenizer, images, {"processor_class": "Ernie4_5_VLMoeProcessor"}


@family
def paddleocr_vl() -> Written:
    tokenizer, ids = _qwen_words()
    tower = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
        "spatial_merge_size": 2,
    }
    config = _of(
        "PaddleOCRVL",
        "PaddleOCRVLForConditionalGeneration",
        text_config=_text(tokenizer, "<|im_end|>", rope_parameters=MROPE),
        vision_config=tower,
        **ids,
    )
    size = {"shortest_edge": 28 * 28, "longest_edge": 140 * 140}
    images = image_processor("PaddleOCRVLImageProcessor", size=size)
    return config, tokenizer, images, {"processor_class": "PaddleOCRVLProcessor"}


# -- plain positions -------------------------------------------------------------------------------


def _image_words(image: str = "<image>", **named: str) -> Any:
    tokenizer = make_tokenizer(
        ["<|im_start|>", "<|im_end|>", image, "<video>"], {"image_token": image, **named}
    )
    tokenizer.chat_template = chatml(f"{image}\n")
    return tokenizer


def _like_llava(
    kind: str,
    text_type: str,
    tower: dict[str, Any],
    images: Any,
    processor: dict[str, Any],
    tokenizer: Any = None,
    text: dict[str, Any] | None = None,
    image: str = "<image>",
    **more: Any,
) -> Written:
    tokenizer = tokenizer or _image_words(image)
    words = {"model_type": text_type, **_text(tokenizer, "<|im_end|>"), **(text or {})}
    config = _of(
        kind,
        f"{kind}ForConditionalGeneration",
        text_config=words,
        vision_config=tower,
        **_ids(tokenizer, image_token_id=image),
        **more,
    )
    return config, tokenizer, images, processor


LLAVA = {
    "patch_size": 8,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,
}


def _clip_images() -> Any:
    return image_processor("CLIPImageProcessor", size={"shortest_edge": 32}, crop_size=32)


@family
def vipllava() -> Written:
    return _like_llava(
        "VipLlava",
        "llama",
        CLIP,
        _clip_images(),
        {"processor_class": "LlavaProcessor", **LLAVA},
        vision_feature_layers=[-1, -2],
    )


@family
def llava_next_video() -> Written:
    images = image_processor(
        "LlavaNextImageProcessor",
        size={"shortest_edge": 32},
        crop_size=32,
        image_grid_pinpoints=PINPOINTS,
    )
    return _like_llava(
        "LlavaNextVideo",
        "llama",
        CLIP,
        images,
        {"processor_class": "LlavaNextVideoProcessor", **LLAVA},
        image_grid_pinpoints=PINPOINTS,
    )


@family
def llava_onevision() -> Written:
    images = image_processor(
        "LlavaOnevisionImageProcessor",
        size={"height": 32, "width": 32},
        image_grid_pinpoints=PINPOINTS,
    )
    settings = {
        "processor_class": "LlavaOnevisionProcessor",
        "num_image_tokens": 16,
        "vision_feature_select_strategy": "full",
    }
    return _like_llava(
        "LlavaOnevision", "qwen2", SIGLIP, images, settings, image_grid_pinpoints=PINPOINTS
    )


@family
def aya_vision() -> Written:
    tiles = [f"TILE_{number}" for number in range(4, 0, -1)]
    marks = ["<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>"]
    tokenizer = make_tokenizer(
        ["<|im_start|>", "<|im_end|>", "<image>", "TILE_GLOBAL", *tiles, *marks]
    )
    tokenizer.chat_template = chatml("<image>")
    text = _flat(_text(tokenizer, "<|im_end|>", sliding_window=12))
    config = _of(
        "AyaVision",
        "AyaVisionForConditionalGeneration",
        text_config={"model_type": "cohere2", **text},
        vision_config=SIGLIP,
        downsample_factor=2,
        **_ids(tokenizer, image_token_index="<|IMG_PATCH|>"),
    )
    images = image_processor(
        "GotOcr2ImageProcessor",
        size={"height": 32, "width": 32},
        crop_to_patches=True,
        min_patches=1,
        max_patches=4,
    )
    settings = {
        "processor_class": "AyaVisionProcessor",
        "patch_size": 8,
        "img_size": 32,
        "downsample_factor": 2,
    }
    return config, tokenizer, images, settings


@family
def deepseek_vl() -> Written:
    tokenizer = _image_words("<image_placeholder>")
    images = image_processor("DeepseekVLImageProcessor", size={"height": 32, "width": 32})
    settings = {"processor_class": "DeepseekVLProcessor", "num_image_tokens": 16}
    return _like_llava(
        "DeepseekVL", "llama", SIGLIP, images, settings, tokenizer, image="<image_placeholder>"
    )


@family
def got_ocr2() -> Written:
    tokenizer = make_tokenizer(["<|im_start|>", "<|im_end|>", "<img>", "</img>", "<imgpad>"])
    tokenizer.chat_template = chatml("<imgpad>")
    tower = {
        "hidden_size": 32,
        "output_channels": 32,
        "mlp_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 4,
        "window_size": 4,
        "global_attn_indexes": [1],
    }
    images = image_processor("GotOcr2ImageProcessor", size={"height": 64, "width": 64})
    settings = {"processor_class": "GotOcr2Processor"}
    return _like_llava("GotOcr2", "qwen2", tower, images, settings, tokenizer, image="<imgpad>")


@family
def idefics2() -> Written:
    tokenizer = make_tokenizer(
        ["<|im_start|>", "<|im_end|>", "<end_of_utterance>"],
        {"image_token": "<image>", "image_boundary_token": "<fake_token_around_image>"},
    )
    tokenizer.chat_template = chatml("<image>")
    perceiver = {
        "hidden_size": 64,
        "resampler_n_latents": 4,
        "resampler_depth": 2,
        "resampler_n_heads": 2,
        "num_key_value_heads": 1,
        "resampler_head_dim": 16,
    }
    images = image_processor(
        "Idefics2ImageProcessor",
        size={"shortest_edge": 16, "longest_edge": 32},
        do_image_splitting=False,
    )
    settings = {"processor_class": "Idefics2Processor", "image_seq_len": 4}
    return _like_llava(
        "Idefics2", "mistral", TOWER, images, settings, tokenizer, perceiver_config=perceiver
    )


@family
def aria() -> Written:
    settings = {"processor_class": "AriaProcessor", "size_conversion": {"490": 4, "980": 4}}
    tower = {"model_type": "idefics3_vision", **TOWER, "image_size": 980, "patch_size": 70}
    text = {"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1}
    tokenizer = _image_words()
    config = _of(
        "Aria",
        "AriaForConditionalGeneration",
        text_config={**_text(tokenizer, "<|im_end|>"), **text},
        vision_config=tower,
        projector_patch_to_query_dict={49: 4, 196: 4},
        **_ids(tokenizer, image_token_index="<image>"),
    )
    images = image_processor("AriaImageProcessor", max_image_size=490, min_image_size=336)
    return config, tokenizer, images, settings


@family
def granite4_vision() -> Written:
    size = {"height": 64, "width": 64}
    pinpoints = [[64, 128], [128, 64], [128, 128]]
    tokenizer = _image_words()
    config = _of(
        "Granite4Vision",
        "Granite4VisionForConditionalGeneration",
        text_config=_flat(_text(tokenizer, "<|im_end|>", num_hidden_layers=4)),
        vision_config={
            **SIGLIP,
            "hidden_size": 64,
            "image_size": 64,
            "num_hidden_layers": 3,
        },
        image_grid_pinpoints=pinpoints,
        downsample_rate="1/2",
        deepstack_layer_map=[(-1, 0), (-2, 1)],
        spatial_target_layers=[2, 3],
        vision_feature_select_strategy="full",
        qformer_config={
            "model_type": "blip_2_qformer",
            "num_hidden_layers": 1,
            "intermediate_size": 32,
            "num_attention_heads": 1,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        **_ids(tokenizer, image_token_index="<image>"),
    )
    images = image_processor(
        "LlavaNextImageProcessor",
        size=size,
        crop_size=size,
        do_center_crop=True,
        image_grid_pinpoints=pinpoints,
    )
    settings = {
        "processor_class": "Granite4VisionProcessor",
        "patch_size": 8,
        "vision_feature_select_strategy": "full",
        "downsample_rate": "1/2",
    }
    return config, tokenizer, images, settings


@family
def ovis2() -> Written:
    marks = ["<IMG_START>", "<IMG_ATOM>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"]
    tokenizer = make_tokenizer(["<|im_start|>", "<|im_end|>", "<image>", *marks])
    tokenizer.chat_template = chatml("<image>\n")
    indicators = [marks[0], *marks[2:]]
    tower = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
        "vocab_size": 64,
        "hidden_stride": 1,
    }
    config = _of(
        "Ovis2",
        "Ovis2ForConditionalGeneration",
        text_config={"model_type": "qwen2", **_text(tokenizer, "<|im_end|>")},
        vision_config=tower,
        visual_indicator_token_ids=tokenizer.convert_tokens_to_ids(indicators),
        hidden_size=64,
        vocab_size=len(tokenizer),
        **_ids(tokenizer, image_token_id="<IMG_ATOM>"),
    )
    images = image_processor("Ovis2ImageProcessor", size={"height": 32, "width": 32})
    return config, tokenizer, images, {"processor_class": "Ovis2Processor", "image_seq_length": 16}


def _minicpm(kind: str, text_type: str, **text: Any) -> Written:
    named = {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "image_start_token": "<image>",
        "image_end_token": "</image>",
        "slice_start_token": "<slice>",
        "slice_end_token": "</slice>",
        "image_id_start_token": "<image_id>",
        "image_id_end_token": "</image_id>",
    }
    tokenizer = make_tokenizer(["<|im_start|>", "<|im_end|>"], named)
    tokenizer.chat_template = chatml("<|image_pad|>\n")
    tower = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 8,
    }
    config = _of(
        kind,
        f"{kind}ForConditionalGeneration",
        text_config={"model_type": text_type, **_text(tokenizer, "<|im_end|>"), **text},
        vision_config=tower,
        insert_layer_id=1,
        image_size=64,
        **_ids(tokenizer, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>"),
    )
    images = image_processor("MiniCPMV4_6ImageProcessor", patch_size=8, scale_resolution=64)
    return config, tokenizer, images, {"processor_class": f"{kind}Processor"}


@family
def minicpmv4_6() -> Written:
    return _minicpm("MiniCPMV4_6", "qwen3")


@family
def minicpmv4_7() -> Written:
    return _minicpm("MiniCPMV4_7", "qwen3")


@family
def paligemma() -> Written:
    tokenizer = make_tokenizer(["<|im_start|>", "<|im_end|>", "<image>"], bos="<bos>")
    tokenizer.chat_template = chatml("<image>")
    images = image_processor("SiglipImageProcessor", size={"height": 32, "width": 32})
    images.image_seq_length = 16
    return _like_llava(
        "PaliGemma",
        "gemma",
        SIGLIP,
        images,
        {"processor_class": "PaliGemmaProcessor"},
        tokenizer,
        projection_dim=64,
    )


@family
def janus() -> Written:
    tokenizer = _image_words(
        "<image_placeholder>", boi_token="<begin_of_image>", eoi_token="<end_of_image>"
    )
    config = _of(
        "Janus",
        "JanusForConditionalGeneration",
        text_config=_text(tokenizer, "<|im_end|>"),
        vision_config={**TOWER, "projection_dim": 64},
        vq_config={
            "embed_dim": 8,
            "num_embeddings": 16,
            "base_channels": 32,
            "channel_multiplier": [1, 1],
            "num_res_blocks": 1,
            "projection_dim": 64,
            "image_token_embed_dim": 64,
            "num_patches": 4,
        },
        **_ids(tokenizer, image_token_id="<image_placeholder>"),
    )
    images = image_processor("JanusImageProcessor", size={"height": 32, "width": 32})
    return config, tokenizer, images, {"processor_class": "JanusProcessor", "num_image_tokens": 16}


@family
def qianfan_ocr() -> Written:
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
    }
    tokenizer = make_tokenizer(["<|im_start|>", "<|im_end|>", "<image>"], named)
    tokenizer.chat_template = chatml("<image>\n")
    tower = {**TOWER, "image_size": [32, 32], "patch_size": [8, 8], "drop_path_rate": 0.0}
    config = _of(
        "QianfanOCR",
        "QianfanOCRForConditionalGeneration",
        text_config={"model_type": "qwen3", **_text(tokenizer, "<|im_end|>")},
        vision_config=tower,
        image_seq_length=4,
        **_ids(tokenizer, image_token_id="<IMG_CONTEXT>"),
    )
    images = image_processor(
        "GotOcr2ImageProcessor",
        size={"height": 32, "width": 32},
        crop_to_patches=True,
        min_patches=1,
        max_patches=4,
    )
    settings = {"processor_class": "QianfanOCRProcessor", "image_seq_length": 4}
    return config, tokenizer, images, settings
