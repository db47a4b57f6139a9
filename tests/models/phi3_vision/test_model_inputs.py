"""Any batch gives what its samples give alone, and inputs that do not fit are refused."""

import pytest
import torch
import torch.nn.functional as F
from golden_data import synthetic_image
from published import make_config, make_processor
from tiny import make_model

from foveal.data.forward_inputs import ForwardInputs
from foveal.models.forward import hand_out
from foveal.models.phi3_vision import Phi3VisionForConditionalGeneration
from foveal.models.phi3_vision.seam import FAMILY

TEXTS = [
    "<|user|>\n<|image_1|>\nWhat is it?<|end|>\n<|assistant|>\n",
    "<|user|>\nNo picture, but a good many more words than the others have.<|end|>\n",
    "<|user|>\n<|image_1|><|image_2|>\nSame?<|end|>\n<|assistant|>\n",
]
IMAGES = [
    [synthetic_image(60, 50, 1)],
    [],
    [synthetic_image(28, 14, 2), synthetic_image(80, 30, 3)],
]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = Phi3VisionForConditionalGeneration(make_config())
    for separator in (
        model.model.vision_embed_tokens.glb_GN,
        model.model.vision_embed_tokens.sub_GN,
    ):
        torch.nn.init.normal_(separator)
    return model.eval()


@pytest.fixture(scope="module")
def processor():
    return make_processor(num_crops=4)


@pytest.fixture
def two_images(processor):
    """Inputs of one prompt with two pictures."""
    return dict(processor(TEXTS[2], IMAGES[2]))


def logits_of(model, **inputs):
    with torch.no_grad():
        return model(**inputs).logits


def published_form(inputs, num_crops=4):
    """Pad as the published processor does: every picture to the most crops that it could have."""
    padded, rest = [], inputs["pixel_values"]
    for height, width in inputs["image_sizes"].tolist():
        count = 1 + (height // 28) * (width // 28)
        own, rest = rest[:count], rest[count:]
        padded.append(F.pad(own, (0, 0, 0, 0, 0, 0, 0, num_crops + 1 - count)))
    return inputs | {"pixel_values": torch.stack(padded)}


def count_down(inputs):
    """Number the pictures of a prompt as the published processor does: -1, -2, ..."""
    ids = inputs["input_ids"].clone()
    is_image = ids == 32044
    starts = is_image & ~F.pad(is_image, (1, 0))[:, :-1]
    return inputs | {"input_ids": torch.where(is_image, -starts.cumsum(-1), ids)}


# -- forms -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_every_row_of_a_mixed_batch_gives_what_it_gives_alone(model, processor, side):
    batch = processor(TEXTS, IMAGES, padding_side=side)
    together = logits_of(model, **batch)
    for text, images, mask, logits in zip(
        TEXTS, IMAGES, batch["attention_mask"], together, strict=True
    ):
        alone = logits_of(model, **processor(text, images))[0]
        torch.testing.assert_close(logits[mask.bool()], alone, atol=1e-4, rtol=0)


def test_a_batch_of_text_alone_needs_no_pictures(model, processor):
    batch = processor([TEXTS[1], "<|user|>\nShort.<|end|>\n"])
    together = logits_of(model, **batch)
    alone = logits_of(model, input_ids=batch["input_ids"][:1])
    torch.testing.assert_close(together[0], alone[0], atol=1e-4, rtol=0)


def test_ids_and_crops_of_the_published_processor_give_the_same(model, two_images):
    ours = logits_of(model, **two_images)
    theirs = logits_of(model, **count_down(published_form(two_images)))
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)


def test_bytes_without_global_views_give_the_same(model, processor, two_images):
    crops = torch.cat([processor.cut(image) for image in IMAGES[2]])
    from_bytes = logits_of(model, **two_images | {"pixel_values": crops})
    torch.testing.assert_close(from_bytes, logits_of(model, **two_images), atol=1e-5, rtol=0)


def test_a_picture_may_be_encoded_once_and_shown_twice(model, processor):
    text = "<|image_1|> <|image_2|> <|image_3|>"
    one, other = IMAGES[2]
    thrice = processor(text, [other, one, other])
    once = processor("<|image_1|><|image_2|>", [one, other])
    pixels = {name: once[name] for name in ("pixel_values", "image_sizes")}
    shapes = [processor.shape(*image.size) for image in (one, other)]
    inputs = ForwardInputs(
        input_ids=thrice["input_ids"],
        positions=torch.zeros(2, 1, 0),
        pixels=pixels,
        image_features=tuple(shape.features for shape in shapes),
        image_indices=(1, 0, 1),
    )
    with torch.no_grad():
        tower = FAMILY.encode_images(model, inputs.pixels)
        placed = hand_out(tower, inputs.image_features, inputs.image_indices)
    shown = logits_of(model, input_ids=thrice["input_ids"], mm_encoder_outputs={"image": placed})
    torch.testing.assert_close(shown, logits_of(model, **thrice), atol=1e-5, rtol=0)


