#!/usr/bin/env bash
# PEFT trains and saves every module whose name ends like one of modules_to_save, not those that are called so.
#
# Guessed:  modules_to_save=["norm"] takes the module called norm, as target_modules=["q_proj"] takes those called q_proj
#           and target_modules=["proj"] none.
# Happens:  of a Qwen3 of two layers it takes nine: input_layernorm, post_attention_layernorm, q_norm and k_norm of each
#           layer too. ["head"] takes lm_head. A module called out cannot be saved beside LoRA at all: lora_dropout ends
#           so.
# Why:      peft/utils/other.py, _set_trainable compares by key.endswith(name); target modules go through
#           peft/tuners/tuners_utils.py, check_target_module_exists, which wants a dot before it.
# Matters:  weights that were to stay learn at the adapters' rate and travel in its file; nothing but the count of
#           trainable parameters tells.
# Versions: peft 0.21.2, transformers 5.23.0, torch 2.13.0, accelerate 1.15.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" torch==2.13.0 transformers==5.23.0 peft==0.21.2 accelerate==1.15.0 numpy==2.4.6

python - <<'PYTHON'
import sys

import torch
from peft import LoraConfig, get_peft_model
from peft.utils import ModulesToSaveWrapper
from transformers import Qwen3Config, Qwen3ForCausalLM

SIZE = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}


def saved(name):
    model = Qwen3ForCausalLM(Qwen3Config(**SIZE, **HEADS, tie_word_embeddings=False))
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=[name]))
    return [
        found.removeprefix("base_model.model.")
        for found, module in adapted.named_modules()
        if isinstance(module, ModulesToSaveWrapper)
    ]


def refusal(make):
    try:
        make()
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"[:110]
    return "none"


class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj, self.out = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)


norms, heads = saved("norm"), saved("head")
print(f"modules_to_save=['norm'] takes {len(norms)}:", *norms)
print("modules_to_save=['head'] takes:", *heads)
model = Qwen3ForCausalLM(Qwen3Config(**SIZE, **HEADS))
as_target = refusal(lambda: get_peft_model(model, LoraConfig(target_modules=["proj"])))
print("target_modules=['proj']:", as_target)
out = refusal(lambda: get_peft_model(Small(), LoraConfig(target_modules=["q_proj"], modules_to_save=["out"])))
print("modules_to_save=['out'] beside LoRA:", out)
sys.exit(not (len(norms) == 9 and heads == ["lm_head"] and "not found" in as_target and "ModuleDict" in out))
PYTHON
