#!/usr/bin/env bash
# Gemma 3's pan-and-scan, switched on in the checkpoint's image processor, is off through the processor.
#
# Guessed:  do_pan_and_scan in preprocessor_config.json means that AutoProcessor cuts wide pictures into crops.
# Happens:  the image processor alone gives 4 pictures for 1500 x 500; the processor that holds it gives 1. Only
#           do_pan_and_scan=True at each call has an effect. It stays so after save_pretrained and loading.
# Why:      transformers/models/gemma3/processing_gemma3.py: the class's default images_kwargs
#           ("do_pan_and_scan": False) are handed to the image processor as if the caller had said so.
# Matters:  documents are seen at 896 x 896 by people who set crops, and by servers that read their folder.
# Versions: transformers 5.23.0, torch 2.13.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" torch==2.13.0 transformers==5.23.0 pillow==13.0.0 numpy==2.4.6

python - <<'PYTHON'
import sys

from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import Gemma3ImageProcessorPil, Gemma3Processor, PreTrainedTokenizerFast

SPECIAL = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
words = Tokenizer(models.WordLevel({word: k for k, word in enumerate(["<unk>", *SPECIAL.values()])}, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
crops = {"pan_and_scan_min_crop_size": 256, "pan_and_scan_max_num_crops": 4, "pan_and_scan_min_ratio_to_activate": 1.2}
pictures = Gemma3ImageProcessorPil(do_pan_and_scan=True, **crops)
made = Gemma3Processor(
    pictures, PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", extra_special_tokens=SPECIAL)
)
made.save_pretrained("saved")
loaded = Gemma3Processor.from_pretrained("saved")
WIDE = Image.new("RGB", (1500, 500))


def count(processor, **options):
    text = {} if processor is pictures else {"text": "<start_of_image>"}
    return len(processor(images=[WIDE], return_tensors="pt", **text, **options)["pixel_values"])


seen = {
    "image processor alone": count(pictures),
    "through the processor": count(made),
    "saved and loaded": count(loaded),
    "asked for at the call": count(made, do_pan_and_scan=True),
}
print(seen, "set in the loaded one:", loaded.image_processor.do_pan_and_scan)
sys.exit(list(seen.values()) != [4, 1, 1, 4] or not loaded.image_processor.do_pan_and_scan)
PYTHON