def test_embeddings_may_be_given_instead_of_ids_and_pictures(model, two_images):
    images = [two_images[name] for name in ("pixel_values", "image_sizes")]
    with torch.no_grad():
        features = model.get_image_features(*images)
        embeddings = model.model.embed(two_images["input_ids"], features)
    given = logits_of(model, inputs_embeds=embeddings)
    torch.testing.assert_close(given, logits_of(model, **two_images), atol=1e-6, rtol=0)


def test_the_cache_carries_the_first_part_of_a_prompt_on(model, two_images):
    whole = logits_of(model, **two_images)
    ids, mask = two_images["input_ids"], two_images["attention_mask"]
    with torch.no_grad():
        first = model(**two_images | {"input_ids": ids[:, :-4], "attention_mask": mask[:, :-4]})
        rest = model(
            input_ids=ids[:, -4:], attention_mask=mask, past_key_values=first.past_key_values
        )
        without_mask = model(**two_images | {"input_ids": ids[:, :-4], "attention_mask": None})
        rest_without_mask = model(
            input_ids=ids[:, -4:], past_key_values=without_mask.past_key_values
        )
    torch.testing.assert_close(rest.logits, whole[:, -4:], atol=1e-4, rtol=0)
    torch.testing.assert_close(rest_without_mask.logits, whole[:, -4:], atol=1e-4, rtol=0)


@pytest.mark.parametrize("sampled", [False, True])
def test_a_mixed_batch_generates_what_each_row_generates_alone(model, processor, sampled):
    settings = {"max_new_tokens": 6, "eos_token_id": None, "do_sample": sampled, "top_k": 1}
    batch = processor(TEXTS, IMAGES)
    made = model.generate(**batch, **settings)[:, batch["input_ids"].shape[1] :]
    for text, images, tokens in zip(TEXTS, IMAGES, made, strict=True):
        inputs = processor(text, images)
        alone = model.generate(**inputs, **settings)[0, inputs["input_ids"].shape[1] :]
        assert tokens.tolist() == alone.tolist()


# -- outputs ---------------------------------------------------------------------------------------


def test_the_loss_is_the_cross_entropy_of_the_next_token(model, two_images):
    labels = two_images["input_ids"].clone()
    labels[labels == 32044] = -100
    with torch.no_grad():
        output = model(**two_images, labels=labels)
        summed = model(**two_images, labels=labels, num_items_in_batch=7).loss
    scores = output.logits[0, :-1].log_softmax(-1)
    kept = labels[0, 1:] != -100
    expected = -scores[kept, labels[0, 1:][kept]]
    assert output.loss.item() == pytest.approx(expected.mean().item(), rel=1e-5)
    assert summed.item() == pytest.approx(expected.sum().item() / 7, rel=1e-5)


def test_logits_are_made_where_they_are_asked_for(model, two_images):
    whole = logits_of(model, **two_images)
    last = logits_of(model, **two_images, logits_to_keep=2)
    torch.testing.assert_close(last, whole[:, -2:], atol=1e-5, rtol=0)
    chosen = logits_of(model, **two_images, logits_to_keep=torch.tensor([3, 9]))
    torch.testing.assert_close(chosen, whole[:, [3, 9]], atol=1e-5, rtol=0)


