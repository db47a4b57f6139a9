"""A family's name and some texts -> a small model folder of it, as a hub would bring one.

transformers' own classes, a vocabulary of bytes and of the words that the texts hold, images read
as small as the demo's Phi reads them. Weights are drawn at random.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedTokenizerFast

from foveal.data.images.media import open_image
from foveal.libraries import without_deepspeed
from foveal.models.loading import load
from foveal.storage import folder_written_whole

WIDTH, LAYERS, HEADS, MLP = 128, 4, 4, 256
TOWER_WIDTH, TOWER_LAYERS, PATCH = 64, 2, 8
INITIAL_SPREAD = 0.09
"""Standard deviation of the first weights; wide models use less."""

ROPE_THETA = 100.0
"""Small: positions up to a few hundred are told apart by more of the few frequencies."""

WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
"""What a token lies in: a word and the space before it, one digit, signs, white space."""

IM_START, IM_END = "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class TinyFamily:
    """What one family has of its own."""

    model_type: str
    tokens: Mapping[str, str]
    """Role of a control token, as the processor names it -> the token."""

    other_tokens: tuple[str, ...]
    prompt_image: str
    """What stands for an image in its prompts."""

    processor: Mapping[str, Any]
    images: Mapping[str, Any]
    """Settings of its image processor."""

    config: Callable[[dict[str, int], dict[str, Any]], dict[str, Any]]
    """Ids of its tokens and settings of a decoder -> those of the model."""


def _text(tokenizer: PreTrainedTokenizerFast, end: str) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": MLP,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": WIDTH // HEADS,
        "initializer_range": INITIAL_SPREAD,
        "max_position_embeddings": 4096,
        "bos_token_id": None,
        "eos_token_id": tokenizer.convert_tokens_to_ids(end),
        "pad_token_id": tokenizer.pad_token_id,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
    }


def _qwen3_vl(ids: dict[str, int], text: dict[str, Any]) -> dict[str, Any]:
    quarter = WIDTH // HEADS // 8
    text["rope_parameters"] |= {"mrope_section": [2 * quarter, quarter, quarter]}
    tower = {
        "depth": TOWER_LAYERS,
        "hidden_size": TOWER_WIDTH,
        "intermediate_size": TOWER_WIDTH * 4,
        "num_heads": 4,
        "patch_size": PATCH,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": WIDTH,
        "num_position_embeddings": 256,
        "deepstack_visual_indexes": [0],
        "initializer_range": INITIAL_SPREAD,
    }
    named = {f"{name}_id": one for name, one in ids.items()}
    return {"text_config": text, "vision_config": tower, **named}


def _smolvlm(ids: dict[str, int], text: dict[str, Any]) -> dict[str, Any]:
    tower = {
        "hidden_size": TOWER_WIDTH,
        "intermediate_size": TOWER_WIDTH * 4,
        "num_hidden_layers": TOWER_LAYERS,
        "num_attention_heads": 4,
        "image_size": 48,
        "patch_size": PATCH,
        "initializer_range": INITIAL_SPREAD,
    }
    return {
        "text_config": {"model_type": "llama", **text},
        "vision_config": tower,
        "scale_factor": 2,
        "image_token_id": ids["image_token"],
        "pad_token_id": text["pad_token_id"],
    }


TINY_FAMILIES = {
    "qwen3_vl": TinyFamily(
        model_type="qwen3_vl",
        tokens={
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "vision_start_token": "<|vision_start|>",
            "vision_end_token": "<|vision_end|>",
        },
        other_tokens=(IM_START, IM_END),
        prompt_image="<|vision_start|><|image_pad|><|vision_end|>",
        processor={"processor_class": "Qwen3VLProcessor"},
        images={
            "image_processor_type": "Qwen2VLImageProcessor",
            "patch_size": PATCH,
            "merge_size": 2,
            "temporal_patch_size": 2,
            "size": {"shortest_edge": 48 * 48, "longest_edge": 50 * 200},
        },
        config=_qwen3_vl,
    ),
    "smolvlm": TinyFamily(
        model_type="smolvlm",
        tokens={
            "fake_image_token": "<fake_token_around_image>",
            "image_token": "<image>",
            "global_image_token": "<global-img>",
            "video_token": "<video>",
        },
        other_tokens=(
            IM_START,
            IM_END,
            *(f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)),
        ),
        prompt_image="<image>",
        processor={"processor_class": "SmolVLMProcessor", "image_seq_len": 9},
        images={
            "image_processor_type": "SmolVLMImageProcessor",
            "size": {"longest_edge": 192},
            "max_image_size": {"longest_edge": 48},
        },
        config=_smolvlm,
    ),
}
"""Families of which a small model can be made."""


def write_tiny_family(
    family: TinyFamily, folder: Path, seed: int, texts: Iterable[str], images: Sequence[Path]
) -> None:
    """Write a model folder with weights drawn from `seed`.

    Args:
        family: what the model is of.
        folder: new.
        seed: start of the random weights.
        texts: whose words its vocabulary holds.
        images: whose image tokens shall be zero on average. What all image tokens have in common
            would drown, at first, the little in which they differ.
    """
    tokenizer = _make_tokenizer(family, texts)
    ids = {role: tokenizer.convert_tokens_to_ids(one) for role, one in family.tokens.items()}
    config = AutoConfig.for_model(family.model_type, **family.config(ids, _text(tokenizer, IM_END)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config)
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(IM_END)
    with folder_written_whole(folder, alone=True) as part:
        tokenizer.save_pretrained(part)
        for file, settings in (("preprocessor", family.images), ("processor", family.processor)):
            (part / f"{file}_config.json").write_text(json.dumps(settings), encoding="utf-8")
        with without_deepspeed():
            model.save_pretrained(part)
            _center_image_tokens(str(part), images)


def _make_tokenizer(family: TinyFamily, texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE that writes each word of the texts as one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", *family.other_tokens, *family.tokens.values()]
    trainer = trainers.BpeTrainer(
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, "user", "assistant", "system"], trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        extra_special_tokens=dict(family.tokens),
        eos_token=IM_END,
        pad_token="<|endoftext|>",
    )
    made.chat_template = CHAT_TEMPLATE.replace("IMAGE", family.prompt_image)
    return made


@torch.no_grad()
def _center_image_tokens(folder: str, images: Sequence[Path]) -> None:
    """Take out of the projector's last layer what the image tokens of `images` have in common."""
    loaded = load(folder, None)
    family, model, processor = loaded.family, loaded.model, loaded.processor
    read: list[tuple[nn.Linear, torch.Tensor]] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and family.part_name(name).startswith("projector"):
            module.register_forward_pre_hook(lambda layer, given: read.append((layer, given[0])))
    for path in images:
        image = open_image(path)
        shape = processor.shape(*image.size)
        family.encode_images(model, processor.stack([processor.pixels(image)], [shape]))
    last, _ = read[-1]
    rows = [given.flatten(0, -2) for layer, given in read if layer is last]
    mean = torch.cat(rows).mean(0)  # (width that the layer reads,)
    last.weight.sub_(torch.outer(last.weight @ mean, mean / mean.dot(mean)))
    model.save_pretrained(folder)
