"""Tiny random models of many families, written as the folders that a hub would bring.

A tokenizer of bytes and a few merged words, the family's real image processor and classes, and
weights that let attention matter: at transformers' own initialisation a wrong mask hardly shows.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.models.auto.image_processing_auto import _load_backend_class

WORDS = """What is written in the second line of this page? Which number stands beside the total?
yes no a red circle and a blue square, three of them; the picture shows nothing else.
user assistant system User: Assistant: answer with one word or two, it is number one of four"""

SPLIT = (
    r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@functools.lru_cache
def _trained() -> str:
    """Byte-level BPE with a few hundred merges, as JSON."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([WORDS, *["\n\n", "\n\n\n"] * 9], trainer)
    return tokenizer.to_str()


def make_tokenizer(
    tokens: list[str],
    named: dict[str, str] | None = None,
    bos: str | None = None,
    eos: str = "<eos>",
) -> PreTrainedTokenizerFast:
    """Make a tokenizer with some control tokens, a few of them under names."""
    tokenizer = Tokenizer.from_str(_trained())
    every = [
        one for one in dict.fromkeys(["<pad>", bos, eos, *tokens, *(named or {}).values()]) if one
    ]
    tokenizer.add_special_tokens([AddedToken(one, special=True, normalized=False) for one in every])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        extra_special_tokens=named or {},
        bos_token=bos,
        eos_token=eos,
        pad_token="<pad>",
    )


def chat_template(turn: str, answer_start: str, image: str, begin: str = "", clip: str = "") -> str:
    """Write a template.

    Args:
        turn: with ROLE and CONTENT in it.
        answer_start: what an answer follows.
        image: what stands for one.
        begin: what a conversation begins with.
        clip: what stands for one.
    """
    content = (
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}"
        + image
        + "{% elif part['type'] == 'video' %}"
        + clip
        + "{% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{% endif %}"
    )
    body = turn.replace("ROLE", "{{ message['role'] }}").replace("CONTENT", content)
    return (
        f"{begin}{{% for message in messages %}}{body}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{answer_start}{{% endif %}}"
    )


def chatml(image: str, clip: str = "") -> str:
    """Write the template that Qwen made common."""
    turn, answer = "<|im_start|>ROLE\nCONTENT<|im_end|>\n", "<|im_start|>assistant\n"
    return chat_template(turn, answer, image, clip=clip)


def image_processor(name: str, **settings: Any) -> Any:
    """Make an image processor of transformers on Pillow."""
    return _load_backend_class(name, "pil")(**settings)


TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
    "bos_token_id": None,
}
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}

Written = tuple[Any, PreTrainedTokenizerFast, Any, dict[str, Any]]
"""Configuration, tokenizer with its template, image processor, settings of the processor."""

FAMILIES: dict[str, Callable[[], Written]] = {}


def family(make: Callable[[], Written]) -> Callable[[], Written]:
    """Enter a family under its function's name."""
    FAMILIES[make.__name__] = make
    return make


def write_tiny(name: str, folder: Path, seed: int = 0) -> Path:
    """Write a tiny model of a family: weights, configuration, tokenizer, processor."""
    config, tokenizer, images, settings = FAMILIES[name]()
    model_class = getattr(transformers, config.architectures[0])
    torch.manual_seed(seed)
    model = let_attention_matter(model_class(config), seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    images.save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps(settings))
    return folder


