"""Nothing -> a small Phi-3.5-vision folder with random weights, made to measure for some examples.

Same architecture, same code path, about a million parameters: for the demo, for tests, and for
trying a recipe on a laptop before a GPU is paid for. The vocabulary is the published one, cut down
to the tokens that the examples use, ASCII characters, and bytes: every text still encodes.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedTokenizerFast

from foveal.data.images.media import open_image
from foveal.libraries import without_deepspeed
from foveal.models.phi3_vision.config import Phi3VisionConfig
from foveal.models.phi3_vision.model import Phi3VisionForConditionalGeneration
from foveal.models.phi3_vision.processor import Phi3VisionImageProcessor, Phi3VisionProcessor
from foveal.storage import folder_written_whole

TOKENIZER = Path(__file__).parent / "tokenizer"
CONTROL = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>", "<|image|>")


@dataclass(frozen=True)
class TinySizes:
    """Sizes of a small model; images are cut into crops of `crop_size` pixels."""

    crop_size: int = 48
    patch_size: int = 8
    tower_width: int = 64
    tower_layers: int = 3
    """The last one stays unused, as in the published tower."""

    tower_heads: int = 4
    width: int = 128
    layers: int = 2
    heads: int = 4
    mlp: int = 256
    original_context: int = 4096
    rope_theta: float = 100.0
    """Small: positions up to a few hundred are told apart by more of the few frequencies."""

    initial_spread: float = 0.09
    """Standard deviation of the decoder's first weights; wide models use less."""


def tiny_config(sizes: TinySizes, tokenizer: PreTrainedTokenizerFast) -> Phi3VisionConfig:
    """Configure a small model for a tokenizer."""
    image, start, end = map(tokenizer.convert_tokens_to_ids, ("<|image|>", "<s>", "<|endoftext|>"))
    ids = {"image_token_id": image, "bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
    return sized_config(sizes, len(tokenizer), ids)


def sized_config(
    sizes: TinySizes, vocabulary: int, ids: Mapping[str, int | None]
) -> Phi3VisionConfig:
    """Configure a model of some sizes; its rotary factors are all one."""
    factors = [1.0] * (sizes.width // sizes.heads // 2)
    settings: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": sizes.width,
        "intermediate_size": sizes.mlp,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": sizes.original_context,
        "rope_theta": sizes.rope_theta,
        "rope_scaling": {"type": "su", "short_factor": factors, "long_factor": factors},
        "initializer_range": sizes.initial_spread,
        "vision_config": {
            "hidden_size": sizes.tower_width,
            "intermediate_size": sizes.tower_width * 4,
            "num_hidden_layers": sizes.tower_layers,
            "num_attention_heads": sizes.tower_heads,
            "image_size": sizes.crop_size,
            "patch_size": sizes.patch_size,
        },
    }
    return Phi3VisionConfig(**settings, **ids)


@cache
def _published() -> tuple[Tokenizer, dict[str, Any], list[tuple[str, str]]]:
    """Read the published tokenizer, the content of its file, and which two tokens are merged."""
    published = Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))
    tree = json.loads(published.to_str())
    return published, tree, [_pair(merge) for merge in tree["model"]["merges"]]


def cut_vocabulary(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Cut the published tokenizer down to what some texts need; ids keep their order."""
    published, tree, merges = _published()
    vocabulary: dict[str, int] = tree["model"]["vocab"]
    parents = {"".join(pair): pair for pair in merges}
    kept = {token for token in vocabulary if token.startswith("<") and token.endswith(">")}
    kept |= {token for token in vocabulary if len(token) == 1 and (token.isascii() or token == "▁")}
    wanted = [token for text in texts for token in published.encode(text).tokens]
    while wanted:  # a token is reached only through the two that it is merged from
        token = wanted.pop()
        if token in vocabulary and token not in kept:
            kept.add(token)
            wanted += parents.get(token, ())
    ordered = sorted(kept, key=vocabulary.__getitem__)
    added = [one for one in tree["added_tokens"] if one["content"] in (*kept, *CONTROL)]
    ids = [0, 1, 2, *range(len(ordered), len(ordered) + len(added) - 3)]
    cut = tree | {
        "model": tree["model"]
        | {
            "vocab": {token: index for index, token in enumerate(ordered)},
            "merges": [pair for pair in merges if {*pair, "".join(pair)} <= kept],
        },
        # <unk>, <s>, </s> stay 0 to 2
        "added_tokens": [one | {"id": index} for one, index in zip(added, ids, strict=True)],
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(cut)),
        bos_token="<s>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        chat_template=json.loads((TOKENIZER / "tokenizer_config.json").read_text(encoding="utf-8"))[
            "chat_template"
        ],
    )


def _pair(merge: str | list[str]) -> tuple[str, str]:
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def write_tiny(
    folder: Path,
    seed: int,
    sizes: TinySizes | None = None,
    texts: Iterable[str] = (),
    images: Sequence[Path] = (),
    num_crops: int = 4,
) -> None:
    """Write a model folder with weights drawn from `seed`.

    Args:
        folder: new.
        seed: start of the random weights.
        sizes: of the model.
        texts: that its vocabulary should suit.
        images: whose image tokens shall be zero on average. What all image tokens have in common
            would drown, at first, the little in which they differ.
        num_crops: most crops an image.
    """
    sizes = sizes or TinySizes()
    tokenizer = cut_vocabulary(texts)
    side = sizes.crop_size // sizes.patch_size // 2
    image_processor = Phi3VisionImageProcessor(num_crops, sizes.crop_size, side**2)
    processor = Phi3VisionProcessor(image_processor, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Phi3VisionForConditionalGeneration(tiny_config(sizes, tokenizer))
    center_image_tokens(model, processor, images)
    model.generation_config.eos_token_id = list(processor.end_ids)
    with folder_written_whole(folder, alone=True) as part:
        with without_deepspeed():
            model.save_pretrained(part)
        processor.save_pretrained(part)


@torch.no_grad()
def center_image_tokens(
    model: Phi3VisionForConditionalGeneration,
    processor: Phi3VisionProcessor,
    images: Sequence[Path],
) -> None:
    """Move the projection's last bias so that image tokens of `images` have the mean zero."""
    if not images:
        return
    tokens = []
    for path in images:
        image = open_image(path)
        rows, columns = processor.grid(*image.size)
        size = processor.image_processor.crop_size
        tokens += model.get_image_features(
            processor.cut(image), torch.tensor([[rows * size, columns * size]])
        )
    last = model.model.vision_embed_tokens.img_projection[-1]
    assert isinstance(last, nn.Linear)
    last.bias.sub_(torch.cat(tokens).mean(0))
