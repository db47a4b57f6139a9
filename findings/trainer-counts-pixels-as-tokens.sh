#!/usr/bin/env bash
# transformers' Trainer counts the values of BLIP-2's pictures as tokens, and not its tokens.
#
# Guessed:  include_num_input_tokens_seen counts the language model's tokens: 12 for a row of 12, as for LLaVA.
# Happens:  a row of 12 tokens with a picture of 224 x 224 counts as 150,528; total_flos is by the same factor, 12,544, too
#           many. "non_padding" counts the tokens, if there is an attention mask.
# Why:      transformers/trainer.py, _track_num_input_tokens and floating_point_ops take numel() of the input that the
#           model's main_input_name names, and that is pixel_values (3 * 224 * 224) in Blip2ForConditionalGeneration,
#           InstructBlip, Kosmos-2 and the VisionEncoderDecoderModel of Donut and TrOCR, input_ids in most others.
# Matters:  tokens seen, tokens per second and total_flos, in the log and in trainer_state.json, compared between models.
# Versions: transformers 5.23.0, torch 2.13.0, accelerate 1.15.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 numpy==2.4.6 pillow==13.0.0

python - <<'PYTHON'
import sys

import torch
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

IMAGE, QUERIES, WORDS = 31, 4, 8
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def blip():
    text = {"model_type": "opt", "vocab_size": 32, "hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 16}
    text |= {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64}
    vision = SMALL | {"image_size": 224, "patch_size": 14}
    reader = SMALL | {"vocab_size": 32, "encoder_hidden_size": 16}
    sizes = {"vision_config": vision, "qformer_config": reader, "text_config": text, "num_query_tokens": QUERIES}
    return Blip2ForConditionalGeneration(Blip2Config(**sizes, image_token_index=IMAGE))


def llava():
    vision = CLIPVisionConfig(**SMALL, image_size=224, patch_size=112)
    text = SMALL | {"model_type": "llama", "vocab_size": 32}
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, vision_feature_layer=-1)
    return LlavaForConditionalGeneration(config)


def counted(model, how):
    """Train one step of two rows; give the tokens that Trainer counted, and its operations by the model's size."""
    ids = torch.tensor([IMAGE] * QUERIES + list(range(3, 3 + WORDS)))
    labels = torch.where(ids == IMAGE, -100, ids)
    row = {"pixel_values": torch.zeros(3, 224, 224), "input_ids": ids, "labels": labels}
    row["attention_mask"] = torch.ones_like(ids)
    plain = {"report_to": [], "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "max_steps": 1}
    options = TrainingArguments("run", per_device_train_batch_size=2, include_num_input_tokens_seen=how, **plain)
    trainer = Trainer(model, options, train_dataset=[row, row])
    trainer.train()
    operations = trainer.state.total_flos / (6 * model.num_parameters(exclude_embeddings=True))
    return trainer.state.num_input_tokens_seen, round(operations)


seen = {(make.__name__, how): counted(make(), how) for make in (llava, blip) for how in ("all", "non_padding")}
for (name, how), (tokens, operations) in seen.items():
    print(f"{name}, {how}: {tokens} tokens in 2 rows of {QUERIES + WORDS}; total_flos as of {operations}")
rows, pixels = 2 * (QUERIES + WORDS), 2 * 3 * 224 * 224
sys.exit(list(seen.values()) != [(rows, rows), (rows, rows), (pixels, pixels), (rows, pixels)])
PYTHON
