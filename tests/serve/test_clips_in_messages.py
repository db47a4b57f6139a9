"""A clip that is asked about is shown as training shows it, within the limits of pictures."""

import base64
import json
from functools import partial
from pathlib import Path

import httpx
import pytest
import torch
from numbered_clips import STEADY, write_clip
from openai import APIStatusError, BadRequestError
from PIL import Image
from serving import image_bytes, question
from tiny_models import write_tiny

from foveal.config import DataSettings
from foveal.data.batch import open_pixels
from foveal.data.dataset import read_dataset
from foveal.data.images.frames import FrameChoice
from foveal.data.turn_processor import read_as
from foveal.deliver.answerer import Answerer
from foveal.models.generation.generator import Generator
from foveal.models.loading import load
from foveal.serve.limits import RequestError, ServerLimits, ServerSettings
from foveal.serve.messages import ChatRequest, read_conversation
from foveal.serve.sent_files import read_address
from foveal.serve.served import Served

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
WAYS = [
    ("phi3_v", DataSettings(frames=3, num_crops=4)),
    ("phi3_v", DataSettings(frames=9, frames_per_second=2, num_crops=4)),
    ("qwen3_vl", DataSettings(frames=4)),
    ("qwen3_vl", DataSettings(frames=5, clips="video")),
]


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    (folder / "images").mkdir()
    write_clip(folder / "images" / "clip.avi", "mpeg4", STEADY[:50], b_frames=0)
    Image.new("RGB", (60, 40), (40, 90, 160)).save(folder / "images" / "page.png")
    turn = {"user": "What moves?", "assistant": "yes", "videos": ["clip.avi"]}
    turn["images"] = ["page.png"]
    line = {"id": "1", "system": "Be brief.", "conversations": [turn]}
    (folder / "data.jsonl").write_text(json.dumps(line) + "\n")
    return folder


def part(kind: str, mime: str, data: bytes) -> dict[str, object]:
    url = f"data:{mime};base64,{base64.b64encode(data).decode()}"
    return {"type": kind, kind: {"url": url}}


def clip_of(films: Path) -> dict[str, object]:
    return part("video_url", "video/x-msvideo", (films / "images" / "clip.avi").read_bytes())


def page_of(films: Path) -> dict[str, object]:
    return part("image_url", "image/png", (films / "images" / "page.png").read_bytes())


LIMITS = ServerLimits()


def prompt_of(served: Served, *content, limits=LIMITS):
    """What the endpoint asks its model."""
    system = {"role": "system", "content": "Be brief."}
    messages = [system, {"role": "user", "content": [*content]}]
    asked = ChatRequest.model_validate({"messages": messages})
    conversation = read_conversation(
        asked.messages, partial(read_address, limits=limits, fetch=None)
    )
    return served.requests(asked, conversation, limits)[0][0].prompt


@pytest.mark.parametrize(("family", "settings"), WAYS)
def test_the_endpoint_and_ask_show_a_clip_as_training_does(
    films, tmp_path, tiny_folder, monkeypatch, family, settings
):
    folder = tiny_folder if family == "phi3_v" else write_tiny(family, tmp_path / family)
    loaded = load(str(folder), 4 if family == "phi3_v" else None)
    read_as(loaded.processor, settings)
    _, dataset = read_dataset(films / "data.jsonl", loaded.processor)
    numbers = dataset.image_numbers(0)
    images = [dataset.images[number] for number in numbers]
    trained = dataset.examples[0].expand([image.shape for image in images])
    pixels = [open_pixels(number, dataset, loaded.processor) for number in numbers]
    assert len(images) == (2 if settings.clips == "video" else 1 + min(settings.frames, 4))

    text = {"type": "text", "text": "What moves?"}
    served = prompt_of(Served("it", loaded), clip_of(films), page_of(films), text)
    asked = []

    def note(_, request):
        asked.append(request.prompt)
        raise InterruptedError

    monkeypatch.setattr(Generator, "add", note)
    shown = [films / "images" / "clip.avi", films / "images" / "page.png"]
    with pytest.raises(InterruptedError):
        Answerer(loaded).answer(shown, "What moves?", system="Be brief.")
    for prompt in (served, *asked):
        whole = prompt.whole(loaded.processor)
        assert whole.ids.tolist() == trained.ids[~trained.learnt].tolist()
        for image, exact in zip(whole.images, pixels, strict=True):
            made = image.pixels()
            assert all(torch.equal(made[name], exact[name]) for name in exact)


