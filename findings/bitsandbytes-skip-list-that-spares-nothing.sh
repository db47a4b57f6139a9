#!/usr/bin/env bash
# "Leave the vision tower out" puts the tower into 4 bits as before, and the head too, which was spared without the list.
#
# Guessed:  llm_int8_skip_modules=["vision_tower"] adds the tower to what is left out by itself, the head.
# Happens:  of a LLaVA all 12 matrices of the tower are in 4 bits with the list as without it, and the head, 16 bits without
#           the list, is in 4 bits with it. "model.vision_tower" spares the tower, and the head still not. With tied words
#           the head is then marked as 4 bits over the 16-bit weights that the embedding keeps, and cannot be called.
#           ["proj"] spares every q_proj, gate_proj and out_proj.
# Why:      transformers/quantizers/quantizers_utils.py, should_convert_module matches a name from its beginning or as its
#           end, and each layer of the tower begins with "model."; transformers/quantizers/base.py,
#           get_modules_to_not_convert takes a list in place of the automatic one.
# Matters:  recipes that keep the tower in 16 bits for their answers' sake; transformers 4 found such a name anywhere. Only
#           counting the layers' classes shows it. ["model.vision_tower", "lm_head"] does what is meant.
# Versions: transformers 5.24.0, bitsandbytes 0.50.2, torch 2.13.0, accelerate 1.15.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" torch==2.13.0 transformers==5.24.0 accelerate==1.15.0 bitsandbytes==0.50.2 numpy==2.4.6

python - <<'PYTHON'
import sys
from collections import Counter

import torch
from bitsandbytes.nn import Linear4bit
from transformers import BitsAndBytesConfig, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
LISTS = (None, ["vision_tower"], ["model.vision_tower"], ["model.vision_tower", "lm_head"], ["proj"])


def write(folder, tied):
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**SIZES, image_size=28, patch_size=14),
        text_config=LlamaConfig(vocab_size=128, tie_word_embeddings=tied, **SIZES),
        image_token_index=127,
        tie_word_embeddings=tied,
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)


def load(folder, spared):
    """Give the model, and how many matrices of each part are in 4 bits."""
    options = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16, llm_int8_skip_modules=spared
    )
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16, quantization_config=options)
    parts = {"tower": "model.vision_tower", "words": "model.language_model", "head": "lm_head"}
    layers = [name for name, layer in model.named_modules() if isinstance(layer, Linear4bit)]
    return model, Counter(part for part, start in parts.items() for name in layers if name.startswith(start))


def answers(model):
    try:
        model(input_ids=torch.tensor([[1, 2, 3]]))
    except AssertionError:
        return False
    return True


seen = {}
for tied in (False, True):
    write("model", tied)
    for spared in LISTS:
        model, count = load("model", spared)
        seen[tied, str(spared)] = (count["tower"], count["words"], count["head"], answers(model))
        print(f"tied words: {tied}, list {spared}: in 4 bits {dict(count)}, can be called: {seen[tied, str(spared)][-1]}")
wanted = [(12, 14, 0, True), (12, 14, 1, True), (0, 14, 1, True), (0, 14, 0, True), (4, 0, 1, True)]
tied_too = [(*one[:3], not one[2]) for one in wanted]
sys.exit(list(seen.values()) != wanted + tied_too)
PYTHON
