"""Each example is rotated by its own length, whoever its neighbours are."""

import pytest
import torch
from golden_data import GOLDEN, load_model, read_json
from safetensors.torch import load_file
from torch.nn.functional import pad

from foveal.models.phi3_vision import Phi3VisionConfig
from foveal.models.phi3_vision.rotary import PerExampleRotaryEmbedding

TABLES = read_json("rope/rope.json")
CONFIGS = {
    "phi35": "phi3v-facts/config.phi35.json",
    "phi3": "phi3v-facts/config.phi3.json",
    "tiny_a": "tiny_a/config.json",
    "tiny_b": "tiny_b/config.json",
}
BORDER = 64  # original context of tiny_b
PADDING = 500


def rotary(name):
    return PerExampleRotaryEmbedding(Phi3VisionConfig(**read_json(CONFIGS[name])))


@pytest.fixture(scope="module")
def model():
    return load_model("tiny_b")


def text(length, seed):
    return torch.randint(3, PADDING, (length,), generator=torch.Generator().manual_seed(seed))


def padded_batch(rows, side):
    longest = max(len(row) for row in rows)
    ids, mask = [], []
    for row in rows:
        missing = longest - len(row)
        room = (missing, 0) if side == "left" else (0, missing)
        ids.append(pad(row, room, value=PADDING))
        mask.append(pad(torch.ones_like(row), room))
    return {"input_ids": torch.stack(ids), "attention_mask": torch.stack(mask)}


def greedy_without_cache(model, row, steps):
    """Decode the plain way: the whole sequence again for each token."""
    for _ in range(steps):
        logits = model(input_ids=row[None], use_cache=False, logits_to_keep=1).logits
        row = torch.cat([row, logits[0, -1].argmax()[None]])
    return row[-steps:].tolist()


@pytest.mark.parametrize("length", ["short", "long"])
@pytest.mark.parametrize("name", CONFIGS)
def test_cosines_and_sines_are_the_references(name, length):
    stored = load_file(GOLDEN / "rope" / "rope.safetensors")
    positions = torch.tensor([TABLES[f"{name}.{length}"]["position_ids"]])
    embedding = rotary(name)
    cos, sin = embedding(positions, torch.tensor([[length == "long"]]), torch.float32)
    torch.testing.assert_close(cos[0], stored[f"{name}.{length}.cos"], atol=1e-6, rtol=0)
    torch.testing.assert_close(sin[0], stored[f"{name}.{length}.sin"], atol=1e-6, rtol=0)
    if facts := TABLES.get(name):
        assert embedding.attention_scaling == pytest.approx(facts["scaling_factor"], abs=1e-12)
        assert cos.shape[-1] == facts["dim"]


def test_factors_follow_the_length_of_each_tokens_own_example():
    positions = torch.tensor([[5, 5], [5, 5]])
    is_long = torch.tensor([[BORDER, BORDER + 1], [BORDER + 1, BORDER]]) > BORDER
    cos, _ = rotary("tiny_b")(positions, is_long, torch.float32)
    short, long = cos[0]
    assert torch.equal(cos[1], torch.stack([long, short]))
    assert not torch.allclose(short, long)


def test_a_model_without_long_factors_rotates_as_plain_rope():
    config = read_json("tiny_b/config.json") | {"rope_scaling": None}
    plain = PerExampleRotaryEmbedding(Phi3VisionConfig(**config))
    cos, sin = plain(torch.tensor([[0, 100]]), torch.tensor([[True]]), torch.float32)
    angles = 100 / 10000.0 ** (torch.arange(8) / 8)  # head size 16
    torch.testing.assert_close(cos[0, 1], angles.cos().repeat(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(sin[0, 1], angles.sin().repeat(2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_long_and_a_short_row_of_one_batch_give_what_each_gives_alone(model, side):
    rows = [text(BORDER + 30, 0), text(BORDER - 24, 1), text(BORDER, 2), text(BORDER + 1, 3)]
    batch = padded_batch(rows, side)
    with torch.no_grad():
        together = model(**batch).logits
        for row, mask, logits in zip(rows, batch["attention_mask"], together, strict=True):
            alone = model(input_ids=row[None]).logits[0]
            torch.testing.assert_close(logits[mask.bool()], alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("use_cache", [True, False])
def test_rows_that_cross_the_border_at_different_times_generate_what_each_gives_alone(
    model, use_cache
):
    # Over 12 new tokens the rows cross at the 1st, 4th and 9th, were over it, or never get there.
    rows = [text(BORDER - spare, spare + 100) for spare in (0, 3, 8, -5, 40)]
    with torch.no_grad():
        made = model.generate(
            **padded_batch(rows, "left"),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=PADDING,
            use_cache=use_cache,
        )
        alone = [greedy_without_cache(model, row, 12) for row in rows]
    assert made[:, -12:].tolist() == alone


def test_a_batch_without_a_mask_crosses_the_border_too(model):
    rows = torch.stack([text(BORDER - 3, 7), text(BORDER - 3, 8)])
    with torch.no_grad():
        made = model.generate(
            rows, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=None
        )
        alone = [greedy_without_cache(model, row, 8) for row in rows]
    assert made[:, -8:].tolist() == alone
