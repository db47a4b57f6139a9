"""Asked in any way, a model reads the ids that it was trained on."""

import base64
import json
import subprocess
import sys
from functools import partial

import pytest
from PIL import Image
from tiny import SIZES

from foveal.data.encode import encode
from foveal.data.example import parse_example
from foveal.data.images.image_folder import ImageFolder
from foveal.data.images.media import image_size
from foveal.deliver.answerer import Answerer
from foveal.models.generation.generator import Generator
from foveal.models.loading import load
from foveal.models.phi3_vision.tiny import write_tiny
from foveal.serve.limits import ServerLimits
from foveal.serve.messages import ChatRequest, read_conversation
from foveal.serve.sent_files import read_address
from foveal.serve.served import Served

SYSTEM = "Be brief."
IMAGE = None
ORDERS = [
    ([IMAGE, "What is it?"], "What is it?"),
    (["What is it?", IMAGE], "What is it?"),
    ([IMAGE, IMAGE, "Which?"], "Which?"),
    ([IMAGE, "One.", "Two."], "One.\nTwo."),
    (["One.", "Two."], "One.\nTwo."),
    (["Is", IMAGE, "a cat?"], "Is\n<|image_1|>\na cat?"),
    (
        [IMAGE, "like", IMAGE, IMAGE, "or not?"],
        "<|image_1|>\nlike\n<|image_2|><|image_3|>\nor not?",
    ),
    ([IMAGE, "Is <|image_2|> like <|image_1|>?", IMAGE], "Is <|image_2|> like <|image_1|>?"),
    ([IMAGE], ""),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one way")
    write_tiny(folder / "model", 0, SIZES)
    for number in range(3):
        Image.new("RGB", (40 + 20 * number, 30), (80 * number, 0, 0)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def loaded(folder):
    return load(str(folder / "model"), 4)


def trained_ids(loaded, folder, images, user):
    """The prompt that training puts before the answer."""
    turn = {"images": images, "user": user, "assistant": "Yes."}
    line = json.dumps({"id": "a", "conversations": [turn]})
    encoded = encode(parse_example(line), loaded.processor, ImageFolder(folder / "data.jsonl"))
    sizes = [image_size(one) for one in encoded.images]
    expanded = encoded.expand([loaded.processor.shape(*size) for size in sizes])
    return expanded.ids[~expanded.learnt].tolist()


def served_ids(loaded, folder, messages):
    """The prompt that the endpoint asks."""
    asked = ChatRequest.model_validate({"messages": messages})
    read = partial(read_address, limits=ServerLimits(), fetch=None)
    conversation = read_conversation(asked.messages, read)
    (request,), _ = Served("it", loaded).requests(asked, conversation, ServerLimits())
    return request.prompt.whole(loaded.processor).ids.tolist()


def openai_parts(parts, folder):
    numbers = iter(range(len(parts)))
    made = []
    for part in parts:
        if part is IMAGE:
            coded = base64.b64encode((folder / f"{next(numbers)}.png").read_bytes()).decode()
            made.append(
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{coded}"}}
            )
        else:
            made.append({"type": "text", "text": part})
    return made


def template_parts(parts, folder):
    numbers = iter(range(len(parts)))
    return [
        {"type": "image", "path": str(folder / f"{next(numbers)}.png")}
        if part is IMAGE
        else {"type": "text", "text": part}
        for part in parts
    ]


def template_ids(loaded, messages, **more):
    more = {"add_generation_prompt": True} | more
    inputs = loaded.processor.apply_chat_template(messages, tokenize=True, **more)
    return inputs["input_ids"][0].tolist()


def asked_ids(loaded, monkeypatch, images, question, **more):
    """The prompt that `answer`, and `foveal ask` through it, asks."""
    taken = []

    def note(generator: Generator, request):
        taken.append(request.prompt)
        raise InterruptedError

    monkeypatch.setattr(Generator, "add", note)
    with pytest.raises(InterruptedError):
        Answerer(loaded).answer(images, question, **more)
    return taken[0].whole(loaded.processor).ids.tolist()


@pytest.mark.parametrize(("parts", "user"), ORDERS)
def test_a_message_in_any_order_is_read_as_it_was_trained(loaded, folder, monkeypatch, parts, user):
    images = [f"{number}.png" for number in range(parts.count(IMAGE))]
    trained = trained_ids(loaded, folder, images, user)
    system = {"role": "system", "content": ""}
    serving = [system, {"role": "user", "content": openai_parts(parts, folder)}]
    writing = [system, {"role": "user", "content": template_parts(parts, folder)}]
    assert served_ids(loaded, folder, serving) == trained
    assert template_ids(loaded, writing) == trained
    assert asked_ids(loaded, monkeypatch, [folder / one for one in images], user) == trained


@pytest.mark.parametrize(
    "opening",
    [
        [{"role": "system", "content": "Be brief.\n\nIn German."}],
        [{"role": "developer", "content": "Be brief.\n\nIn German."}],
        [
            {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
            {"role": "developer", "content": "In German."},
        ],
    ],
)
def test_a_system_message_is_the_block_of_the_published_template_by_every_way(
    loaded, folder, monkeypatch, opening
):
    processor = loaded.processor
    expected = [
        *processor.encode_system("Be brief.\n\nIn German."),
        *processor.encode_prompt("Why?", 0)[1:],
    ]
    messages = [*opening, {"role": "user", "content": "Why?"}]
    assert served_ids(loaded, folder, messages) == expected
    assert template_ids(loaded, messages) == expected
    system = "Be brief.\n\nIn German."
    assert asked_ids(loaded, monkeypatch, [], "Why?", system=system) == expected


def test_what_a_user_says_in_a_row_is_one_turn_by_every_way(loaded, folder):
    joined = [{"role": "user", "content": "One.\nTwo."}]
    apart = [{"role": "user", "content": "One."}, {"role": "user", "content": "Two."}]
    ids = served_ids(loaded, folder, joined)
    assert served_ids(loaded, folder, apart) == ids
    assert template_ids(loaded, apart) == template_ids(loaded, joined) == ids


@pytest.mark.slow
def test_a_folders_own_template_and_tokenizer_give_the_same_ids_without_foveal(loaded, folder):
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "Why?"}]
    script = f"""
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained({str(folder / "model")!r})
text = tokenizer.apply_chat_template({messages!r}, tokenize=False, add_generation_prompt=True)
print(tokenizer(text)["input_ids"])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == template_ids(loaded, messages)
