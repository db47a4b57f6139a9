"""What the seam promises of each family: a shared row is what transformers makes of samples."""

import inspect
import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from daily import daily
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_models import write_tiny

from foveal.data.batch import build_batch
from foveal.data.dataset import read_dataset
from foveal.data.forward_inputs import Batch
from foveal.data.row_planning.groups import Group, Row
from foveal.data.rows import RowPlanner
from foveal.data.shapes import expand_entries
from foveal.data.turn_processor import AskedTurn
from foveal.errors import ModelError
from foveal.evaluate.questions import Opener, questions_of
from foveal.models import row_view
from foveal.models.generation.generator import Generator, Request, generate
from foveal.models.loading import load
from foveal.models.row_view import RowView, token_places
from foveal.train.audit import VANISHING
from foveal.train.loss import RowLoss

FAMILIES = daily(
    *("qwen3_vl", "smolvlm", "internvl", "llava_next", "gemma3", "gemma4"),
    beside=["qwen2_5_vl", "idefics3", "llava", "glm4v"],
)
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

SIZES = {"wide.png": (150, 90), "tall.png": (64, 200), "small.png": (40, 44)}
WORDS = [
    "which",
    "number",
    "stands",
    "beside",
    "the",
    "total",
    "of",
    "this",
    "page",
    "in",
    "a",
    "red",
    "circle",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """One to five questions an image, several images, several turns, words alone; all ragged."""
    folder = tmp_path_factory.mktemp("data")
    pixels, words = np.random.default_rng(0), random.Random(0)
    for name, (width, height) in SIZES.items():
        noise = pixels.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(noise).save(folder / name)

    def some(most):
        return " ".join(words.choices(WORDS, k=words.randint(1, most)))

    shown = [["wide.png"]] * 5 + [["tall.png"]] + [["small.png", "tall.png"]] * 2 + [[]]
    turns = [[{"images": one, "user": some(9), "assistant": some(4)}] for one in shown]
    turns[5].append({"images": ["small.png"], "user": some(5), "assistant": some(3)})
    turns[0][0]["user"] = "what is <|im_end|> or <image> here"
    file = folder / "data.jsonl"
    lines = [{"id": str(number), "conversations": one} for number, one in enumerate(turns)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


class Loaded:
    """A tiny model and the data, read for it."""

    def __init__(self, folder, data):
        self.loaded = load(str(folder), None, "blocks")
        # Twice the digits: what is left then is a difference of what is computed, not of rounding,
        # of which a random model makes more than a tuned one.
        self.model, self.processor = self.loaded.model.double(), self.loaded.processor
        self.model.config.get_text_config()._experts_implementation = "eager"  # others: no doubles
        self.examples, self.dataset = read_dataset(data, self.processor)
        self.folder = data.parent
        self.loss = RowLoss(self.model, self.loaded.family)

    def rows(self, **settings):
        plan = RowPlanner(
            self.dataset.sizes,
            examples_per_step=len(self.dataset.examples),
            tokens_per_pass=10**6,
            **settings,
        )
        return [row for rank in plan.step(0).ranks for row in rank]

    def alone(self):
        tokens = self.dataset.sizes.tokens.tolist()
        return [Row((Group((number,), count),)) for number, count in enumerate(tokens)]

    def learn(self, rows):
        """Loss and gradients of our rows."""
        self.model.zero_grad(set_to_none=True)
        total = 0.0
        for row in rows:
            batch = build_batch(row, self.dataset, self.processor)
            pixels = {
                n: p.double() if p.is_floating_point() else p for n, p in batch.pixels.items()
            }
            value = self.loss(replace(batch, pixels=pixels))
            value.backward()
            total += value.item()
        return total, self.gradients()

    def gradients(self):
        named = self.model.named_parameters()
        return {name: one.grad.clone() for name, one in named if one.grad is not None}

    def plain_inputs(self, ids, paths, learnt=()):
        """What transformers' own processor and model take for one example."""
        images = [Image.open(self.folder / path) for path in paths]
        inputs = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]}
        own = self.processor.processor
        if images:
            text = self.processor.placeholder * len(images)
            made = own(text=[text], images=[images], return_tensors="pt")
            reads = getattr(self.model.model, "get_image_features", self.model.model.forward)
            taken = inspect.signature(reads).parameters
            inputs = {name: one for name, one in made.items() if name in taken} | inputs
            doubled = {n: one.double() for n, one in inputs.items() if one.is_floating_point()}
            inputs |= doubled
        for name in ("mm_token_type_ids", "token_type_ids"):
            if name in inspect.signature(self.model.model.forward).parameters:
                inputs[name] = (ids == self.processor.image_token_id).long()[None]
        if hasattr(own, "create_moe_mm_token_type_ids"):  # images have experts of their own
            kinds = own.create_moe_mm_token_type_ids(ids[None].numpy())
            inputs["moe_mm_token_type_ids"] = torch.as_tensor(kinds)
        if self.model.config.model_type == "paligemma":  # what its processor says of a suffix
            inputs["token_type_ids"] = torch.zeros_like(ids)[None]
            if any(learnt):
                inputs["token_type_ids"][0, learnt.tolist().index(True) :] = 1
        return inputs

    def learn_in_transformers(self):
        """Loss and gradients of transformers alone, one example at a time."""
        self.model.zero_grad(set_to_none=True)
        total = 0.0
        for number, example in enumerate(self.examples):
            shapes = [self.dataset.images[one].shape for one in self.dataset.image_numbers(number)]
            expanded = self.dataset.examples[number].expand(shapes)
            ids, learnt = torch.from_numpy(expanded.ids), torch.from_numpy(expanded.learnt)
            hidden = self.model.model(
                **self.plain_inputs(ids, example.images, learnt), use_cache=False
            ).last_hidden_state[0]
            logits = self.model.get_output_embeddings()(hidden)[:-1][learnt[1:]].float()
            loss = F.cross_entropy(logits, ids[1:][learnt[1:]], reduction="sum")
            loss.backward()
            total += loss.item()
        return total, self.gradients()


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp(request.param)
    return Loaded(write_tiny(request.param, folder), data)