def test_outputs_come_as_transformers_models_give_them(model, two_images):
    with torch.no_grad():
        output = model(**two_images, output_hidden_states=True)
        assert model(**two_images, use_cache=False).past_key_values is None
        as_tuple = model(**two_images, return_dict=False)
    assert output.loss is None
    assert output.past_key_values.get_seq_length() == two_images["input_ids"].shape[1]
    assert len(output.hidden_states) == 1 + 2
    assert torch.equal(model.lm_head(output.hidden_states[-1]), output.logits)
    assert torch.equal(as_tuple[0], output.logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_single_precision(model, two_images, dtype):
    expected = logits_of(model, **two_images)
    half = Phi3VisionForConditionalGeneration(model.config).eval().to(dtype)
    half.load_state_dict(model.state_dict())
    made = logits_of(half, **two_images)
    assert made.dtype == dtype
    assert (made.float() - expected).norm() < 0.03 * expected.norm()


# -- what does not fit -----------------------------------------------------------------------------


def test_image_tokens_without_pictures_are_refused(model, two_images):
    ids = two_images["input_ids"]
    places = int((ids == 32044).sum())
    with pytest.raises(ValueError, match=f"{places} image tokens, but no pixel_values"):
        model(input_ids=ids)


def test_pictures_without_image_tokens_are_refused(model, processor, two_images):
    text = processor(TEXTS[1])["input_ids"]
    with pytest.raises(ValueError, match="0 image tokens do not fit"):
        model(**two_images | {"input_ids": text, "attention_mask": None})
    with pytest.raises(ValueError, match="pixel_values without image_sizes"):
        model(input_ids=text, pixel_values=two_images["pixel_values"])


@pytest.mark.parametrize("change", [-1, 1])
def test_image_tokens_that_do_not_match_the_features_are_refused(model, two_images, change):
    ids = two_images["input_ids"].clone()
    place = int((ids[0] == 32044).nonzero()[0])
    ids[0, place if change < 0 else place - 1] = 5 if change < 0 else 32044
    places = int((ids == 32044).sum())
    with pytest.raises(
        ValueError, match=f"{places} image tokens do not fit {places - change} features of 2 images"
    ):
        model(**two_images | {"input_ids": ids})


def test_a_picture_that_would_spill_into_the_next_ones_place_is_refused(model, two_images):
    # As many places as features, but one moved from the first picture to the second.
    ids = two_images["input_ids"].clone()
    places = (ids[0] == 32044).nonzero().flatten().tolist()
    ids[0, places[0]], ids[0, places[-1] + 1] = 5, 32044
    with pytest.raises(ValueError, match=r"image tokens end after \[16, 34\] in all"):
        model(**two_images | {"input_ids": ids})


@pytest.mark.parametrize(("first", "second"), [(-2, -1), (-1, -3), (-2, -3)])
def test_negative_ids_that_do_not_count_up_are_refused(model, two_images, first, second):
    inputs = count_down(two_images)
    ids = inputs["input_ids"]
    changed = torch.where(ids == -1, first, torch.where(ids == -2, second, ids))
    with pytest.raises(ValueError, match=r"image tags out of order: \[\d, \d\]"):
        model(**inputs | {"input_ids": changed})


def test_sizes_that_are_no_grids_are_refused(model, two_images):
    with pytest.raises(ValueError, match="30 x 28 pixels is no grid of 28 pixel crops"):
        model(**two_images | {"image_sizes": torch.tensor([[30, 28], [28, 56]])})


def test_crops_that_do_not_match_the_sizes_are_refused(model, two_images):
    fewer = two_images["pixel_values"][:-1]
    with pytest.raises(ValueError, match="crops do not fit 2 images"):
        model(**two_images | {"pixel_values": fewer})
    padded = published_form(two_images)
    with pytest.raises(ValueError, match="pixel_values of 1 images, sizes of 2"):
        model(**padded | {"pixel_values": padded["pixel_values"][:1]})


def test_a_call_without_anything_is_refused(model):
    with pytest.raises(ValueError, match="give input_ids or inputs_embeds"):
        model()


# -- learning --------------------------------------------------------------------------------------


def gradients(model, inputs):
    model.zero_grad()
    model(**inputs, labels=inputs["input_ids"].clamp(max=32010)).loss.backward()
    return {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


def test_everything_learns_but_the_last_tower_layer_and_the_norm_behind_it(model, two_images):
    names = {name for name, _ in model.named_parameters()}
    unused = ("encoder.layers.2.", "post_layernorm.")
    tower = "model.vision_embed_tokens.img_processor.vision_model."
    idle = {name for name in names if name.startswith(tuple(tower + one for one in unused))}
    learnt = gradients(model, two_images)
    assert len(idle) == 18
    assert learnt.keys() == names - idle
    assert all(gradient.norm() > 0 for gradient in learnt.values())


def test_recomputing_activations_gives_the_same_gradients(model, two_images):
    plain = gradients(model, two_images)
    calls = []
    hook = model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    model.activation_checkpointing_enable()
    model.train()
    try:
        with hook:
            recomputed = gradients(model, two_images)
    finally:
        model.activation_checkpointing_disable()
        model.eval()
    assert len(calls) == 2  # forward, and again on the way back
    assert recomputed.keys() == plain.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, atol=1e-6, rtol=1e-5)


def test_the_layers_below_a_frozen_tower_learn_with_recomputing_too(model, two_images):
    frozen = [p for n, p in model.named_parameters() if "img_processor" in n]
    model.activation_checkpointing_enable()
    model.train()
    try:
        for parameter in frozen:
            parameter.requires_grad_(False)
        learnt = gradients(model, two_images)
    finally:
        model.activation_checkpointing_disable()
        model.eval()
        for parameter in frozen:
            parameter.requires_grad_(True)
    assert learnt.keys() == {n for n, _ in model.named_parameters() if "img_processor" not in n}


def test_a_picture_token_that_the_model_writes_itself_is_a_word_like_any_other(tmp_path):
    model = make_model(tmp_path / "model").model.eval()
    token = model.config.image_token_id
    head = torch.nn.Linear(model.lm_head.in_features, model.lm_head.out_features)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias).data[token] = 1.0
    model.lm_head = head
    ids = torch.arange(5, 12)[None]
    made = model.generate(input_ids=ids, max_new_tokens=3, do_sample=False)
    assert made[0, 7:].tolist() == [token] * 3
