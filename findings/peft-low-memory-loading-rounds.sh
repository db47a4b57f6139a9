#!/usr/bin/env bash
# PEFT's low_cpu_mem_usage=True rounds an adapter to the base model's format and then hands it out as float32.
#
# Guessed:  low_cpu_mem_usage saves memory while an adapter is loaded; what is loaded is what is in the file, as without it.
# Happens:  an adapter that learnt in float32 on a bfloat16 base, as it does by itself, comes back with nearly every number
#           changed, by up to 1/256 of itself, and its format still says float32. On a float16 base too, there by 1/2048. On
#           a float32 base, and without the option, no bit changes.
# Why:      peft/utils/save_and_load.py, set_peft_model_state_dict takes the file's tensors as they are and then calls
#           _move_adapter_to_device_of_base_layer of peft/tuners/tuners_utils.py, which casts to the base layer's format too;
#           cast_adapter_dtype makes the rounded numbers float32 again.
# Matters:  loading many adapters for serving and comparing their answers with training's; going on with an adapter's training
#           from what was so loaded, where steps smaller than 1/256 of a weight were kept by float32 alone.
# Versions: peft 0.21.2, transformers 5.24.0, torch 2.13.0, accelerate 1.15.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" torch==2.13.0 transformers==5.24.0 peft==0.21.2 accelerate==1.15.0 numpy==2.4.6

python - <<'PYTHON'
import sys

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file


def base(dtype):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64)).to(dtype)


def learn(dtype, folder):
    """Take 20 steps with an adapter; save it."""
    torch.manual_seed(1)
    model = get_peft_model(base(dtype), LoraConfig(r=8, target_modules=["0", "2"]))
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-4)
    inputs, wanted = torch.randn(2, 32, 64).to(dtype)
    for _ in range(20):
        (model(inputs) - wanted).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return load_file(f"{folder}/adapter_model.safetensors")


def compare(written, folder, dtype, low):
    """Give the share of numbers that changed, by how much of themselves at most, and the formats."""
    model = PeftModel.from_pretrained(base(dtype), folder, low_cpu_mem_usage=low)
    loaded = {name.replace(".default", ""): weight.detach() for name, weight in model.named_parameters() if "lora" in name}
    before = torch.cat([written[name].flatten() for name in sorted(written)])
    after = torch.cat([loaded[name].float().flatten() for name in sorted(written)])
    share = (after != before).float().mean().item()
    kinds = {str(one.dtype) for one in (*written.values(), *loaded.values())}
    return share, ((after - before).abs() / before.abs()).max().item(), kinds


as_told = True
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    written = learn(dtype, str(dtype))
    for low in (False, True):
        share, apart, kinds = compare(written, str(dtype), dtype, low)
        print(f"base {dtype}, low_cpu_mem_usage={low}: {share:.1%} of the numbers changed, by up to {apart:.1e}; {kinds}")
        as_told &= kinds == {"torch.float32"}
        rounded = low and dtype != torch.float32
        as_told &= share > 0.9 and apart > 2**-13 if rounded else share == 0
        as_told &= dtype != torch.bfloat16 or not low or 2**-10 < apart <= 2**-8
sys.exit(not as_told)
PYTHON
