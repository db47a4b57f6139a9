#!/usr/bin/env bash
# A Llama 3.2 Vision with words added is saved without a word, and cannot be loaded again.
#
# Guessed:  resize_token_embeddings, save_pretrained, from_pretrained: the same logits, as with any model of transformers.
# Happens:  from_pretrained refuses: the file has 110 rows, and the model wants 118. Before, the embedding has 108 rows for
#           100 words; after resize_token_embeddings(110), 110, the picture's own token among the new words.
# Why:      models/mllama/modeling_mllama.py, MllamaTextModel makes eight rows more than vocab_size;
#           modeling_utils.py, resize_token_embeddings gives the table as many rows as asked for and writes that down as
#           vocab_size, from which the next one is made eight larger.
# Matters:  the weights of a run that added a token: the file is whole, and only ignore_mismatched_sizes=True opens it, with
#           a table drawn anew. LLaVA's goes round.
# Versions: transformers 5.23.0, torch 2.13.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" torch==2.13.0 transformers==5.23.0 numpy==2.4.6

python - <<'PYTHON'
import sys

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MllamaConfig,
    MllamaForConditionalGeneration,
)

WORDS = {"vocab_size": 100, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_global_layers": 1,
    "attention_heads": 2,
    "vision_output_dim": 32,
    "image_size": 28,
    "patch_size": 14,
    "supported_aspect_ratios": [[1, 1]],
    "intermediate_layers_indices": [0],
}
CROSS = {"cross_attention_layers": [1], "num_key_value_heads": 1, "pad_token_id": 0}
clip = CLIPVisionConfig(image_size=28, patch_size=14, **{**WORDS, "vocab_size": None} | {"num_hidden_layers": 2})
KINDS = {
    "Mllama": (MllamaForConditionalGeneration, MllamaConfig(vision_config=TOWER, text_config=WORDS | CROSS, image_token_index=100)),
    "LLaVA": (
        LlavaForConditionalGeneration,
        LlavaConfig(vision_config=clip, text_config=LlamaConfig(**WORDS), image_token_index=99),
    ),
}


def rows(model):
    return len(model.get_input_embeddings().weight), len(model.get_output_embeddings().weight)


def round_trip(kind, config, words):
    """Give the rows of embedding and head at first, resized, and loaded, and whether the logits are the same."""
    torch.manual_seed(0)
    model = kind(config).eval()
    seen = [rows(model)]
    if words:
        model.resize_token_embeddings(words)
    seen.append(rows(model))
    model.save_pretrained("saved")
    try:
        loaded = kind.from_pretrained("saved").eval()
    except RuntimeError:
        return [*seen, "refused"]
    ids = torch.tensor([[1, 2, 3]])
    return [*seen, rows(loaded), torch.equal(model(input_ids=ids).logits, loaded(input_ids=ids).logits)]


seen = {(name, words): round_trip(*kind, words) for name, kind in KINDS.items() for words in (None, 110)}
for (name, words), found in seen.items():
    print(f"{name}, resized to {words}: rows of embedding and head", *found)
sys.exit(
    seen
    != {
        ("Mllama", None): [(108, 100), (108, 100), (108, 100), True],
        ("Mllama", 110): [(108, 100), (110, 110), "refused"],
        ("LLaVA", None): [(100, 100), (100, 100), (100, 100), True],
        ("LLaVA", 110): [(100, 100), (110, 110), (110, 110), True],
    }
)
PYTHON