def let_attention_matter(model: Any, seed: int) -> Any:
    """Draw weights anew, so large that who is seen changes what comes out."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                wide = parameter.shape[-1] >= 200
                parameter.normal_(0, 0.1 if wide else 0.25, generator=generator)
            else:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
            if name.endswith(("q_norm.weight", "k_norm.weight")):
                parameter.mul_(0.25)  # sharper attention would make much of the last digits
    return model.eval()


def _ids(tokenizer: PreTrainedTokenizerFast, **tokens: str) -> dict[str, int]:
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}


def _text(tokenizer: PreTrainedTokenizerFast, end: str, **changes: Any) -> dict[str, Any]:
    sizes = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    return {**TEXT, **sizes, "eos_token_id": tokenizer.convert_tokens_to_ids(end), **changes}


def _of(kind: str, model: str, **settings: Any) -> Any:
    config = getattr(transformers, f"{kind}Config")(**settings)
    config.architectures = [model]
    return config


# -- Qwen and those that place tokens on three axes ------------------------------------------------

QWEN_TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
MROPE = {"rope_type": "default", "mrope_section": [4, 2, 2], "rope_theta": 1e4}
QWEN_TOWER = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 64,
}


def _qwen_words() -> tuple[PreTrainedTokenizerFast, dict[str, int]]:
    tokenizer = make_tokenizer(["<|im_start|>", "<|im_end|>"], QWEN_TOKENS)
    shown = "<|vision_start|><|{}_pad|><|vision_end|>"
    tokenizer.chat_template = chatml(shown.format("image"), shown.format("video"))
    named = {f"{name}_id": token for name, token in QWEN_TOKENS.items()}
    return tokenizer, _ids(tokenizer, **named)


def _qwen_images(**settings: Any) -> Any:
    size = {"shortest_edge": 32 * 32, "longest_edge": 160 * 160}
    return image_processor("Qwen2VLImageProcessor", patch_size=16, size=size, **settings)


def let_clips_share_pixels(folder: Path) -> None:
    """Let a folder name the video processor of Qwen3-VL, which real ones bring."""
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    settings.pop("image_processor_type")
    settings["video_processor_type"] = "Qwen3VLVideoProcessor"
    (folder / "video_preprocessor_config.json").write_text(json.dumps(settings))


@family
def qwen2_5_vl() -> Written:
    tokenizer, ids = _qwen_words()
    tower = {**QWEN_TOWER, "window_size": 64, "fullatt_block_indexes": [1]}
    text = _text(tokenizer, "<|im_end|>", rope_parameters=MROPE)
    config = _of(
        "Qwen2_5_VL",
        "Qwen2_5_VLForConditionalGeneration",
        text_config=text,
        vision_config=tower,
        **ids,
    )
    return config, tokenizer, _qwen_images(), {"processor_class": "Qwen2_5_VLProcessor"}


@family
def qwen3_vl() -> Written:
    tokenizer, ids = _qwen_words()
    tower = {**QWEN_TOWER, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    text = _text(tokenizer, "<|im_end|>", rope_parameters=MROPE)
    config = _of(
        "Qwen3VL", "Qwen3VLForConditionalGeneration", text_config=text, vision_config=tower, **ids
    )
    return config, tokenizer, _qwen_images(), {"processor_class": "Qwen3VLProcessor"}


@family
def qwen3_5() -> Written:
    tokenizer, ids = _qwen_words()
    rope = {**MROPE, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    linear = {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    }
    text = _text(
        tokenizer,
        "<|im_end|>",
        num_hidden_layers=4,
        rope_parameters={**rope, "partial_rotary_factor": 0.5},
        **linear,
    )
    config = _of(
        "Qwen3_5",
        "Qwen3_5ForConditionalGeneration",
        text_config=text,
        vision_config={**QWEN_TOWER, "num_position_embeddings": 64},
        **ids,
    )
    return config, tokenizer, _qwen_images(), {"processor_class": "Qwen3VLProcessor"}


@family
def glm4v() -> Written:
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
    text = _text(tokenizer, "<|user|>", rope_parameters={**MROPE, "partial_rotary_factor": 1.0})
    config = _of(
        "Glm4v",
        "Glm4vForConditionalGeneration",
        text_config=text,
        vision_config={**QWEN_TOWER, "patch_size": 14, "image_size": 56},
        **_ids(tokenizer, image_token_id="<|image|>", video_token_id="<|video|>", **marks),
    )
    size = {"shortest_edge": 56 * 56 * 2, "longest_edge": 140 * 140 * 2}
    images = image_processor("Glm4vImageProcessor", size=size)
    return config, tokenizer, images, {"processor_class": "Glm4vProcessor"}


# -- plain positions -------------------------------------------------------------------------------


@family
def llava() -> Written:
    tokenizer = make_tokenizer(["<image>"], bos="<s>", eos="</s>")
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\n' }}"
        "{% else %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    )
    config = _of(
        "Llava",
        "LlavaForConditionalGeneration",
        text_config={"model_type": "llama", **_text(tokenizer, "</s>")},
        vision_config={"model_type": "clip_vision_model", **TOWER},
        **_ids(tokenizer, image_token_index="<image>"),
    )
    images = image_processor("CLIPImageProcessor", size={"shortest_edge": 32}, crop_size=32)
    settings = {
        "processor_class": "LlavaProcessor",
        "patch_size": 8,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    }
    return config, tokenizer, images, settings


PINPOINTS = [[32, 64], [64, 32], [64, 64]]


@family
def llava_next() -> Written:
    tokenizer = make_tokenizer(["<image>", "[INST]", "[/INST]"], bos="<s>", eos="</s>")
    tokenizer.chat_template = (
        "{% for message in messages %}{% if message['role'] == 'user' %}[INST] "
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\n' }}"
        "{% else %}{{ part['text'] }}{% endif %}{% endfor %} [/INST]"
        "{% else %}{{ ' ' + message['content'][0]['text'] + '</s> ' }}{% endif %}{% endfor %}"
    )
    config = _of(
        "LlavaNext",
        "LlavaNextForConditionalGeneration",
        text_config={"model_type": "mistral", **_text(tokenizer, "</s>"), "sliding_window": None},
        vision_config={"model_type": "clip_vision_model", **TOWER},
        image_grid_pinpoints=PINPOINTS,
        **_ids(tokenizer, image_token_index="<image>"),
    )
    images = image_processor(
        "LlavaNextImageProcessor",
        size={"shortest_edge": 32},
        crop_size=32,
        image_grid_pinpoints=PINPOINTS,
    )
    settings = {
        "processor_class": "LlavaNextProcessor",
        "patch_size": 8,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    }
    return config, tokenizer, images, settings


def _idefics_words() -> PreTrainedTokenizerFast:
    named = {
        "fake_image_token": "<fake_token_around_image>",
        "image_token": "<image>",
        "global_image_token": "<global-img>",
        "video_token": "<video>",
    }
    places = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    ends = ["<|im_start|>", "<end_of_utterance>", *places]
    tokenizer = make_tokenizer(ends, named, eos="<end_of_utterance>")
    tokenizer.chat_template = chat_template(
        "{{ message['role'].capitalize() + ':' }} CONTENT<end_of_utterance>\n",
        "Assistant:",
        "<image>",
        "<|im_start|>",
    )
    return tokenizer


def _idefics(kind: str, processor: str, images: str) -> Written:
    tokenizer = _idefics_words()
    config = _of(
        kind,
        f"{kind}ForConditionalGeneration",
        text_config={"model_type": "llama", **_text(tokenizer, "<end_of_utterance>")},
        vision_config=TOWER,
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
        **_ids(tokenizer, image_token_id="<image>"),
    )
    settings = {"processor_class": processor, "image_seq_len": 4}
    made = image_processor(
        images, size={"longest_edge": 96}, max_image_size={"longest_edge": 32}, resample=1
    )
    return config, tokenizer, made, settings


@family
def smolvlm() -> Written:
    return _idefics("SmolVLM", "SmolVLMProcessor", "SmolVLMImageProcessor")


@family
def idefics3() -> Written:
    return _idefics("Idefics3", "Idefics3Processor", "Idefics3ImageProcessor")


@family
def internvl() -> Written:
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = make_tokenizer(["<|im_start|>", "<|im_end|>"], named)
    tokenizer.chat_template = chatml("<IMG_CONTEXT>\n")
    tower = {**TOWER, "image_size": [32, 32], "patch_size": [8, 8]}
    config = _of(
        "InternVL",
        "InternVLForConditionalGeneration",
        text_config={"model_type": "qwen2", **_text(tokenizer, "<|im_end|>")},
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
    return (
        config,
        tokenizer,
        images,
        {"processor_class": "InternVLProcessor", "image_seq_length": 4},
    )


# -- windows and images that see themselves --------------------------------------------------------


@family
def gemma3() -> Written:
    named = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    tokenizer = make_tokenizer(["<start_of_turn>", "<end_of_turn>"], named, bos="<bos>")
    tokenizer.chat_template = (
        "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' }}"
        "{{ 'model' if message['role'] == 'assistant' else message['role'] }}{{ '\n' }}"
        "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
        "{{ '<start_of_image>' }}{% else %}{{ part['text'] | trim }}{% endif %}{% endfor %}"
        "{% endif %}{{ '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    )
    text = _text(
        tokenizer,
        "<end_of_turn>",
        num_hidden_layers=7,
        sliding_window=12,
        query_pre_attn_scalar=16,
    )
    config = _of(
        "Gemma3",
        "Gemma3ForConditionalGeneration",
        text_config=text,
        vision_config=TOWER,
        mm_tokens_per_image=4,
        **_ids(
            tokenizer,
            image_token_index="<image_soft_token>",
            boi_token_index="<start_of_image>",
            eoi_token_index="<end_of_image>",
        ),
    )
    images = image_processor("Gemma3ImageProcessor", size={"height": 32, "width": 32})
    return config, tokenizer, images, {"processor_class": "Gemma3Processor", "image_seq_length": 4}


@family
def gemma4() -> Written:
    named = {
        "image_token": "<|image|>",
        "boi_token": "<|image>",
        "eoi_token": "<image|>",
        "audio_token": "<|audio|>",
        "boa_token": "<|audio>",
        "eoa_token": "<audio|>",
        "video_token": "<|video|>",
    }
    tokenizer = make_tokenizer(["<|turn>", "<turn|>"], named, bos="<bos>")
    tokenizer.chat_template = chat_template(
        "{{ '<|turn>' }}ROLE\nCONTENT<turn|>\n".replace("ROLE", "{{ message['role'] }}", 0),
        "<|turn>assistant\n",
        "<|image|>",
        "{{ bos_token }}",
    )
    text = _text(
        tokenizer,
        "<turn|>",
        num_hidden_layers=6,
        sliding_window=12,
        layer_types=["sliding_attention", "full_attention"] * 3,
        vocab_size_per_layer_input=len(tokenizer),
        hidden_size_per_layer_input=8,
        num_kv_shared_layers=2,
        use_bidirectional_attention="vision",
        rope_parameters=None,
    )
    tower = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "patch_size": 4,
        "pooling_kernel_size": 2,
        "position_embedding_size": 512,
    }
    config = _of(
        "Gemma4",
        "Gemma4ForConditionalGeneration",
        text_config=text,
        vision_config=tower,
        audio_config=None,
        **_ids(
            tokenizer,
            image_token_id="<|image|>",
            boi_token_id="<|image>",
            eoi_token_id="<image|>",
            video_token_id="<|video|>",
            audio_token_id="<|audio|>",
            boa_token_id="<|audio>",
            eoa_token_index="<audio|>",
        ),
    )
    images = image_processor(
        "Gemma4ImageProcessor", patch_size=4, pooling_kernel_size=2, max_soft_tokens=70
    )
    return config, tokenizer, images, {"processor_class": "Gemma4Processor"}


# -- a state from token to token, beside qwen3_5 ---------------------------------------------------


@family
def lfm3_vl() -> Written:
    tokenizer, ids = _qwen_words()
    text = _text(
        tokenizer,
        "<|im_end|>",
        num_hidden_layers=5,
        layer_types=["conv", "sliding_attention", "conv", "full_attention", "conv"],
        sliding_window=12,
    )
    tower = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    config = _of(
        "Lfm3Vl",
        "Lfm3VlForConditionalGeneration",
        text_config=text,
        vision_config=tower,
        projector_hidden_size=48,
        **ids,
    )
    return config, tokenizer, _qwen_images(), {"processor_class": "Lfm3VlProcessor"}