@pytest.fixture(scope="module")
def truth(family):
    family.model.set_attn_implementation("eager")
    found = family.learn_in_transformers()
    family.model.set_attn_implementation({"text_config": "foveal_blocks"})
    return found


def distance(ours, theirs):
    """Largest difference of a weight's gradient, relative to itself."""
    assert ours.keys() == theirs.keys()
    largest = max(one.norm() for one in theirs.values())
    return max(
        float((ours[name] - one).norm() / (one.norm() + 1e-6 * largest))
        for name, one in theirs.items()
        if not name.endswith(VANISHING)
    )


@pytest.mark.parametrize("share", [True, False], ids=["shared", "side by side"])
def test_a_row_is_what_transformers_makes_of_each_sample(family, truth, share):
    rows = family.rows(share_images=share)
    assert len(rows) == 1
    loss, gradients = family.learn(rows)
    assert loss == pytest.approx(truth[0], rel=1e-6)
    assert distance(gradients, truth[1]) < 1e-5


def leak(monkeypatch):
    """Every branch sees its siblings."""

    def one_branch(groups, device):
        owner, branch, place = token_places(groups, device)
        return owner, torch.zeros_like(branch), place

    monkeypatch.setattr(row_view, "token_places", one_branch)


def count_on(monkeypatch):
    """Windows are measured in places of the row."""

    def in_the_row(groups, device):
        owner, branch, place = token_places(groups, device)
        return owner, branch, torch.arange(len(place), dtype=torch.int32)

    monkeypatch.setattr(row_view, "token_places", in_the_row)


def shift(monkeypatch):
    """Branches do not go on from their prefix."""
    place = Batch.__init__

    def shifted(self, *args, positions, groups, **kwargs):
        positions = positions.clone()
        for group in groups:
            positions[..., group.prefix_end : group.end] += 3
        place(self, *args, positions=positions, groups=groups, **kwargs)

    monkeypatch.setattr(Batch, "__init__", shifted)


def read_as_words(monkeypatch):
    """The tokens of an image do not see each other."""
    monkeypatch.setattr(RowView, "_is_mutual", lambda *_: False)


@pytest.mark.parametrize(
    ("name", "mutation"),
    [
        ("qwen3_vl", leak),
        ("qwen3_vl", shift),
        ("llava", leak),
        ("llava", shift),
        ("gemma3", count_on),
        ("gemma3", read_as_words),
        ("gemma4", read_as_words),
    ],
    ids=lambda one: getattr(one, "__name__", one),
)
def test_a_wrong_row_does_not_pass_for_a_right_one(name, mutation, data, tmp_path, monkeypatch):
    model = Loaded(write_tiny(name, tmp_path), data)
    right, gradients = model.learn(model.rows())
    mutation(monkeypatch)
    wrong, others = model.learn(model.rows())
    assert abs(wrong / right - 1) > 1e-4
    assert distance(others, gradients) > 1e-2


