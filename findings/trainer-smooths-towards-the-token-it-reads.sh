#!/usr/bin/env bash
# With label smoothing transformers' Trainer teaches most image-text models to repeat the token that they read.
#
# Guessed:  label_smoothing_factor=0.1 smooths the loss that the model computes itself: of the next token, for every
#           class that Trainer knows.
# Happens:  for Gemma 3 it is the next token's; for LLaVA it is that of the token at the same place. Of 97 types of
#           AutoModelForImageTextToText nine are shifted; Qwen-VL, InternVL, SmolVLM, GLM-V and Llama 4 are not.
# Why:      transformers/trainer.py, compute_loss takes the labels away from the model and shifts them only for a class
#           that is named in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES (models/auto/modeling_auto.py); Gemma's classes stand there
#           beside the image-text list, the others only in that.
# Matters:  the loss falls fast and looks well, and the model learns to copy its input; no word is said.
# Versions: transformers 5.23.0, torch 2.13.0, accelerate 1.15.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 numpy==2.4.6

python - <<'PYTHON'
import sys

import torch
from transformers import (
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Trainer,
    TrainingArguments,
)
from transformers.models.auto import modeling_auto

WORDS = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
torch.manual_seed(0)
models = {
    "LLaVA": LlavaForConditionalGeneration(
        LlavaConfig(
            text_config=LlamaConfig(**WORDS, **HEADS),
            vision_config=CLIPVisionConfig(**TOWER, image_size=28, patch_size=14),
            image_token_index=63,
        )
    ),
    "Gemma 3": Gemma3ForConditionalGeneration(
        Gemma3Config(
            text_config={**WORDS, **HEADS},
            vision_config={**TOWER, "image_size": 28, "patch_size": 14},
            mm_tokens_per_image=4,
            image_token_index=63,
        )
    ),
}
ids = torch.randint(0, 60, (1, 12))
arguments = TrainingArguments("out", label_smoothing_factor=0.1, use_cpu=True, report_to=[])


def smoothed(logits, targets):
    told = -logits.double().log_softmax(-1)
    right = told.gather(-1, targets[..., None]).mean()
    return (0.9 * right + 0.1 * told.mean()).item()


seen = {}
for name, model in models.items():
    torch.nn.init.normal_(model.get_output_embeddings().weight)  # so that it has opinions
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=ids).logits
        loss = Trainer(model=model, args=arguments).compute_loss(model, {"input_ids": ids, "labels": ids.clone()})
    next_token, same_token = smoothed(logits[:, :-1], ids[:, 1:]), smoothed(logits, ids)
    seen[name] = "next" if abs(loss - next_token) < 1e-3 else "same" if abs(loss - same_token) < 1e-3 else "neither"
    print(f"{name}: Trainer {loss:.4f}; of the next token {next_token:.4f}, of the same {same_token:.4f}")

shifted = set(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
types = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
right = sorted(kind for kind, found in types.items() if found in shifted)
print(f"{len(right)} of {len(types)} types are shifted:", *right)
sys.exit(seen != {"LLaVA": "same", "Gemma 3": "next"} or (len(right), len(types)) != (9, 97))
PYTHON
