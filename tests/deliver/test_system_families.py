"""A system text is, in every family, what the model's own chat template writes."""

import pytest
import tiny_models_more  # noqa: F401  # enters its families
from tiny_models import write_tiny

from foveal.data.turn_processor import AskedTurn
from foveal.models.generation.prompt import prompt_of_turns
from foveal.models.known import ALONE, CACHED, NEEDS_TORCHVISION, SHARED
from foveal.models.loading import find_family

SYSTEM = "be short"
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


QUICK = ("qwen3_vl", "qwen2_5_vl", "gemma3", "llava", "smolvlm", "internvl", "glm4v")
HELD = sorted({*SHARED, *CACHED, *ALONE} - {*NEEDS_TORCHVISION, "phi3_v"})  # Phi: test_chat.py


@pytest.mark.parametrize(
    "family",
    [pytest.param(one, marks=() if one in QUICK else pytest.mark.slow) for one in HELD],
)
def test_training_asking_and_the_template_write_one_system_text(family, tmp_path):
    write_tiny(family, tmp_path)
    processor = find_family(str(tmp_path)).load_processor(str(tmp_path), None)
    texts = [("system", SYSTEM), ("user", "what is it?")]
    messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in texts]
    written = processor.tokenizer.apply_chat_template(
        messages,
        chat_template=processor.processor.chat_template,
        add_generation_prompt=True,
        tokenize=False,
    )
    expected = processor.tokenizer(written, add_special_tokens=False)["input_ids"]
    trained = processor.encode_turns([AskedTurn("what is it?", 0, "red")], SYSTEM)
    prompt = [
        entry for entry, learnt in zip(trained.entries, trained.learnt, strict=True) if not learnt
    ][: len(expected)]
    assert prompt == expected
    asked = prompt_of_turns([("what is it?", [], None)], processor, SYSTEM)
    assert list(asked.entries) == expected
    without = processor.encode_turns([AskedTurn("what is it?", 0, "red")])
    assert trained.entries != without.entries
