"""A picture costs as many tokens as the published processor says, whoever counts them."""

import io
from types import SimpleNamespace

import pytest
from PIL import Image
from published import make_processor
from tiny import turn, write_data
from transformers import PretrainedConfig

from foveal.data.dataset import build_dataset
from foveal.data.encode import count_tokens, encode
from foveal.data.example import read_examples
from foveal.data.images.image_folder import ImageFolder
from foveal.models.family import LoadedModel
from foveal.models.phi3_vision.seam import FAMILY
from foveal.serve.limits import RequestError, ServerLimits
from foveal.serve.messages import ChatRequest, Conversation, Said
from foveal.serve.sent_files import SentFile
from foveal.serve.served import Served


def serve(num_crops):
    """The published processor before a model of which nothing but its reach is asked."""
    config = PretrainedConfig(sliding_window=None, max_position_embeddings=4096)
    model = SimpleNamespace(config=config)
    processor = make_processor(num_crops, crop_size=336, patch_size=14)
    return Served("it", LoadedModel(model, processor, FAMILY))


def png(size):
    held = io.BytesIO()
    Image.new("RGB", size).save(held, "PNG")
    return held.getvalue()


def ask(served, size, **more):
    asked = ChatRequest.model_validate({"messages": [{"role": "user", "content": "What?"}]} | more)
    said = Said("What?", (SentFile("picture 1", png(size)),))
    return served.requests(asked, Conversation((said,)), ServerLimits())[0][0].prompt


@pytest.mark.parametrize(
    ("size", "num_crops", "tokens"),
    [((640, 480), 16, 1921), ((480, 640), 16, 1933), ((97, 97), 4, 757)],
)
def test_the_endpoint_the_check_and_the_plan_count_the_same_tokens(
    tmp_path, size, num_crops, tokens
):
    served = serve(num_crops)
    prompt = ask(served, size)
    assert [one.shape.tokens for one in prompt.images] == [tokens]
    (tmp_path / "a.png").write_bytes(png(size))
    data = write_data(tmp_path / "data.jsonl", [[turn("What?", "Yes.", ["a.png"])]])
    processor = served.loaded.processor
    (example,) = read_examples(data)
    folder = ImageFolder(data)
    dataset = build_dataset([encode(example, processor, folder)], processor)
    assert dataset.sizes.image_tokens.tolist() == [tokens]
    answer = len(processor.encode_answer("Yes."))
    assert sum(count_tokens(processor, example, folder).turns) == prompt.tokens + answer


def test_a_prompt_at_the_models_limit_is_refused_in_a_sentence_and_one_below_is_not():
    served = serve(16)
    room = 4096 - ask(served, (640, 480)).tokens
    assert ask(served, (640, 480), max_tokens=room).tokens == 4096 - room
    with pytest.raises(RequestError, match="are more than the 4096 that the model sees") as caught:
        ask(served, (640, 480), max_tokens=room + 1)
    assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")
