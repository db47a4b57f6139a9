"""A system text is, in every family, what the model's own chat template writes."""

import pytest
from tiny_models import write_tiny

from foveal.data.encode import AskedTurn
from foveal.models.family import find_family
from foveal.models.generation.prompt import prompt_of_turns

SYSTEM = "be short"


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl", "gemma3", "llava", "smolvlm"])
def test_training_asking_and_the_template_write_one_system_text(family, tmp_path):
    write_tiny(family, tmp_path)
    processor = find_family(str(tmp_path)).load_processor(str(tmp_path), None)
    messages = [
        {"role": "system", "content": [{"type": "text", "text": SYSTEM}]},
        {"role": "user", "content": [{"type": "text", "text": "what is it?"}]},
    ]
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
