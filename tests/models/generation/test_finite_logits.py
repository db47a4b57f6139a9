"""Numbers that are not finite give no answer, name their layer, and spoil nobody else's."""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from PIL import Image
from tiny import make_image, make_model
from tiny_models import write_tiny as write_family

from foveal.models.generation.generator import Generator, Limits, NoAnswer, Request, generate
from foveal.models.generation.passes import NotFiniteError
from foveal.models.generation.prompt import prompt_image, prompt_of_turns
from foveal.models.generation.score import score
from foveal.models.loading import load

PROJECTOR = "model.vision_embed_tokens.img_projection.0"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def tiny(made):
    return replace(made, model=deepcopy(made.model).eval())


@pytest.fixture
def page(tmp_path):
    return Image.open(make_image(tmp_path / "page.png", 0))


def ask(loaded, user, *images):
    shown = [prompt_image(one, loaded.processor) for one in images]
    return prompt_of_turns([(user, shown, None)], loaded.processor)


def spoil(loaded, name, factor):
    with torch.no_grad():
        loaded.model.get_parameter(name).mul_(factor)


@pytest.mark.parametrize(
    ("factor", "precision", "advice"),
    [
        (1e5, "fp16", "use precision=bf16 or float32"),
        (1e38, "float32", "its weights or what it is given are too large; take another checkpoint"),
        (1e38, "bf16", "its weights or what it is given are too large; take another checkpoint"),
        (math.nan, "float32", "its weights are not; take another checkpoint"),
        (math.inf, "fp16", "its weights are not; take another checkpoint"),
    ],
)
@pytest.mark.parametrize("way", ["generate", "score"])
def test_it_stops_and_names_the_first_layer_and_the_precision(
    tiny, page, factor, precision, advice, way
):
    spoil(tiny, f"{PROJECTOR}.weight", factor)
    prompt = ask(tiny, "What is it?", page)
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32)

    def answer():
        if way == "generate":
            return generate(Generator(tiny), [Request(prompt, 4)])
        return score(tiny, [(prompt, [[5, 6], [7]])])

    with (
        torch.autocast("cpu", dtype, enabled=precision != "float32"),
        pytest.raises(NotFiniteError, match=r"^projector\.img_projection\.[01] ") as error,
    ):
        answer()
    assert f"not finite in {precision}: " in str(error.value)
    assert str(error.value).endswith(advice)


def test_a_head_that_overflows_is_named(tiny):
    with torch.no_grad():
        tiny.model.lm_head.weight[5] = math.inf
    with pytest.raises(NotFiniteError, match=r"^language\.lm_head gives"):
        generate(Generator(tiny), [Request(ask(tiny, "What?"), 4)])


@pytest.mark.parametrize("where", ["model.embed_tokens", "keys", "values"])
def test_its_neighbours_on_the_same_page_get_the_tokens_that_they_get_alone(tiny, page, where):
    questions = [
        ask(tiny, "What is it?", page),
        ask(tiny, "~ is it?", page),
        ask(tiny, "Where is it then?", page),
        ask(tiny, "What is it?", page.transpose(Image.Transpose.ROTATE_90)),
    ]
    alone = [generate(Generator(tiny), [Request(one, 6)])[0] for one in questions]
    bad = questions[1].entries[
        next(at for at, one in enumerate(questions[1].entries) if one not in questions[0].entries)
    ]
    break_token(tiny, bad, where)
    generator = Generator(tiny, Limits(kept_prefixes=1))
    handles = [generator.add(Request(one, 6)) for one in questions]
    made = {handle: [] for handle in handles}
    failed = []
    while not generator.is_idle:
        for one in generator.step():
            if isinstance(one, NoAnswer):
                failed.append(one.handle)
            else:
                made[one.handle].append(one.id)
    assert failed == [handles[1]]
    assert [made[handles[at]] for at in (0, 2, 3)] == [alone[at] for at in (0, 2, 3)]
    assert generate(generator, [Request(questions[0], 6)]) == [alone[0]]


def break_token(loaded, token, where):
    """Let one token's embedding, or its keys or values in the first layer alone, overflow."""
    if where == "model.embed_tokens":
        with torch.no_grad():
            loaded.model.get_input_embeddings().weight[token] = math.nan
        return
    seen = []
    loaded.model.get_input_embeddings().register_forward_hook(
        lambda _, inputs, __: seen.append(inputs[0] == token)
    )

    def overflow(_, __, output):
        width = output.shape[-1] // 3
        start = width * (1 + (where == "values"))
        output[..., start : start + width][seen[-1]] = math.inf

    loaded.model.model.layers[0].self_attn.qkv_proj.register_forward_hook(overflow)


def test_the_likelihoods_of_others_are_those_of_a_sound_model(tiny, page):
    sound = ask(tiny, "What is it?", page)
    other = ask(tiny, "~ is it?", page)
    choices = [[5, 6], [7, 8, 9]]
    expected = score(tiny, [(sound, choices)])
    token = next(one for one in other.entries if one not in sound.entries)
    break_token(tiny, token, "keys")
    with pytest.raises(NotFiniteError) as error:
        score(tiny, [(sound, choices), (other, choices)])
    assert error.value.place == 1
    assert score(tiny, [(sound, choices)]) == expected


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_5", "gemma3"])
def test_other_families_name_their_layer_by_every_route(tmp_path, page, kind):
    loaded = load(str(write_family(kind, tmp_path / "family")), None)
    loaded.model.eval()
    prompt = ask(loaded, "what is it?", page)
    with torch.no_grad():
        loaded.model.get_decoder().layers[1].mlp.down_proj.weight[0, 0] = math.inf
    said = r"^language\.layers\.1\.mlp\.down_proj gives .* in float32: its weights are not"
    with pytest.raises(NotFiniteError, match=said):
        generate(Generator(loaded), [Request(prompt, 4)])
    with pytest.raises(NotFiniteError, match=said):
        score(loaded, [(prompt, [[5, 6], [7]])])
