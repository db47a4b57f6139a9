"""Decoders that carry a state answer many together as transformers answers each alone."""

import numpy as np
import pytest
import torch
from daily import daily
from PIL import Image
from tiny_models import write_tiny
from transformers import AutoModelForImageTextToText

from foveal.models.generation.generator import Generator, Limits, Request, generate
from foveal.models.generation.prompt import prompt_image, prompt_of_turns
from foveal.models.generation.score import score
from foveal.models.hub.hub_processor import load_hub_processor
from foveal.models.loading import load

RECURRENT = daily("qwen3_5", beside=["lfm3_vl"])
NEW_TOKENS = 12


def image(seed, size):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


PAGE, OTHER, WIDE = image(0, (96, 96)), image(1, (128, 64)), image(2, (160, 96))
FIRST = ("What is it?", [PAGE], "A thing.")
CONVERSATIONS = [
    [("What is it?", [PAGE], None)],
    [("What is it, and how many are there of them?", [PAGE], None)],
    [("Which number stands beside the total?", [PAGE], None)],
    [("Just text.", [], None)],
    [("Which of them is larger?", [PAGE, OTHER], None)],
    [("Put them in order.", [PAGE, OTHER, WIDE], None)],
    [FIRST, ("Is that sure?", [], None)],
    [FIRST, ("Is this one too?", [WIDE], None)],
    [("A long story. " * 40, [OTHER], None)],
]


class Alone:
    """transformers' own model and processor, one conversation at a time."""

    def __init__(self, folder):
        self.model = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="sdpa")
        self.model.eval()
        self.processor = load_hub_processor(str(folder))

    def inputs(self, turns):
        messages = []
        for user, shown, answer in turns:
            parts = [{"type": "image"} for _ in shown] + [{"type": "text", "text": user}]
            messages.append({"role": "user", "content": parts})
            if answer is not None:
                said = [{"type": "text", "text": answer}]
                messages.append({"role": "assistant", "content": said})
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True)
        images = [image for _, shown, _ in turns for image in shown]
        made = self.processor(text=[text], images=images or None, return_tensors="pt")
        return made.to(torch.float64)

    def answer(self, turns, stop_ids):
        inputs = self.inputs(turns)
        made = self.model.generate(
            **inputs,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=sorted(stop_ids),
            pad_token_id=0,
            suppress_tokens=[self.model.config.image_token_id],  # is no answer
        )
        return made[0, inputs["input_ids"].shape[1] :].tolist()

    def likelihood(self, turns, ids):
        inputs = dict(self.inputs(turns))
        prompt = inputs["input_ids"].shape[1]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([ids])], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if "mm_token_type_ids" in inputs:
            kinds = inputs["mm_token_type_ids"]
            inputs["mm_token_type_ids"] = torch.cat([kinds, kinds.new_zeros(1, len(ids))], dim=1)
        with torch.no_grad():
            numbers = self.model(**inputs).logits[0, prompt - 1 : -1].double().log_softmax(-1)
        return float(numbers[range(len(ids)), ids].sum())


@pytest.fixture(scope="module", params=RECURRENT)
def both(request, tmp_path_factory, in_double):
    folder = write_tiny(request.param, tmp_path_factory.mktemp(request.param))
    loaded = load(str(folder), None)
    loaded.model.double().eval()
    alone = Alone(folder)
    alone.model.double()
    stop_ids = Generator(loaded).stop_ids
    return loaded, alone, [alone.answer(turns, stop_ids) for turns in CONVERSATIONS]


def prompts(loaded):
    reader = loaded.processor
    return [
        prompt_of_turns(
            [
                (user, [prompt_image(one, reader) for one in shown], said)
                for user, shown, said in turns
            ],
            reader,
        )
        for turns in CONVERSATIONS
    ]


@pytest.mark.parametrize(
    "limits",
    daily(
        Limits(tokens=300),
        Limits(sequences=1, kept_prefixes=2),
        beside=[Limits(), Limits(sequences=2), Limits(tokens_per_pass=70)],
    ),
)
def test_many_together_get_the_tokens_that_generate_gives_each_alone(both, limits):
    loaded, _, expected = both
    made = generate(
        Generator(loaded, limits), [Request(one, NEW_TOKENS) for one in prompts(loaded)]
    )
    assert made == expected
    assert len({tuple(one) for one in made}) > len(made) // 2  # or the test would say nothing


def test_whoever_comes_and_goes_the_others_get_what_they_get_alone(both):
    loaded, _, expected = both
    generator = Generator(loaded, Limits(kept_prefixes=2))
    made = {}
    handles = []
    for number, one in enumerate(prompts(loaded)):
        handles.append(generator.add(Request(one, NEW_TOKENS)))
        if number == 4:
            generator.cancel(handles[2])
        for token in generator.step():
            made.setdefault(token.handle, []).append(token.id)
    while not generator.is_idle:
        for token in generator.step():
            made.setdefault(token.handle, []).append(token.id)
    for number, handle in enumerate(handles):
        given = made[handle]
        assert given == expected[number][: len(given)]
        assert len(given) == (2 if number == 2 else len(expected[number]))
    # A prefix that was kept is as good as new.
    generator.add(Request(prompts(loaded)[-1], NEW_TOKENS))
    late = [token.id for _ in range(NEW_TOKENS) for token in generator.step()]
    assert late == expected[-1]


def test_a_page_is_read_once_for_all_questions_about_it(both):
    loaded, _, _ = both
    read = []

    def note(_module, _inputs, keywords):
        read.append(keywords["input_ids"].numel())

    hook = loaded.model.model.register_forward_pre_hook(note, with_kwargs=True)
    asked = prompts(loaded)[:3]
    generate(Generator(loaded), [Request(one, 1) for one in asked])
    hook.remove()
    page = asked[0].prefix_tokens
    assert page > 10
    assert sum(read) == page + sum(one.tokens - page for one in asked)


def test_continuations_are_as_likely_as_transformers_says(both):
    loaded, alone, _ = both
    words = ["one", "number four", "a red circle and a blue square, three of them"]
    continuations = [loaded.processor.encode_answer(one) for one in words] + [[17]]
    asked = prompts(loaded)
    found = score(loaded, [(one, continuations) for one in asked])
    for turns, sums in zip(CONVERSATIONS, found, strict=True):
        expected = [alone.likelihood(turns, ids) for ids in continuations]
        assert sums == pytest.approx(expected, rel=1e-9)