def test_a_client_asks_about_a_clip_and_again_about_the_same(
    films, stage, tiny, actor, monkeypatch
):
    monkeypatch.setattr(tiny.processor, "frame_choice", FrameChoice(3))
    server = stage()
    client = server.client()
    content = [clip_of(films), {"type": "text", "text": "What moves?"}]
    messages = [{"role": "user", "content": content}]
    said = client.chat.completions.create(model="mine", messages=messages).choices[0].message
    again = [*messages, {"role": "assistant", "content": said.content}, question("And then?")]
    client.chat.completions.create(model="mine", messages=again)
    one, two = (request.prompt for request in actor.asked)
    assert [image.key for image in one.images] == [image.key for image in two.images]
    assert len(one.images) == 3
    assert one.prefix_key == two.prefix_key


def test_a_clip_comes_beside_a_request_as_a_form_too(films, stage, actor):
    server = stage()
    answer = httpx.post(
        f"{server.url}/v1/chat/completions",
        files=[
            ("video", ("clip.avi", (films / "images" / "clip.avi").read_bytes())),
            ("image", ("page.png", image_bytes(1))),
        ],
        data={"request": json.dumps({"messages": [{"role": "user", "content": "What?"}]})},
    )
    assert answer.status_code == 200, answer.text
    assert len(actor.asked[0].prompt.images) == 1 + 8


def test_what_is_wrong_with_a_clip_is_one_sentence_that_names_it(films, stage):
    client = stage(ServerSettings(limits=ServerLimits(pixels=128 * 64 * 8))).client()
    text = {"type": "text", "text": "What moves?"}
    clip, broken = clip_of(films), part("video_url", "video/mp4", b"no clip at all")
    empty, web = part("video_url", "video/mp4", b""), "https://example.com/clip.mp4"
    for content, why in (
        ([broken, text], "^.*clip 1: broken clip .*; replace it"),
        ([clip, empty, text], "clip 2: broken clip"),
        (
            [{"type": "video_url", "video_url": {"url": web}}, text],
            "clip 1: this server fetches no",
        ),
        ([{"type": "video_url"}, text], r"messages\.0\.content\.0\.video_url is missing"),
        ([text, clip, text, page_of(films)], "a clip stands behind a turn's pictures"),
        ([clip, {"type": "text", "text": "<|image_1|>?"}], "a clip stands behind"),
    ):
        with pytest.raises(BadRequestError, match=why) as caught:
            client.chat.completions.create(
                model="mine", messages=[{"role": "user", "content": content}]
            )
        assert "foveal-" not in str(caught.value), "a place of the server's own"
    asked = {"model": "mine", "messages": [{"role": "user", "content": [clip, text]}]}
    assert client.chat.completions.create(**asked).choices[0].message.content
    asked["messages"][0]["content"].insert(0, page_of(films))
    with pytest.raises(
        Exception, match=r"clip 1: 128x64 takes the request to \d+ pixels"
    ) as caught:
        client.chat.completions.create(**asked)
    assert caught.value.status_code == 413


def test_a_clip_that_takes_too_long_to_decode_is_refused(films, tiny):
    served = Served("it", tiny)
    with pytest.raises(RequestError, match=r"clip 1: more than 0 seconds to decode; cut it"):
        prompt_of(served, clip_of(films), limits=ServerLimits(clip_seconds=0))
    assert len(prompt_of(served, clip_of(films)).images) == 8


def test_clips_count_among_the_pictures_of_a_request(films, stage):
    client = stage(ServerSettings(limits=ServerLimits(images=1))).client()
    shown = {"role": "user", "content": [clip_of(films), page_of(films)]}
    with pytest.raises(APIStatusError, match="2 pictures are more than 1") as caught:
        client.chat.completions.create(model="mine", messages=[shown])
    assert caught.value.status_code == 413


def test_nothing_of_a_clip_is_left_on_the_disk_and_pictures_need_none(
    films, tiny, tmp_path, monkeypatch
):
    served = Served("it", tiny)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    prompt_of(served, clip_of(films), page_of(films))
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))  # as on a read-only disk
    prompt_of(served, page_of(films))