def test_answers_are_those_of_transformers_one_by_one(family):
    model, processor = family.model.float().eval(), family.processor
    with Opener(family.dataset, processor) as opener:
        questions = [
            question
            for number, example in enumerate(family.examples)
            for question in questions_of(number, example, opener)
        ]
        made = generate(Generator(family.loaded), [Request(one.prompt, 6) for one in questions])
    try:
        model.set_attn_implementation("eager")
        for question, ours in zip(questions, made, strict=True):
            turns = family.examples[question.example].turns[: question.turn + 1]
            paths = [path for turn in turns for path in turn.images]
            ids = torch.from_numpy(question.prompt.whole(processor).ids)
            inputs = family.plain_inputs(ids, paths)
            pixels = {name: one.float() for name, one in inputs.items() if name == "pixel_values"}
            written = model.generate(
                **inputs | pixels,
                do_sample=False,
                max_new_tokens=6,
                eos_token_id=list(processor.end_ids),
                suppress_tokens=[processor.image_token_id],
            )
            assert ours == written[0, len(ids) :].tolist()
    finally:
        model.set_attn_implementation({"text_config": "foveal_blocks"})
        model.double().train()


def test_an_image_costs_what_the_processor_makes_of_it(family):
    draw = random.Random(1)
    sizes = [(1, 1), (1, 40), (300, 7), (40, 41), (336, 336), (500, 90), (31, 400)]
    sizes += [(draw.randint(2, 260), draw.randint(2, 260)) for _ in range(6)]
    own = family.processor.processor
    for width, height in sizes:
        noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
        image = Image.fromarray(noise)
        try:
            made = own(text=[f"a {own.image_token} b"], images=[[image]], return_tensors="pt")
        except ValueError:
            with pytest.raises(ValueError):  # noqa: PT011
                family.processor.shape(width, height)
            continue
        entries = family.processor.encode_turns([AskedTurn("b", 1, None)]).entries
        assert sum(entry < 0 for entry in entries) == 1
        shape = family.processor.shape(width, height)
        ids = made["input_ids"][0].tolist()
        assert ids.count(family.processor.image_token_id) == shape.features
        run = shape.ids.tolist()
        assert any(ids[at : at + len(run)] == run for at in range(len(ids)))
        features = family.model.get_image_features(
            **{
                name: one.to(family.model.dtype) if one.is_floating_point() else one
                for name, one in family.processor.pixels(image).items()
            },
            return_dict=True,
        ).pooler_output
        whole = features if isinstance(features, torch.Tensor) else torch.cat(list(features))
        assert whole.numel() // whole.shape[-1] == shape.features


def test_prompts_are_those_of_the_models_own_template(family):
    own = family.processor.processor
    image = Image.new("RGB", SIZES["wide.png"])
    parts = [{"type": "image", "image": image}, {"type": "text", "text": "which number is it?"}]
    text = own.tokenizer.apply_chat_template(
        [{"role": "user", "content": parts}],
        chat_template=own.chat_template or own.tokenizer.chat_template,
        add_generation_prompt=True,
        tokenize=False,
    )
    begins = own.tokenizer.bos_token and text.startswith(own.tokenizer.bos_token)
    whole = own(text=[text], images=[[image]], add_special_tokens=not begins)["input_ids"][0]
    entries = family.processor.encode_turns([AskedTurn("which number is it?", 1, None)]).entries
    ids, _ = expand_entries(np.asarray(entries, np.int32), [family.processor.shape(*image.size)])
    assert ids.tolist() == whole


@pytest.mark.parametrize("gone", ["model.language_model.layers.1.mlp.up_proj.weight", "lm_head"])
def test_a_folder_that_lacks_weights_is_refused_by_name(tmp_path, gone):
    folder = write_tiny("qwen3_vl", tmp_path)
    file = folder / "model.safetensors"
    kept = {name: one for name, one in load_file(file).items() if not name.startswith(gone)}
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"1 of its weights are in none .* such as {gone}"):
        load(str(folder), None)
