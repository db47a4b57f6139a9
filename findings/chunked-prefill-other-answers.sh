#!/usr/bin/env bash
# A prompt read in pieces (prefill_chunk_size) has another answer from PaliGemma and Gemma 3.
#
# Guessed:  prefill_chunk_size saves memory and changes nothing but the last digits.
# Happens:  PaliGemma's and Gemma 3's logits move, with no word; Qwen2-VL's and LLaVA's do not. Gemma 3's stay where no cut
#           goes through the picture.
# Why:      models/paligemma and models/gemma3 let a prompt, or a picture's tokens, look ahead
#           (create_causal_mask_mapping); generation/utils.py, _prefill hands the model a piece, whose last token has
#           nothing ahead of it yet, and the cache keeps what it saw.
# Matters:  long pages on a small card: scores change with a setting that is for memory. Set it to a length that is not
#           reached, or to one that ends behind the pictures.
# Versions: transformers 5.23.0, torch 2.13.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" torch==2.13.0 transformers==5.23.0 numpy==2.4.6

python - <<'PYTHON'
import sys

import torch
import transformers
from transformers import CLIPVisionConfig, Gemma3TextConfig, GemmaConfig, LlamaConfig, SiglipVisionConfig

PICTURE = 20
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
WORDS = {**SIZES, "vocab_size": 24, "num_key_value_heads": 1, "head_dim": 16}
WORDS |= {"eos_token_id": None, "bos_token_id": None, "pad_token_id": 0}
IMAGE = {"image_size": 56, "patch_size": 14}
FAMILIES = {
    "PaliGemma": {
        "text_config": GemmaConfig(**WORDS),
        "vision_config": SiglipVisionConfig(**SIZES, **IMAGE, projection_dim=32),
        "projection_dim": 32,
        "image_token_id": PICTURE,
    },
    "Gemma3": {
        "text_config": Gemma3TextConfig(**WORDS),
        "vision_config": SiglipVisionConfig(**SIZES, **IMAGE),
        "image_token_id": PICTURE,
        "mm_tokens_per_image": 16,
    },
    "Llava": {
        "text_config": LlamaConfig(**WORDS),
        "vision_config": CLIPVisionConfig(**SIZES, **IMAGE),
        "image_token_id": PICTURE,
    },
}
IDS = torch.tensor([[1, 2, *[PICTURE] * 16, 3, 4, 5, 6, 7, 8]])


def moved(family, settings, size):
    """Give how far the first word's logits move if the prompt is read in pieces."""
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForConditionalGeneration")(getattr(transformers, f"{family}Config")(**settings))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.2)
    question = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "pixel_values": torch.randn(1, 3, 56, 56)}
    if family != "Llava":
        question["token_type_ids"] = (IDS == PICTURE).long()
    logits = [
        model.eval()
        .generate(**question, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True, **how)
        .logits[0]
        for how in ({}, {"prefill_chunk_size": size})
    ]
    return (logits[0] - logits[1]).abs().max().item()


seen = {}
for family, settings in FAMILIES.items():
    for size in (10, 18):
        seen[family, size] = moved(family, settings, size)
        print(f"{family}, pieces of {size}, the picture in places 2 to 17: logits move by {seen[family, size]:.6f}")
changed = {key for key, far in seen.items() if far > 1e-3}
sys.exit(changed != {("PaliGemma", 10), ("PaliGemma", 18), ("Gemma3", 10)})
PYTHON
