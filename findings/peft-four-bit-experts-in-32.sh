#!/usr/bin/env bash
# Loaded in 4 bits and prepared for training, a mixture of experts takes more memory than it did in 16 bits.
#
# Guessed:  load_in_4bit puts the experts, nine tenths of the weights, into 4 bits, and prepare_model_for_kbit_training makes
#           norms and head 32 bits, as its docstring lists: about a third of what the model takes in 16 bits.
# Happens:  a Qwen3-VL mixture of 13.8 MB in 16 bits is 13.3 MB "in 4 bits" and 26.5 MB once prepared: all experts are in 32
#           bits. The same without experts goes from 4.3 MB to 1.5 and 2.1.
# Why:      transformers/integrations/bitsandbytes.py, replace_with_bnb_linear replaces nn.Linear, and since transformers 5 a
#           layer's experts are one parameter with three axes; peft/utils/other.py, prepare_model_for_kbit_training casts
#           every 16-bit parameter that is no Params4bit.
# Matters:  the experts of Qwen3-VL-30B-A3B, 29 billion weights, ask for 116 GB where a recipe for 4 bits reckons with 16, and
#           for 58 without the preparation. Nothing warns.
# Versions: peft 0.21.2, transformers 5.24.0, bitsandbytes 0.50.2, torch 2.13.0, accelerate 1.15.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" torch==2.13.0 transformers==5.24.0 peft==0.21.2 accelerate==1.15.0 bitsandbytes==0.50.2 \
    numpy==2.4.6

python - <<'PYTHON'
import sys

import torch
from peft import prepare_model_for_kbit_training
from transformers import AutoConfig, AutoModelForImageTextToText, BitsAndBytesConfig

TEXT = {
    "vocab_size": 128,
    "hidden_size": 128,
    "intermediate_size": 2048,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
TOWER = {"depth": 1, "hidden_size": 64, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 128}
EXPERTS = {"num_experts": 32, "num_experts_per_tok": 2, "moe_intermediate_size": 256, "decoder_sparse_step": 1}


def megabytes(model):
    return sum(weight.numel() * weight.element_size() for weight in model.parameters()) / 1e6


def sizes(kind, more):
    """Give how much the weights take in 16 bits, in 4, and in 4 once prepared; and the model."""
    tower = TOWER | {"deepstack_visual_indexes": [0]}
    config = AutoConfig.for_model(kind, text_config=TEXT | more, vision_config=tower, image_token_id=120)
    torch.manual_seed(0)
    whole = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    whole.save_pretrained(kind)
    bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
    model = AutoModelForImageTextToText.from_pretrained(kind, dtype=torch.bfloat16, quantization_config=bits)
    small = megabytes(model)
    return (megabytes(whole), small, megabytes(prepare_model_for_kbit_training(model))), model


mixture, model = sizes("qwen3_vl_moe", EXPERTS)
dense, _ = sizes("qwen3_vl", {})
for name, (whole, small, prepared) in {"mixture": mixture, "dense": dense}.items():
    print(f"{name}: {whole:.1f} MB in 16 bits, {small:.1f} in 4 bits, {prepared:.1f} once prepared for training")
kinds = {weight.dtype for name, weight in model.named_parameters() if ".experts." in name}
print("experts:", kinds)
as_told = mixture[1] > 0.9 * mixture[0] and mixture[2] > 1.8 * mixture[0] and kinds == {torch.float32}
sys.exit(not (as_told and dense[1] < 0.5 * dense[0] and dense[2] < 0.6 * dense[0]))
PYTHON
