"""After `import foveal`, transformers opens a published folder without remote code."""

import json
import shutil
import subprocess
import sys
from itertools import permutations

import pytest
from golden_data import GOLDEN, read_json
from published import TOKENIZER

CONFIG = "from transformers import AutoConfig; config = AutoConfig.from_pretrained(folder)"
MODEL = (
    "from transformers import AutoModelForImageTextToText as Auto; "
    "model = Auto.from_pretrained(folder)"
)
PROCESSOR = (
    "from transformers import AutoProcessor; "
    "processor = AutoProcessor.from_pretrained(folder, num_crops=2)"
)
PROOF = """
from foveal.models import phi3_vision
assert type(config) is phi3_vision.Phi3VisionConfig, type(config)
assert type(model) is phi3_vision.Phi3VisionForConditionalGeneration, type(model)
assert type(processor) is phi3_vision.Phi3VisionProcessor, type(processor)
assert type(processor.image_processor) is phi3_vision.Phi3VisionImageProcessor
assert processor.num_crops == 2
"""

ANSWER = """
from PIL import Image
picture = Image.new("RGB", (9, 9))
inputs = processor("<|user|>\\n<|image_1|>\\nWhat?<|end|>\\n<|assistant|>\\n", picture)
made = model.generate(**inputs, max_new_tokens=2, do_sample=False)
assert made.shape[1] > inputs["input_ids"].shape[1]
assert len(processor.batch_decode(made)) == 1
"""
OTHERS = """
from transformers import AutoConfig, AutoModelForCausalLM, Phi3Config
assert AutoConfig.for_model("phi3_v", hidden_size=64).hidden_size == 64
small = Phi3Config(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                   num_attention_heads=1, num_key_value_heads=1, pad_token_id=0)
assert type(AutoModelForCausalLM.from_config(small)).__name__ == "Phi3ForCausalLM"
"""
# All that takes long to import, so that each order can start from there in a process of its own.
TRANSFORMERS = (
    "from transformers import AutoModelForImageTextToText, AutoProcessor, CLIPVisionModel, "
    "GenerationMixin, Phi3ForCausalLM, PreTrainedTokenizerFast"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as published: its config and preprocessor name code that is not there."""
    folder = tmp_path_factory.mktemp("published")
    shutil.copytree(TOKENIZER, folder, dirs_exist_ok=True)
    shutil.copy(GOLDEN / "tiny_a" / "model.safetensors", folder)
    shutil.copy(
        GOLDEN / "phi3v-facts" / "preprocessor_config.phi35.json",
        folder / "preprocessor_config.json",
    )
    config = read_json("tiny_a/config.json")
    config["auto_map"] = read_json("phi3v-facts/config.phi35.json")["auto_map"]
    config["vision_config"] = read_json("tiny_a/vision_config.json")
    config["_attn_implementation"] = "flash_attention_2"
    (folder / "config.json").write_text(json.dumps(config))
    generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 32000}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def run_python(script):
    made = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr


def test_importing_the_package_loads_neither_torch_nor_transformers():
    run_python(
        "import sys, foveal, foveal.models.phi3_vision\n"
        "heavy = {'torch', 'transformers', 'numpy', 'PIL'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    [
        pytest.param(f"import foveal; {TRANSFORMERS}", id="foveal first"),
        pytest.param(
            f"{TRANSFORMERS}; import foveal", id="transformers first", marks=pytest.mark.slow
        ),
    ],
)
def test_the_automatic_classes_open_a_published_folder_in_any_order(folder, imports):
    orders = ["\n".join([*order, PROOF]) for order in permutations([CONFIG, MODEL, PROCESSOR])]
    trusting = orders[0].replace("(folder", "(folder, trust_remote_code=True")
    run_python(
        f"""
import os
{imports}
for script in {[*orders, trusting + ANSWER, OTHERS]!r}:
    child = os.fork()
    if not child:
        exec(script, {{"folder": {str(folder)!r}}})
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, script
"""
    )
