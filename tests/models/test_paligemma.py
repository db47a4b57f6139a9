"""PaliGemma: an answer never sees what stands behind it, and is what transformers generates."""

import numpy as np
import pytest
import tiny_models_more  # noqa: F401  # enters its family
import torch
from tiny import make_image, turn, write_data
from tiny_models import write_tiny

from foveal.data.batch import build_batch
from foveal.data.dataset import read_dataset
from foveal.data.row_planning.groups import Group, Row
from foveal.errors import DataError
from foveal.evaluate.questions import Opener, questions_of
from foveal.models.forward import hidden_states
from foveal.models.generation.generator import Generator, Request, generate
from foveal.models.generation.score import score
from foveal.models.loading import load
from foveal.train.loss import RowLoss

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
ASKED = "Which number stands beside the total?"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paligemma")
    make_image(folder / "images" / "page.png", 0, (64, 48))
    asked = [
        [turn(ASKED, "one of three", ["page.png"])],
        [turn(ASKED, "one of four words", ["page.png"])],
        [turn("Is it red?", "yes", ["page.png"])],
    ]
    loaded = load(str(write_tiny("paligemma", folder / "model")), None, "blocks")
    examples, dataset = read_dataset(write_data(folder / "data.jsonl", asked), loaded.processor)
    return loaded, examples, dataset


def batch_of(place, number):
    loaded, _, dataset = place
    group = Group((number,), int(dataset.sizes.tokens[number]))
    return build_batch(Row((group,)), dataset, loaded.processor)


def test_a_token_is_predicted_from_what_stands_before_it_alone(place):
    loaded = place[0]
    seen = {}
    hook = loaded.model.model.register_forward_hook(
        lambda _, __, made: seen.update(hidden=made.last_hidden_state[0].detach())
    )
    states = []
    for number in (0, 1):  # answers with a common beginning
        batch = batch_of(place, number)
        RowLoss(loaded.model, loaded.family)(batch)
        states.append(seen["hidden"])
    hook.remove()
    first, second = (batch_of(place, number) for number in (0, 1))
    common = int((first.targets[:3] == second.targets[:3]).int().cumprod(0).sum())
    assert common >= 2
    places = first.predictors[:common]
    torch.testing.assert_close(states[0][places], states[1][places], rtol=1e-5, atol=1e-5)
    alone = hidden_states(loaded.model, loaded.family, first, groups=first.groups)
    difference = (alone[places] - states[0][places]).abs().max()
    assert difference > 1e-2  # the whole read as a question would let it see its answer


def test_answers_are_those_of_transformers(place):
    loaded, examples, dataset = place
    model, processor = loaded.model.eval(), loaded.processor
    with Opener(dataset, processor) as opener:
        questions = [
            question
            for number, example in enumerate(examples)
            for question in questions_of(number, example, opener)
        ]
        made = generate(Generator(loaded), [Request(one.prompt, 5) for one in questions])
        labels = [processor.encode_answer(label) for label in ("yes", "no")]
        scored = score(loaded, [(one.prompt, labels) for one in questions])
        wholes = [one.prompt.whole(processor) for one in questions]
        pixels = [dict(whole.images[0].pixels()) for whole in wholes]
    model.set_attn_implementation("eager")
    for ours, likely, whole, image in zip(made, scored, wholes, pixels, strict=True):
        ids = torch.from_numpy(whole.ids)[None]
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **image}
        written = model.generate(
            **inputs,
            token_type_ids=torch.zeros_like(ids),
            do_sample=False,
            max_new_tokens=5,
            eos_token_id=list(processor.end_ids),
            suppress_tokens=[processor.image_token_id],
        )
        assert ours == written[0, ids.shape[1] :].tolist()
        for label, found in zip(labels, likely, strict=True):
            whole_ids = torch.cat([ids, torch.tensor([label])], 1)
            types = torch.tensor([[0] * ids.shape[1] + [1] * len(label)])
            with torch.no_grad():
                logits = model(
                    input_ids=whole_ids,
                    attention_mask=torch.ones_like(whole_ids),
                    token_type_ids=types,
                    **image,
                ).logits[0, ids.shape[1] - 1 : -1]
            chosen = logits.log_softmax(-1)[np.arange(len(label)), label]
            assert found == pytest.approx(float(chosen.sum()), rel=1e-4)
    model.set_attn_implementation({"text_config": "foveal_blocks"})


def test_several_turns_are_refused(place, tmp_path):
    data = write_data(tmp_path / "data.jsonl", [[turn("a", "b"), turn("c", "d")]])
    with pytest.raises(DataError, match="give each turn a line of its own"):
        read_dataset(data, place[0].processor)
