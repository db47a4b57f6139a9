#!/usr/bin/env bash
# GLM-4.1V's second answer about two pictures is one about the second picture twice.
#
# Guessed:  generate(num_return_sequences=2) and num_beams=2 on a prompt of pictures A and B: each answer sees A and B.
# Happens:  with the GLM-4V family one answer sees A and A, the other B and B, from the first token on; Qwen2.5-VL's see
#           A and B. No error: pictures of one size have as many tokens.
# Why:      generation/utils.py, _expand_multimodal_outputs repeats the group of a prompt's pictures; GLM's own of the same
#           name (models/glm4v/modeling_glm4v.py, and so in glm46v, glm4v_moe, glm_ocr) repeats each picture where it
#           stands, A A B B.
# Matters:  beam search, best of n, answers sampled for a preference set or for rewards: one prompt's answers differ by what
#           they saw. With as many prompts as answers wanted, each written out, nothing is wrong.
# Versions: transformers 5.23.0, torch 2.13.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" torch==2.13.0 transformers==5.23.0 numpy==2.4.6

python - <<'PYTHON'
import sys

import torch
import transformers

IMAGE = 9
POSITIONS = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
WORDS = {
    "vocab_size": 20,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
TOWER = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": 14,
    "out_hidden_size": 32,
}
MARKS = {"image_start_token_id": 3, "image_end_token_id": 4, "video_start_token_id": 5, "video_end_token_id": 6}
SETTINGS = {"Glm4v": {"image_size": 28, **TOWER}, "Qwen2_5_VL": {"fullatt_block_indexes": [0], **TOWER}}


def tiny(family):
    text = {**WORDS, "rope_parameters": {**POSITIONS, "partial_rotary_factor": 1.0}}
    marks = {**MARKS, "vision_start_token_id": 3, "vision_end_token_id": 4, "video_token_id": 10}
    config = getattr(transformers, f"{family}Config")(
        text_config=text, vision_config=SETTINGS[family], image_token_id=IMAGE, **marks
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.2)
    return model


def asked(first, second):
    """Make a prompt of two pictures of 28 x 28, one token each, and a question."""
    ids = torch.tensor([[7, 3, IMAGE, 4, 8, 3, IMAGE, 4, 11, 12]])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == IMAGE).int(),
        "pixel_values": torch.cat([first, second]),
        "image_grid_thw": torch.tensor([[1, 2, 2], [1, 2, 2]]),
    }


def first_logits(model, question, **options):
    made = model.generate(
        **question, max_new_tokens=1, output_logits=True, return_dict_in_generate=True, **options
    )
    return made.logits[0]


torch.manual_seed(1)
pictures = {"A": torch.randn(4, 3 * 2 * 14 * 14), "B": torch.randn(4, 3 * 2 * 14 * 14)}
seen = {}
for family in SETTINGS:
    model = tiny(family)
    known = {
        one + other: first_logits(model, asked(pictures[one], pictures[other]), do_sample=False)[0]
        for one in "AB"
        for other in "AB"
    }
    question = asked(pictures["A"], pictures["B"])
    for how in ({"num_return_sequences": 2, "do_sample": True}, {"num_beams": 2, "do_sample": False}):
        saw = [
            [name for name, logits in known.items() if torch.allclose(row, logits, atol=1e-4)]
            for row in first_logits(model, question, **how)
        ]
        seen.setdefault(family, []).append(saw)
        print(f"{family}, {how}: the two answers to A, B saw", saw)
both, each = [["AB"], ["AB"]], [["AA"], ["BB"]]
sys.exit(seen != {"Glm4v": [each, each], "Qwen2_5_VL": [both, both]})
PYTHON
