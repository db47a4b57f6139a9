#!/usr/bin/env bash
# A saved cache of one picture is read at other places once the model has answered about another picture or none.
#
# Guessed:  a prefix that is read once into a DynamicCache and copied for each question, as transformers' guide to caching
#           shows it, answers as the whole prompt does, whatever the model was asked in between.
# Happens:  asked at once it does; after a request about a smaller picture the question stands 28 places too far, and after
#           one without a picture 30: other logits, other answers, no warning. Of Qwen2-VL, Qwen2.5-VL, Qwen3-VL and
#           GLM-4.1V each.
# Why:      transformers/models/qwen2_5_vl/modeling_qwen2_5_vl.py, _prepare_position_ids_for_generation adds
#           self.model.rope_deltas to what follows a filled cache: how many places a picture spares is kept on the model,
#           overwritten by each prompt, and not with the cache.
# Matters:  services and evaluations that read a page once and ask it many things, with two pages or two users in turn. To
#           keep rope_deltas beside the cache and set it before each question mends it.
# Versions: transformers 5.24.0, torch 2.13.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" torch==2.13.0 transformers==5.24.0 numpy==2.4.6

python - <<'PYTHON'
import copy
import sys

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, DynamicCache

BEGIN, END, IMAGE = 58, 59, 60
TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
    "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 100.0},
}
TOWER = {"depth": 1, "num_heads": 2, "out_hidden_size": 32, "patch_size": 14}
TOWERS = {
    "qwen2_vl": {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 1},
    "qwen2_5_vl": {"hidden_size": 32, "intermediate_size": 32, "fullatt_block_indexes": [0]},
    "qwen3_vl": {"hidden_size": 32, "intermediate_size": 32, "deepstack_visual_indexes": []},
    "glm4v": {"hidden_size": 32, "intermediate_size": 32, "image_size": 224},
}


def make(kind):
    """Give a model of random weights, large enough that places matter."""
    tokens = {"image_token_id": IMAGE, "vision_start_token_id": BEGIN, "vision_end_token_id": END, "video_token_id": 61}
    tokens |= {"image_start_token_id": BEGIN, "image_end_token_id": END}
    config = AutoConfig.for_model(kind, text_config=TEXT, vision_config=TOWER | TOWERS[kind], **tokens)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).eval()
    for weight in model.parameters():
        if weight.ndim == 2:
            weight.data.mul_(8)
    model.generation_config.eos_token_id = None
    return model


def prompt(side, words):
    """Give ids and pixels of a picture of side x side tokens, then words; without a picture where side is 0."""
    picture = [BEGIN, *[IMAGE] * side**2, END] if side else []
    ids = torch.tensor([[1, *picture, *words]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": (ids == IMAGE).int()}
    if side:
        pixels = torch.randn(4 * side**2, 3 * 2 * 14 * 14, generator=torch.Generator().manual_seed(side))
        inputs |= {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, 2 * side, 2 * side]])}
    return inputs


def answer(model, inputs, **options):
    """Give the answer's ids and its first logits."""
    options |= {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    told = model.generate(**inputs, **options)
    return told.sequences[0, inputs["input_ids"].shape[1] :].tolist(), told.logits[0][0]


as_told = True
for kind in TOWERS:
    model = make(kind)
    page, question = prompt(6, [2, 3]), prompt(6, [2, 3, 7, 8, 9, 10])
    with torch.no_grad():
        cache = model(**page, past_key_values=DynamicCache(config=model.config)).past_key_values
    words = {name: value for name, value in question.items() if name not in ("pixel_values", "image_grid_thw")}
    ids, logits = answer(model, question)
    print(f"{kind}: whole prompt {ids}")
    for name, between in {"at once": None, "after another picture": prompt(2, [4, 5]), "after words": prompt(0, [4, 5])}.items():
        answer(model, question)
        if between is not None:
            answer(model, between)
        shift = model.model.rope_deltas.item()
        later, seen = answer(model, words, past_key_values=copy.deepcopy(cache))
        off = (seen - logits).abs().max().item()
        print(f"  from the cache {name}: {later}, logits off by {off:.1e}, places from {shift}")
        as_told &= off < 1e-4 if between is None else off > 1e-2
        as_told &= shift == {"at once": -30, "after another picture": -2, "after words": 0}[name]
sys.exit(not as_told)
PYTHON
