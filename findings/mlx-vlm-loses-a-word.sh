#!/usr/bin/env bash
# mlx-vlm drops the first token behind each picture of Phi-3.5-vision.
#
# Guessed:  "<|image_1|> How many dogs" becomes the picture's places and then the ids of "How many dogs".
# Happens:  "How" is gone. With two pictures a token is lost behind each. With the published tokenizer what is lost
#           behind "<|image_1|>\n" is the space mark alone; behind text that follows at once it is a word.
# Why:      mlx_vlm/models/phi3_v/processing_phi3_v.py, _convert_images_texts_to_inputs: later pieces are encoded
#           without the begin token, and then their first id is cut off as if it were one.
# Matters:  prompts differ from those that a model was trained on; "<|image_1|>Which ..." loses "Which".
# Versions: mlx-vlm 0.7.10, mlx 0.32.4 (CPU), transformers 5.23.0.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" mlx-vlm==0.7.10 'mlx[cpu]==0.32.4' transformers==5.23.0 pillow==13.0.0

python - <<'PYTHON'
import sys

from mlx_vlm.models.phi3_v.processing_phi3_v import Phi3VImageProcessor, Phi3VProcessor
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = "<unk> <s> </s> Look How many dogs and cats ?".split()
words = Tokenizer(models.WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
processor = Phi3VProcessor(Phi3VImageProcessor(num_crops=4), tokenizer)


def read(text):
    pictures = [Image.new("RGB", (64, 64))] * text.count("<|image_")
    ids = processor(text=text, images=pictures)["input_ids"].tolist()[0]
    return " ".join(WORDS[one] for one in ids if one >= 0)


seen = {text: read(text) for text in ("Look <|image_1|> How many dogs ?", "<|image_1|> How many <|image_2|> cats and dogs ?")}
for text, got in seen.items():
    print(f"{text!r} is read as {got!r}")
sys.exit(list(seen.values()) != ["<s> Look many dogs ?", "<s> many and dogs ?"])
PYTHON
