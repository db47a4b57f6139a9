#!/usr/bin/env bash
# attn_implementation={"": "eager"} leaves a vision-language model's language model as it was.
#
# Guessed:  the key "" sets the form of attention of the whole model, apart from parts that are named beside it.
# Happens:  only the outer config changes; text_config and vision_config, which are what runs, keep "sdpa". The plain
#           string "eager" does reach both.
# Why:      transformers/modeling_utils.py, set_attn_implementation: "" is the form of the model's own attention, and a
#           vision-language model of release 5 has none; parts are set by their names alone.
# Matters:  a kernel or mask that was chosen so is not in use, and config._attn_implementation says that it is.
# Versions: transformers 5.23.0, torch 2.13.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" torch==2.13.0 transformers==5.23.0 pillow==13.0.0 numpy==2.4.6

python - <<'PYTHON'
import sys

from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
config = LlavaConfig(
    vision_config=CLIPVisionConfig(**SIZES, image_size=28, patch_size=14),
    text_config=LlamaConfig(vocab_size=20, **SIZES),
    image_token_index=19,
)
seen = {}
for chosen in ({"": "eager"}, {"text_config": "eager"}, "eager"):
    model = LlavaForConditionalGeneration(config)
    model.set_attn_implementation("sdpa")
    model.set_attn_implementation(chosen)
    parts = model.config, model.model.language_model.config, model.model.vision_tower.config
    seen[str(chosen)] = tuple(part._attn_implementation for part in parts)
    print(f"{chosen}: whole, words, pictures = {seen[str(chosen)]}")
expected = [("eager", "sdpa", "sdpa"), ("eager", "eager", "sdpa"), ("eager", "eager", "eager")]
sys.exit([seen["{'': 'eager'}"], seen["eager"]] != [expected[0], expected[2]])
PYTHON
