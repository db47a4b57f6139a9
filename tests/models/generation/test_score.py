"""A continuation's score is the sum of the log-probabilities that a plain pass gives it."""

import pytest
import torch
from golden_data import load_reference
from PIL import Image
from tiny import make_model

from foveal.models.generation import score as score_module
from foveal.models.generation.prompt import Prompt, prompt_image, prompt_of_turns
from foveal.models.generation.score import score


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    loaded = make_model(tmp_path_factory.mktemp("tiny") / "model")
    loaded.model.eval()
    return loaded


def by_itself(loaded, prompt, ids):
    """One plain pass over prompt and continuation, nothing shared, nothing kept."""
    stretch = prompt.whole(loaded.processor)
    inputs = {"input_ids": torch.tensor([[*stretch.ids, *ids]])}
    if stretch.images:
        shapes = [image.shape for image in stretch.images]
        inputs |= loaded.processor.stack([image.pixels() for image in stretch.images], shapes)
    with torch.no_grad():
        numbers = loaded.model(**inputs).logits[0].log_softmax(-1)
    start = len(stretch.ids) - 1
    return sum(float(numbers[start + place, one]) for place, one in enumerate(ids))


def test_scores_behind_a_shared_page_are_those_of_each_by_itself(tiny, monkeypatch):
    monkeypatch.setattr(score_module, "LOGITS_AT_ONCE", 5)
    page = Image.effect_noise((60, 40), 90).convert("RGB")
    other = Image.effect_noise((90, 40), 90).convert("RGB")
    questions = []
    for user, images, choices in (
        ("Is it red?", [page], ["yes", "no", "it cannot be said"]),
        ("Is it larger?", [page, other], ["True", "False"]),
        ("What is it?", [page], ["a"]),
        ("No picture.", [], ["True", "False"]),
        ("Nothing to choose.", [page], []),
    ):
        shown = [prompt_image(one, tiny.processor) for one in images]
        ids = [tiny.processor.encode_plain(choice) for choice in choices]
        questions.append((prompt_of_turns([(user, shown, None)], tiny.processor), ids))
    found = score(tiny, questions)
    expected = [[by_itself(tiny, prompt, ids) for ids in choices] for prompt, choices in questions]
    assert [len(one) for one in found] == [3, 2, 1, 2, 0]
    for ours, plain in zip(found, expected, strict=True):
        assert ours == pytest.approx(plain, abs=1e-3)


def test_the_page_and_each_question_are_read_once(tiny, monkeypatch):
    page = Image.effect_noise((60, 40), 90).convert("RGB")
    shown = [prompt_image(page, tiny.processor)]
    prompts = [prompt_of_turns([(user, shown, None)], tiny.processor) for user in ("Is it?", "So?")]
    read = []
    usual = tiny.model.model.forward
    monkeypatch.setattr(
        tiny.model.model,
        "forward",
        lambda **inputs: read.append(inputs["input_ids"].numel()) or usual(**inputs),
    )
    score(tiny, [(prompt, [[5], [6, 7], [8, 9, 10]]) for prompt in prompts])
    prefix = prompts[0].tokens - (len(prompts[0].entries) - prompts[0].prefix_entries)
    tails = sum(prompt.tokens - prefix for prompt in prompts)
    assert read == [prefix + tails + 2 * (0 + 1 + 2)]  # a last token is predicted, never read


def test_each_continuation_is_rotated_by_its_own_length():
    loaded = load_reference("tiny_b")  # long factors above 64 tokens
    prompt = Prompt((1, *range(3, 63)), shared_entries=30)
    continuations = [[7, 8, 9], [7, 8, 9, 10]]  # 64 tokens in all, and 65
    (found,) = score(loaded, [(prompt, continuations)])
    expected = [by_itself(loaded, prompt, ids) for ids in continuations]
    assert found == pytest.approx(expected, abs=1e-3)
