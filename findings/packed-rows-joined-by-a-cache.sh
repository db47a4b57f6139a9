#!/usr/bin/env bash
# transformers keeps packed rows apart by their positions only if no cache is made, and one is made by default.
#
# Guessed:  position_ids that start again at 0 say where a row begins; under sdpa and eager no row sees the one before it,
#           and use_cache and gradient checkpointing change memory alone.
# Happens:  called as model(input_ids, position_ids=..., labels=...) each row reads those before it, in training too.
#           use_cache=False or gradient checkpointing keep them apart, and the loss is another. An attention mask of ones
#           joins them again.
# Why:      transformers/masking_utils.py, _preprocess_mask_arguments looks for packed rows only where attention_mask and
#           past_key_values are None; LlamaModel.forward, as nearly all, makes a DynamicCache before it, since
#           config.use_cache is True; gradient checkpointing sets it to False.
# Matters:  a training loop of one's own, and losses and scores of packed rows with any. Trainer sets use_cache to False.
# Versions: transformers 5.23.0, torch 2.13.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" torch==2.13.0 transformers==5.23.0 numpy==2.4.6

python - <<'PYTHON'
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

SIZE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
FIRST, SECOND = 5, 7


def seen(model):
    """Say by way of calling whether the second of two packed rows reads the first."""
    generator = torch.Generator().manual_seed(1)
    first, other, second = (torch.randint(64, (1, size), generator=generator) for size in (FIRST, FIRST, SECOND))
    positions = torch.cat([torch.arange(FIRST), torch.arange(SECOND)])[None]
    ones = torch.ones(1, FIRST + SECOND, dtype=torch.long)

    def reads(**how):
        alone = model(second, use_cache=False).logits
        rows = [torch.cat([row, second], 1) for row in (first, other)]
        packed = [model(row, position_ids=positions, **how).logits[:, FIRST:] for row in rows]
        apart = all((one - alone).abs().max() < 1e-9 for one in packed)
        return not apart and (packed[0] - packed[1]).abs().max().item() > 1e-6

    model.train()
    found = {"as it is": reads(), "no cache": reads(use_cache=False)}
    found["no cache, mask of ones"] = reads(use_cache=False, attention_mask=ones)
    model.activation_checkpointing_enable()
    found["gradient checkpointing"] = reads()
    return found


as_told = True
for attention in ("sdpa", "eager"):
    for config, kind in ((LlamaConfig, LlamaForCausalLM), (Qwen3Config, Qwen3ForCausalLM)):
        torch.manual_seed(0)
        found = seen(kind(config(**SIZE, **HEADS, attn_implementation=attention)).double())
        print(kind.__name__, attention, "- the second row reads the first:", found)
        as_told &= list(found.values()) == [True, False, True, False]
sys.exit(not as_told)
PYTHON
