#!/usr/bin/env bash
# LLaVA-OneVision's token count for two pictures is five times what its processor then writes.
#
# Guessed:  _get_num_multimodal_tokens gives, for the sizes of a sample's pictures, the placeholders that the
#           processor puts in; servers plan memory by it.
# Happens:  for 640 x 480 and 800 x 600 it says 2929 and 4725. Alone each picture has just that; together in one
#           sample they have 730 each.
# Why:      transformers/models/llava_onevision/processing_llava_onevision.py: replace_image_token asks whether a
#           sample has several pictures and then leaves out the crops; _get_num_multimodal_tokens does not.
# Matters:  samples of several pictures are turned away as too long, or batches run at a fifth of their room.
# Versions: transformers 5.23.0, torch 2.13.0, torchvision 0.28.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" torch==2.13.0 torchvision==0.28.0 transformers==5.23.0 pillow==13.0.0

python - <<'PYTHON'
import sys

import torchvision_alone  # noqa: F401
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedTokenizerFast,
)

words = Tokenizer(models.WordLevel({"<unk>": 0, "<image>": 1, "<video>": 2}, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
special = {"image_token": "<image>", "video_token": "<video>"}
processor = LlavaOnevisionProcessor(
    LlavaOnevisionImageProcessorPil(),
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", extra_special_tokens=special),
    video_processor=LlavaOnevisionVideoProcessor(),
    num_image_tokens=729,
    vision_feature_select_strategy="full",
)
SIZES = [(480, 640), (600, 800)]
pictures = [Image.new("RGB", (width, height)) for height, width in SIZES]


def written(*shown):
    text = " ".join(["<image>"] * len(shown))
    ids = processor(text=text, images=[list(shown)], return_tensors="pt")["input_ids"]
    return int((ids == 1).sum())


said = processor._get_num_multimodal_tokens(image_sizes=SIZES)["num_image_tokens"]
alone, together = [written(one) for one in pictures], written(*pictures)
print("said:", said, "written alone:", alone, "written together:", together)
sys.exit((said, alone, together) != ([2929, 4725], [2929, 4725], 1460))
PYTHON
