"""A family of transformers is served as Phi is: bytes, streams, system texts, pictures."""

import pytest
from openai import BadRequestError
from serving import image_bytes, question, running
from tiny_models import write_tiny
from transformers import AutoTokenizer

from foveal.models.loading import load
from foveal.serve.limits import ServerSettings
from foveal.serve.served import Served
from foveal.serve.server import build_app

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture
def client_of(request, tmp_path):
    def start(family, change=lambda template: template):
        folder = write_tiny(family, tmp_path / family)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = change(tokenizer.chat_template)
        tokenizer.save_pretrained(folder)
        loaded = load(str(folder), None)
        loaded.model.eval()
        app = build_app([Served("mine", loaded)], ServerSettings(), lambda _: 2**28)
        server = running(app, ServerSettings().limits)
        made = server.__enter__()
        request.addfinalizer(lambda: server.__exit__(None, None, None))
        return made.client()

    return start


def test_what_is_streamed_its_bytes_and_the_whole_answer_are_one_text(client_of):
    client = client_of("qwen3_vl")
    asked = {
        "model": "mine",
        "messages": [
            {"role": "system", "content": "be short"},
            question("What is it?", image_bytes(1), image_bytes(2, (80, 40))),
        ],
        "max_tokens": 24,
        "logprobs": True,
        "top_logprobs": 2,
    }
    whole = client.chat.completions.create(**asked).choices[0]
    pieces = [one.choices[0] for one in client.chat.completions.create(**asked, stream=True)]
    streamed = "".join(piece.delta.content or "" for piece in pieces)
    assert streamed == whole.message.content
    assert streamed
    named = b"".join(bytes(one.bytes) for one in whole.logprobs.content)
    assert named.decode(errors="replace") == streamed
    assert not any("\u0120" in one.token for one in whole.logprobs.content)


def test_a_system_text_that_the_template_has_no_place_for_is_refused(client_of):
    def without_system(template):
        return template.replace(
            "{% for message in messages %}",
            "{% for message in messages if message['role'] != 'system' %}",
        )

    client = client_of("qwen3_vl", without_system)
    messages = [{"role": "system", "content": "be short"}, question("What is it?")]
    with pytest.raises(BadRequestError, match="no place for a system text"):
        client.chat.completions.create(model="mine", messages=messages)
