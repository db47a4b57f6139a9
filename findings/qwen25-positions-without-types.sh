#!/usr/bin/env bash
# Qwen2.5-VL counts a picture's places in a line if one of the processor's outputs is left out.
#
# Guessed:  input_ids, pixel_values and image_grid_thw are enough, as in every release before 5, or there is an error.
# Happens:  without mm_token_type_ids all logits are others, equal to those of positions 0, 1, 2, ...: the picture's
#           rows and columns are not told apart. No warning. Qwen2-VL raises for the same call.
# Why:      transformers/models/qwen2_5_vl/modeling_qwen2_5_vl.py, compute_3d_position_ids: no types, no
#           get_rope_index; the text model then makes plain positions.
# Matters:  data collators and caches that were written for release 4 and pass what they know train another model.
# Versions: transformers 5.23.0, torch 2.13.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" torch==2.13.0 transformers==5.23.0 pillow==13.0.0 numpy==2.4.6

python - <<'PYTHON'
import sys

import torch
import transformers

TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
}
IDS = {"image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63}
TOWERS = {
    "Qwen2_5_VL": {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32, "fullatt_block_indexes": [0]},
    "Qwen2VL": {"depth": 1, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 1, "num_heads": 2},
}
ids = torch.tensor([[1, 62] + [60] * 16 + [63, 2, 3, 4]])


@torch.no_grad()
def off(family):
    """Largest change of the logits without types, and of plain positions against that."""
    config = getattr(transformers, f"{family}Config")(text_config=TEXT, vision_config=TOWERS[family], **IDS)
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForConditionalGeneration")(config).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    given = {"input_ids": ids, "pixel_values": torch.randn(64, 1176), "image_grid_thw": torch.tensor([[1, 8, 8]])}
    right = model(**given, mm_token_type_ids=(ids == 60).long()).logits
    try:
        without = model(**given).logits
    except ValueError as error:
        return str(error)
    plain = model(**given, position_ids=torch.arange(ids.shape[1]).expand(3, 1, -1)).logits
    return (right - without).abs().max().item(), (plain - without).abs().max().item()


seen = {family: off(family) for family in TOWERS}
print("Qwen2.5-VL without types: logits off by {:.3f}; against plain positions off by {}".format(*seen["Qwen2_5_VL"]))
print("Qwen2-VL without types:", seen["Qwen2VL"])
wrong, plain = seen["Qwen2_5_VL"]
sys.exit(not (wrong > 0.01 and plain == 0.0 and isinstance(seen["Qwen2VL"], str)))
PYTHON
