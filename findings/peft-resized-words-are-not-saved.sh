#!/usr/bin/env bash
# PEFT saves the rows of added tokens with an adapter of a language model, and leaves them out with a vision-language one.
#
# Guessed:  after resize_token_embeddings an adapter's file has the embeddings too, as save_embedding_layers="auto" does it
#           for Llama: what was saved answers as before.
# Happens:  Llama's file has embed_tokens and lm_head; LLaVA's, with a Llama in it, has the LoRA weights alone, and no
#           warning. New words that began as copies of known ones have the mean of all rows when loaded: other logits.
# Why:      peft/utils/save_and_load.py, get_peft_model_state_dict compares model.config.vocab_size with the base's;
#           composite configurations have it in their text_config, and None is "not resized".
# Matters:  markers of boxes, places or answers added before LoRA: the rows that the adapter learnt with are gone with the
#           process. save_embedding_layers=True, or trainable_token_indices, keeps them.
# Versions: peft 0.21.2, transformers 5.23.0, torch 2.13.0, accelerate 1.15.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" torch==2.13.0 transformers==5.23.0 peft==0.21.2 accelerate==1.15.0 numpy==2.4.6

python - <<'PYTHON'
import sys
import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = LlamaConfig(vocab_size=32, tie_word_embeddings=False, **SIZES)
TOWER = CLIPVisionConfig(image_size=28, patch_size=14, **SIZES)
BASES = {
    "Llama": (LlamaForCausalLM, TEXT),
    "LLaVA": (LlavaForConditionalGeneration, LlavaConfig(vision_config=TOWER, text_config=TEXT, image_token_index=31)),
}
NEW = torch.tensor([[1, 2, 33, 35]])


def with_four_words_more(kind, folder):
    model = kind.from_pretrained(folder)
    model.resize_token_embeddings(36)
    return model


def begin_as_known_words(model):
    """Let each new word begin as one that tells what it marks."""
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):
        table.weight.data[32:] = table.weight.data[4:8]
    return model


seen = {}
for name, (kind, config) in BASES.items():
    torch.manual_seed(0)
    kind(config).save_pretrained(name)
    settings = LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    learnt = get_peft_model(begin_as_known_words(with_four_words_more(kind, name)), settings).eval()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        learnt.save_pretrained(f"{name}-adapter")
    told = any("resized" in str(one.message) for one in said)
    kept = [key for key in load_file(f"{name}-adapter/adapter_model.safetensors") if "lora" not in key]
    loaded = PeftModel.from_pretrained(with_four_words_more(kind, name), f"{name}-adapter").eval()
    with torch.no_grad():
        apart = (learnt(input_ids=NEW).logits - loaded(input_ids=NEW).logits).abs().max().item()
    seen[name] = (len(kept), told, apart > 1e-3)
    vocabulary = getattr(learnt.config, "vocab_size", None)
    print(f"{name}: config.vocab_size {vocabulary}, saved beside LoRA {kept}, told {told}, logits differ by {apart:.5f}")
sys.exit(seen != {"Llama": (2, True, False), "LLaVA": (0, False, True)})
PYTHON
