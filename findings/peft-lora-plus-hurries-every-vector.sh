#!/usr/bin/env bash
# PEFT's LoRA+ gives the higher rate of B to everything with one axis: a projector's biases learn 16 times faster than it.
#
# Guessed:  create_loraplus_optimizer gives lora_B the rate times loraplus_lr_ratio, as its docstring says, and all else the rate.
# Happens:  of a projector in modules_to_save the matrices learn at 1e-4 and the biases at 1.6e-3; DoRA's magnitudes,
#           norms and biases of layers all at 1.6e-3. With DoRA on the embedding its A and B learn at 1e-6, and the magnitude
#           of the same layer 1,600 times faster.
# Why:      peft/optimizers/loraplus.py, create_loraplus_optimizer asks `"lora_B" in name or param.ndim == 1`.
# Matters:  image-text models of which the projector or norms are trained beside an adapter, and DoRA: what is tuned as "the
#           ratio of B to A" moves scales and offsets of whole layers too.
# Versions: peft 0.21.2, transformers 5.24.0, torch 2.13.0, accelerate 1.15.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" torch==2.13.0 transformers==5.24.0 peft==0.21.2 accelerate==1.15.0 numpy==2.4.6

python - <<'PYTHON'
import math
import sys

import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
torch.manual_seed(0)
model = LlavaForConditionalGeneration(
    LlavaConfig(
        vision_config=CLIPVisionConfig(**SIZES, image_size=28, patch_size=14),
        text_config=LlamaConfig(vocab_size=64, **SIZES),
        image_token_index=63,
    )
)
adapter = LoraConfig(
    r=4,
    use_dora=True,
    target_modules=["q_proj", "embed_tokens"],
    exclude_modules=".*vision_tower.*",
    modules_to_save=["multi_modal_projector", "input_layernorm"],
)
model = get_peft_model(model, adapter)
optimizer = create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-4, loraplus_lr_ratio=16)
names = {weight: name.removeprefix("base_model.model.") for name, weight in model.named_parameters()}
rates = {names[weight]: group["lr"] for group in optimizer.param_groups for weight in group["params"]}
for name, rate in sorted(rates.items()):
    print(f"{rate:.1e}  {name}")


def wanted(name):
    if "lora_embedding" in name:
        return 1e-6
    one_axis = "magnitude" in name or "norm" in name or name.endswith("bias")
    return 1.6e-3 if "lora_B" in name or one_axis else 1e-4


told = [f"multi_modal_projector.modules_to_save.default.linear_{k}.{part}" for k in (1, 2) for part in ("weight", "bias")]
there = [name.removeprefix("model.") for name in rates]
as_told = set(told) <= set(there) and sum("magnitude" in name for name in there) == 2
sys.exit(not (as_told and all(math.isclose(rate, wanted(name)) for name, rate in rates.items())))
PYTHON
