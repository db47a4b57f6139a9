"""Decoding many together gives each what it gets alone, whoever comes and goes."""

import numpy as np
import pytest
import torch
from golden_data import expand, formula_pixels, load_reference, read_json
from PIL import Image
from tiny import make_model

from foveal.data.shapes import ImageShape
from foveal.models.generation.generator import Generator, Limits, Request, generate
from foveal.models.generation.prompt import Prompt, PromptImage, prompt_image, prompt_of_turns
from foveal.models.generation.sampling import Sampling

BORDER = 64  # original context of the reference model tiny_b, whose long factors differ


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    loaded = make_model(tmp_path_factory.mktemp("tiny") / "model")
    loaded.model.eval()
    return loaded


@pytest.fixture(scope="module")
def reference():
    loaded = load_reference("tiny_b")
    model = loaded.model
    model.generate(torch.tensor([[1, 2]]), max_new_tokens=1, eos_token_id=None, pad_token_id=0)
    # Its pictures alone are longer than it was made for; the rotation is settled by now.
    model.config.max_position_embeddings = 4096
    return loaded


def image(seed, size=(60, 40)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


PAGE, OTHER, WIDE = image(0), image(1, (90, 40)), image(2, (120, 30))


def ask(loaded, user, *images, before=()):
    shown = [prompt_image(one, loaded.processor) for one in images]
    return prompt_of_turns([*before, (user, shown, None)], loaded.processor)


def some_prompts(loaded):
    first = ("What is it?", [prompt_image(PAGE, loaded.processor)], "A thing.")
    return [
        ask(loaded, "What is it?", PAGE),
        ask(loaded, "And how many are there of them?", PAGE),
        ask(loaded, "Just text."),
        ask(loaded, "Which of them is larger?", PAGE, OTHER),
        ask(loaded, "Put them in order.", PAGE, OTHER, WIDE),
        ask(loaded, "Is that sure?", before=[first]),
        ask(loaded, "Is this one too?", WIDE, before=[first]),
        ask(loaded, "A long story. " * 60, OTHER),
    ]


def alone(loaded, prompt, new_tokens):
    """What transformers' own `generate` makes of one prompt, in a batch of one."""
    stretch = prompt.whole(loaded.processor)
    ids = torch.from_numpy(stretch.ids)[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if stretch.images:
        shapes = [image.shape for image in stretch.images]
        inputs |= loaded.processor.stack([image.pixels() for image in stretch.images], shapes)
    made = loaded.model.generate(
        **inputs,
        max_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=list(loaded.processor.end_ids) or None,
        pad_token_id=0,
    )
    return made[0, ids.shape[1] :].tolist()


def collect(generator, made, steps=10_000):
    while not generator.is_idle and steps:
        steps -= 1
        for token in generator.step():
            made.setdefault(token.handle, []).append(token.id)
    return made


def test_many_together_get_the_tokens_that_generate_gives_each_alone(tiny):
    prompts = some_prompts(tiny)
    made = generate(Generator(tiny), [Request(prompt, 10) for prompt in prompts])
    assert made == [alone(tiny, prompt, 10) for prompt in prompts]
    assert len({tuple(one) for one in made}) > len(made) // 2  # or the test would say nothing


@pytest.mark.parametrize(
    "limits",
    [
        Limits(sequences=2),
        Limits(tokens=200),
        Limits(tokens_per_pass=70),
        Limits(sequences=1, kept_prefixes=2),
    ],
)
def test_where_room_is_scarce_each_waits_its_turn_and_gets_the_same(tiny, limits):
    prompts = some_prompts(tiny)
    made = generate(Generator(tiny, limits), [Request(prompt, 5) for prompt in prompts])
    assert made == [alone(tiny, prompt, 5) for prompt in prompts]


def test_a_request_joins_at_the_next_token_and_another_may_leave(tiny):
    prompts = some_prompts(tiny)[:4]
    generator, made = Generator(tiny), {}
    first, second = (generator.add(Request(prompt, 12)) for prompt in prompts[:2])
    collect(generator, made, steps=3)
    generator.cancel(second)
    third = generator.add(Request(prompts[2], 4))
    fourth = generator.add(Request(prompts[3], 12))
    collect(generator, made)
    assert len(made[second]) == 3
    assert made[second] == alone(tiny, prompts[1], 3)
    assert made[first] == alone(tiny, prompts[0], 12)
    assert made[third] == alone(tiny, prompts[2], 4)
    assert made[fourth] == alone(tiny, prompts[3], 12)


def count_reading(monkeypatch, loaded):
    """Note the tokens and the crops that each pass reads."""
    passes, crops = [], []
    inner = loaded.model.model
    encode, usual = inner.get_image_features, inner.forward

    def encoding(pixel_values, image_sizes):
        crops.append(len(pixel_values))
        return encode(pixel_values, image_sizes)

    def counting(**inputs):
        passes.append((inputs["input_ids"].shape[1], sum(crops)))
        crops.clear()
        return usual(**inputs)

    monkeypatch.setattr(inner, "get_image_features", encoding)
    monkeypatch.setattr(inner, "forward", counting)
    return passes


def test_the_questions_of_a_page_read_it_once(tiny, monkeypatch):
    prompts = [ask(tiny, f"Question {number}?", PAGE) for number in range(4)]
    tail = prompts[0].tokens - prompts[0].images[0].shape.tokens - prompts[0].prefix_entries + 1
    passes = count_reading(monkeypatch, tiny)
    made = generate(Generator(tiny), [Request(prompt, 3) for prompt in prompts])
    assert [len(one) for one in made] == [3] * 4
    prefix = prompts[0].tokens - tail
    crops = len(prompts[0].images[0].pixels()["pixel_values"])
    assert passes == [(prefix + 4 * tail, crops), (4, 0), (4, 0)]


def test_a_kept_prefix_answers_a_later_question_without_its_picture(tiny, monkeypatch):
    prompts = [ask(tiny, f"Question {number}?", PAGE) for number in range(2)]
    expected = [alone(tiny, prompt, 3) for prompt in prompts]
    generator = Generator(tiny, Limits(kept_prefixes=1))
    passes = count_reading(monkeypatch, tiny)
    made = [generate(generator, [Request(prompt, 3)])[0] for prompt in prompts]
    assert made == expected
    crops = len(prompts[0].images[0].pixels()["pixel_values"])
    assert [read for _, read in passes] == [crops, 0, 0, 0, 0, 0]
    assert passes[3][0] < 25  # the second question alone


def test_what_ended_leaves_nothing_behind(tiny):
    generator = Generator(tiny)
    requests = [Request(prompt, 3) for prompt in some_prompts(tiny)]
    handles = [generator.add(request) for request in requests]
    generator.step()
    generator.cancel(handles[0])
    collect(generator, {})
    assert generator.num_active == generator.num_waiting == 0
    assert generator._trees == {}


def test_a_long_lived_page_is_closed_up_and_its_answers_stay_right(tiny):
    generator, made, prompts = Generator(tiny), {}, {}
    for number in range(12):  # there is always one, so the page never leaves
        prompt = ask(tiny, f"Question {number} about the page?", PAGE)
        prompts[generator.add(Request(prompt, 6))] = prompt
        collect(generator, made, steps=3)
    collect(generator, made)
    expected = {handle: alone(tiny, prompt, 6) for handle, prompt in prompts.items()}
    assert made == expected


def test_an_end_token_ends_an_answer_and_says_so(tiny):
    prompt = ask(tiny, "What is it?", PAGE)
    free = alone(tiny, prompt, 6)
    stop = free[3]
    generator = Generator(tiny)
    generator.add(Request(prompt, 6, stop_ids=frozenset([stop])))
    tokens = [token for _ in range(6) for token in generator.step()]
    cut = free[: free.index(stop) + 1]
    assert [token.id for token in tokens] == cut
    assert [token.finish for token in tokens] == [None] * (len(cut) - 1) + ["stop"]
    generator.add(Request(prompt, 2, stop_ids=frozenset()))
    assert [token.finish for _ in range(2) for token in generator.step()] == [None, "length"]


def test_log_probabilities_are_those_of_a_plain_pass(tiny):
    prompt = ask(tiny, "Just text.")
    generator = Generator(tiny)
    generator.add(Request(prompt, 4, logprobs=3))
    tokens = [token for _ in range(4) for token in generator.step()]
    ids = torch.tensor([[*prompt.entries, *(token.id for token in tokens)]])
    with torch.no_grad():
        numbers = tiny.model(input_ids=ids).logits[0].log_softmax(-1)
    for place, token in enumerate(tokens, start=len(prompt.entries) - 1):
        assert token.logprob == pytest.approx(float(numbers[place, token.id]), abs=1e-4)
        values, likeliest = numbers[place].topk(3)
        assert [one for one, _ in token.likeliest] == likeliest.tolist()
        assert [one for _, one in token.likeliest] == pytest.approx(values.tolist(), abs=1e-4)
    assert Generator(tiny).step() == []


def test_draws_follow_their_seed_whoever_else_is_drawn_for(tiny):
    prompt = ask(tiny, "What is it?", PAGE)
    drawn = Request(prompt, 8, Sampling(temperature=2.0, top_p=0.95, seed=3))
    other = Request(prompt, 8, Sampling(temperature=2.0, top_p=0.95, seed=4))
    greedy = Request(prompt, 8)
    (by_itself,) = generate(Generator(tiny), [drawn])
    together = generate(Generator(tiny), [other, greedy, drawn])
    assert together[2] == by_itself
    assert together[0] != by_itself
    assert together[1] == alone(tiny, prompt, 8)


def test_a_cold_draw_or_a_narrow_one_is_the_likeliest_token(tiny):
    prompt = ask(tiny, "What is it?", PAGE)
    expected = alone(tiny, prompt, 6)
    for sampling in (Sampling(1e-4), Sampling(1.0, top_p=1e-6), Sampling(3.0, top_k=1)):
        assert generate(Generator(tiny), [Request(prompt, 6, sampling)]) == [expected]


def formula_text(length, offset):
    return (1, *(3 + ((7 * i * i + 13 * i + 101 * offset) % 487) for i in range(length - 1)))


def test_greedy_tokens_are_the_references_also_across_the_context_border(reference):
    golden = read_json("tiny_b/cases.json")["generation"]
    cases = [golden["text_short"], golden["text_crossing"]]
    prompts = [Prompt(formula_text(one["prompt_length"], one["id_offset"])) for one in cases]
    made = generate(Generator(reference), [Request(prompt, 16) for prompt in prompts])
    assert made == [one["new_tokens"] for one in cases]


def test_rows_with_pictures_get_the_references_tokens(reference):
    golden = read_json("tiny_b/cases.json")["generation"]["batch_left_images"]
    pixels = formula_pixels(3, 5, golden["pixel_seed"])
    ids, mask = expand(golden["input_ids_rle"]), expand(golden["attention_mask_rle"])
    grids = [(height // 336, width // 336) for height, width in golden["image_sizes"]]
    images = [
        (number, grid, lambda n=number, g=grid: {"pixel_values": pixels[n][: 1 + g[0] * g[1]]})
        for number, grid in enumerate(grids)
    ]
    prompts = []
    for row, real in zip(ids, mask, strict=True):
        prompts.append(image_entries(row[real.bool()].tolist(), images))
    made = generate(Generator(reference), [Request(prompt, 16) for prompt in prompts])
    assert made == golden["new_tokens"]


def image_entries(ids, images):
    """Fold each run of image tokens into one entry; takes its picture from the front."""
    entries, own, run = [], [], 0
    for one in [*ids, 1]:
        if one < 0 or one == 32044:
            run += 1
            continue
        if run:
            key, grid, opened = images.pop(0)
            shape = ImageShape(((32044, run),), run, 1 + grid[0] * grid[1], grid)
            own.append(PromptImage(key, shape, opened))
            entries.append(-len(own))
            run = 0
        entries.append(one)
    return Prompt(tuple(entries[:-1]), tuple(own))


def test_branches_that_cross_the_border_at_different_times_get_what_each_gets_alone(reference):
    prefix = formula_text(40, 5)
    tails = [formula_text(length, length)[1:] for length in (25, 22, 17, 4, 30)]
    prompts = [Prompt(prefix + tail, shared_entries=40) for tail in tails]
    assert {prompt.tokens > BORDER for prompt in prompts} == {True, False}
    made = generate(Generator(reference), [Request(prompt, 12) for prompt in prompts])
    assert made == [without_cache(reference.model, prompt.entries, 12) for prompt in prompts]


def without_cache(model, entries, steps):
    """Decode the plain way: the whole sequence again for each token."""
    row = torch.tensor(entries)
    for _ in range(steps):
        with torch.no_grad():
            logits = model(input_ids=row[None], use_cache=False, logits_to_keep=1).logits
        row = torch.cat([row, logits[0, -1].argmax()[None]])
    return row[-steps:].tolist()


def test_what_the_model_cannot_see_is_refused(reference, monkeypatch):
    generator = Generator(reference)
    with pytest.raises(ValueError, match="one token or more"):
        generator.add(Request(Prompt(()), 4))
    monkeypatch.setattr(reference.model.config, "max_position_embeddings", 10)
    with pytest.raises(ValueError, match="8 tokens of the prompt and 3 new ones are more than"):
        generator.add(Request(Prompt(formula_text(8, 0)), 3))


def test_the_models_own_attention_is_back_after_a_step(tiny):
    usual = tiny.model.config._attn_implementation
    tower = tiny.model.config.vision_config._attn_implementation
    generate(Generator(tiny), [Request(ask(tiny, "What is it?", PAGE), 2)])
    assert tiny.model.config._attn_implementation == usual
    assert tiny.model.config.vision_config._attn_implementation == tower
