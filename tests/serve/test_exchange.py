"""What the endpoint promises to OpenAI's own client."""

import io
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
import torch
from PIL import Image
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from serving import LINES, data_uri, image_bytes, question, wait_until

from foveal.serve.limits import ServerSettings


def transformers_answer(tiny, text, images, max_tokens):
    """The greedy answer of transformers' own generate, from the processor's own prompt."""
    processor = tiny.processor
    opened = [Image.open(io.BytesIO(one)).convert("RGB") for one in images]
    ids = []
    for entry in processor.encode_prompt(text, len(images)):
        tokens = processor.shape(*opened[-1 - entry].size).tokens if entry < 0 else 0
        ids += [processor.image_token_id] * tokens if entry < 0 else [entry]
    cut = processor.image_processor(opened)
    made = tiny.model.generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        pixel_values=cut["pixel_values"],
        image_sizes=cut["image_sizes"],
        max_new_tokens=max_tokens,
        do_sample=False,
        eos_token_id=list(processor.end_ids),
        pad_token_id=processor.end_ids[1],
    )
    return processor.decode_answer(made[0, len(ids) :].tolist()), len(ids)


def text_of(completion):
    return completion.choices[0].message.content


def test_an_answer_is_the_one_that_transformers_gives(serve, tiny):
    client = serve().client()
    images = [image_bytes(1), image_bytes(2, (80, 40))]
    completion = client.chat.completions.create(
        model="mine", messages=[question("What is the total?", *images)], max_tokens=12
    )
    expected, prompt_tokens = transformers_answer(tiny, "What is the total?", images, 12)
    assert text_of(completion) == expected
    assert completion.usage.prompt_tokens == prompt_tokens
    assert completion.usage.completion_tokens == 12
    assert completion.usage.total_tokens == prompt_tokens + 12
    assert completion.choices[0].finish_reason == "length"
    assert [one.id for one in client.models.list()] == ["mine"]
    assert client.models.retrieve("mine").object == "model"


def test_a_streamed_answer_is_the_whole_one_in_pieces(stage):
    client = stage().client()
    asked = {"model": "mine", "messages": [question()], "logprobs": False}
    whole = client.chat.completions.create(**asked)
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    *pieces, last = chunks
    said = [one.choices[0].delta.content or "" for one in pieces]
    assert "".join(said) == text_of(whole) == LINES[0]
    assert sum(map(bool, said)) > 5
    assert pieces[0].choices[0].delta.role == "assistant"
    assert [one.choices[0].finish_reason for one in pieces][-2:] == [None, "stop"]
    assert last.choices == []
    assert last.usage == whole.usage
    assert len({one.id for one in chunks}) == 1


def test_answers_asked_for_together_are_those_asked_for_one_by_one(serve):
    """They share steps, and those about one picture share it."""
    client = serve().client()
    asked = [(f"What is number {one % 4}?", image_bytes(one // 4)) for one in range(8)]

    def answer(text, image):
        return client.chat.completions.create(
            model="mine", messages=[question(text, image)], max_tokens=6
        )

    alone = [text_of(answer(*one)) for one in asked]
    with ThreadPoolExecutor(8) as pool:
        together = [text_of(one) for one in pool.map(lambda one: answer(*one), asked)]
    assert together == alone
    assert len(set(alone)) > 1


def test_turns_reach_the_model_as_training_writes_them(stage, actor, tiny):
    client = stage().client()
    client.chat.completions.create(
        model="mine",
        messages=[
            {"role": "system", "content": "Be brief."},
            question("First?", image_bytes(1)),
            {"role": "assistant", "content": "One."},
            question("Second?", image_bytes(2)),
        ],
    )
    processor, prompt = tiny.processor, actor.asked[0].prompt
    second = [one - 1 if one < 0 else one for one in processor.encode_prompt("Second?", 1)]
    turns = [*processor.encode_prompt("First?", 1), *processor.encode_answer("One."), *second]
    assert list(prompt.entries) == [*processor.encode_system("Be brief."), *turns[1:]]
    assert [image.key for image in prompt.images] == sorted(
        {image.key for image in prompt.images}, key=[one.key for one in prompt.images].index
    )


def test_a_system_message_is_written_as_the_published_template_writes_it(tiny):
    processor = tiny.processor
    text = processor.apply_chat_template(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}],
        add_generation_prompt=True,
    )
    published = processor(text)["input_ids"][0].tolist()
    ours = [*processor.encode_system("Be brief."), *processor.encode_prompt("Why?", 0)[1:]]
    assert ours == published[: len(ours)]


def test_an_answer_ends_before_its_stop_and_at_its_limit(stage, actor):
    client = stage().client()

    def answer(**more):
        choice = client.chat.completions.create(
            model="mine", messages=[question()], **more
        ).choices[0]
        return choice.message.content, choice.finish_reason

    assert answer() == (LINES[0], "stop")
    assert answer(stop=[" dollars", "50"]) == ("The total is 12.", "stop")
    assert answer(stop="never said") == (LINES[0], "stop")
    assert answer(max_tokens=1) == ("The", "length")
    assert answer(max_completion_tokens=2) == ("The total", "length")
    assert actor.is_idle, "what was cut off is not written on"


@pytest.mark.parametrize("stop", [" dollars", "s.", "l is 12", "50"])
def test_a_stream_never_shows_any_of_its_stop_wherever_tokens_part_it(stage, actor, stop):
    stream = stage().client().chat.completions.create(
        model="mine", messages=[question()], stop=stop, stream=True
    )  # fmt: skip
    pieces = [chunk.choices[0] for chunk in stream]
    shown = "".join(piece.delta.content or "" for piece in pieces)
    assert shown == LINES[0].partition(stop)[0].rstrip()
    assert pieces[-1].finish_reason == "stop"
    wait_until(lambda: actor.is_idle)


def test_a_stream_shows_characters_whole(stage, actor):
    actor.lines = ("a 🦊 für 5 €, ทั้งหมด",)
    stream = stage().client().chat.completions.create(
        model="mine", messages=[question()], stream=True
    )  # fmt: skip
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(pieces) == actor.lines[0]
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_streams_numbers_are_those_of_the_whole_answer(serve):
    client = serve().client()
    asked = {
        "model": "mine",
        "messages": [question("What?", image_bytes(1))],
        "max_tokens": 6,
        "logprobs": True,
        "top_logprobs": 2,
    }
    whole = client.chat.completions.create(**asked).choices[0]
    pieces = [one.choices[0] for one in client.chat.completions.create(**asked, stream=True)]
    numbers = [one for piece in pieces if piece.logprobs for one in piece.logprobs.content]
    assert [one.token for one in numbers] == [one.token for one in whole.logprobs.content]
    assert [one.logprob for one in numbers] == pytest.approx(
        [one.logprob for one in whole.logprobs.content], abs=1e-4
    )
    assert all(len(one.top_logprobs) == 2 for one in numbers)


@pytest.mark.parametrize(
    "more", [{}, {"stop": " "}, {"stop": " dollars"}, {"stop": "50"}, {"max_tokens": 4}]
)
@pytest.mark.parametrize("line", ["The total is 12.50 dollars.", "a 🦊 für 5 €, ทั้งหมด", "🦊🦊"])
def test_the_bytes_of_logprobs_joined_are_the_text(stage, actor, line, more):
    actor.lines = (line,)
    asked = {"model": "mine", "messages": [question()], "logprobs": True} | more
    client = stage().client()
    whole = client.chat.completions.create(**asked).choices[0]
    pieces = [one.choices[0] for one in client.chat.completions.create(**asked, stream=True)]
    streamed = "".join(piece.delta.content or "" for piece in pieces)
    numbers = [one for piece in pieces if piece.logprobs for one in piece.logprobs.content]
    assert streamed == whole.message.content
    assert "\ufffd" not in streamed
    for some in (whole.logprobs.content, numbers):
        assert bytes(byte for one in some for byte in one.bytes).decode() == streamed
    assert line.startswith(streamed)


def test_questions_of_different_people_about_one_picture_read_it_once(serve, tiny, monkeypatch):
    crops_read = []
    usual = tiny.model.model.get_image_features

    def counting(pixel_values, image_sizes):
        crops_read.append(len(pixel_values))
        return usual(pixel_values, image_sizes)

    monkeypatch.setattr(tiny.model.model, "get_image_features", counting)
    server = serve()
    for number in range(3):  # each a client of its own, one after the other
        server.client().chat.completions.create(
            model="mine", messages=[question(f"Question {number}?", image_bytes(3))], max_tokens=2
        )
    assert sum(map(bool, crops_read)) == 1
    server.client().chat.completions.create(
        model="mine", messages=[question("Question 0?", image_bytes(4))], max_tokens=2
    )
    assert sum(map(bool, crops_read)) == 2


def test_each_of_several_answers_is_drawn_by_its_own_seed(serve):
    client = serve().client()

    def answers(n, seed):
        made = client.chat.completions.create(
            model="mine", messages=[question()], max_tokens=8, temperature=1.5, n=n, seed=seed
        )
        assert [one.index for one in made.choices] == list(range(n))
        return [one.message.content for one in made.choices]

    three = answers(3, seed=5)
    assert three == answers(3, seed=5)
    assert len(set(three)) == 3
    assert answers(1, seed=6) == three[1:2]


def test_seeds_at_their_ends_and_a_temperature_near_none_are_drawn_with(serve):
    client = serve().client()

    def answer(**more):
        made = client.chat.completions.create(
            model="mine", messages=[question()], max_tokens=4, n=2, **more
        )
        return [one.message.content for one in made.choices]

    assert answer(temperature=1e-300) == answer(temperature=0)
    for seed in (-(2**63), 2**63 - 1):
        assert answer(temperature=1.5, seed=seed) == answer(temperature=1.5, seed=seed)


def test_several_answers_are_streamed_side_by_side(stage, actor):
    actor.lines = LINES
    texts = ["", ""]
    for chunk in (
        stage()
        .client()
        .chat.completions.create(model="mine", messages=[question()], n=2, stream=True)
    ):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert tuple(texts) == LINES


def test_an_answer_that_met_its_stop_is_not_written_on_beside_others(stage, actor):
    actor.lines, actor.step_seconds = (LINES[0], "The total" * 1000), 0.02
    stream = stage().client().chat.completions.create(
        model="mine", messages=[question()], n=2, stop=" is", stream=True, max_tokens=10**4
    )  # fmt: skip
    finished = (one for chunk in stream for one in chunk.choices if one.finish_reason)
    assert next(finished).index == 0
    wait_until(lambda: actor.cancelled == [0])
    assert actor.num_active == 1
    stream.close()


def test_tokens_that_were_on_their_way_when_a_stop_was_met_are_not_said(stage, actor):
    actor.lines, step = ("The total is 12.50 dollars.", "The total" * 3), actor.step
    actor.step = lambda: [*step(), *step()]
    stream = stage().client().chat.completions.create(
        model="mine", messages=[question()], n=2, stop=" is", stream=True
    )  # fmt: skip
    ends = [one.index for chunk in stream for one in chunk.choices if one.finish_reason]
    assert ends == [0, 1]


def test_logprobs_are_those_of_the_models_own_next_token(serve, tiny):
    completion = serve().client().chat.completions.create(
        model="mine", messages=[question("What is the total?")], max_tokens=3, logprobs=True,
        top_logprobs=4,
    )  # fmt: skip
    ids = torch.tensor([tiny.processor.encode_prompt("What is the total?", 0)])
    with torch.no_grad():
        numbers = tiny.model(input_ids=ids).logits[0, -1].log_softmax(-1)
    first, *_ = content = completion.choices[0].logprobs.content
    assert len(content) == 3
    assert first.logprob == pytest.approx(float(numbers.max()), abs=1e-4)
    expected = numbers.topk(4).values.tolist()
    assert [one.logprob for one in first.top_logprobs] == pytest.approx(expected, abs=1e-4)
    assert first.top_logprobs[0].token == first.token


def test_uploads_are_shown_like_pictures_in_messages(stage, actor):
    server = stage()
    server.client().chat.completions.create(
        model="mine", messages=[question("What?", image_bytes(1), image_bytes(2))]
    )
    form = {"request": '{"messages": [{"role": "user", "content": "What?"}], "max_tokens": 20}'}
    files = [("image", (f"{one}.png", image_bytes(one))) for one in (1, 2)]
    answer = httpx.post(f"{server.url}/v1/chat/completions", data=form, files=files)
    assert answer.json()["choices"][0]["message"]["content"] == LINES[0]
    sent, uploaded = (one.prompt for one in actor.asked)
    assert sent.entries == uploaded.entries
    assert [one.key for one in sent.images] == [one.key for one in uploaded.images]
    assert actor.asked[1].max_new_tokens == 20


@pytest.mark.parametrize(
    ("form", "files", "said"),
    [
        ({}, [("image", ("a.png", b"x"))], "no field 'request'"),
        ({"request": "{}", "more": "x"}, [("image", ("a.png", b"x"))], "Too many fields"),
        ({"request": "{}"}, [("picture", ("a.png", b"x"))], "a field 'picture'"),
        ({"request": "{"}, [("image", ("a.png", b"x"))], "not JSON"),
    ],
)
def test_a_broken_form_is_refused_in_a_sentence(stage, form, files, said):
    answer = httpx.post(f"{stage().url}/v1/chat/completions", data=form, files=files)
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("error", "change", "said"),
    [
        (openai.NotFoundError, {"model": "yours"}, "no model 'yours' here; there is mine"),
        (openai.BadRequestError, {"temperature": 9}, "temperature: "),
        (openai.BadRequestError, {"n": 9}, "n: at most 8"),
        (openai.BadRequestError, {"max_tokens": 10**9}, "more than the 131072 that the model sees"),
        (
            openai.BadRequestError,
            {"messages": [question("a <|image_1|>")]},
            "do not match 0 images",
        ),
        (
            openai.BadRequestError,
            {"messages": [question("?", image_bytes()[:-30])]},
            "picture 1: broken picture",
        ),
        (openai.BadRequestError, {"messages": [question("?", b"no")]}, "picture 1: not a picture"),
        (
            openai.BadRequestError,
            {"messages": [question("?", image_bytes(), image_bytes(size=(2000, 1)))]},
            "picture 2: a picture of 2000 x 1 pixels is too elongated",
        ),
    ],
)
def test_errors_have_openais_shape_and_a_sentence(stage, error, change, said):
    client = stage().client()
    with pytest.raises(error) as caught:
        client.chat.completions.create(**{"model": "mine", "messages": [question()]} | change)
    assert said in caught.value.body["message"]
    assert caught.value.type == "invalid_request_error"


def test_web_addresses_are_refused_unless_allowed_and_inner_ones_even_then(stage):
    shown = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/a.png"}}
    asked = {"model": "mine", "messages": [{"role": "user", "content": [shown]}]}
    with pytest.raises(openai.BadRequestError, match="fetches no web addresses"):
        stage().client().chat.completions.create(**asked)
    with pytest.raises(openai.BadRequestError, match="not on the public internet"):
        stage(ServerSettings(allow_urls=True)).client().chat.completions.create(**asked)


def test_a_model_that_fails_is_a_500_without_its_inner_reasons(stage, actor, caplog):
    server = stage()
    actor.failure = RuntimeError("a secret path")
    with pytest.raises(openai.InternalServerError) as caught:
        server.client().chat.completions.create(model="mine", messages=[question()])
    assert "secret" not in str(caught.value)
    streamed = server.client().chat.completions.create(
        model="mine", messages=[question()], stream=True
    )
    with pytest.raises(openai.APIError, match="the model failed on this request"):
        list(streamed)
    assert "a secret path" in caplog.text, "the log tells"
    counted = generate_latest(server.endpoint.measures.registry).decode()
    assert 'foveal_requests_total{model="mine",status="500"} 2.0' in counted
    assert server.endpoint.admission.taken == 0


def test_health_and_measures_tell_what_was_done(stage):
    server = stage()
    client = server.client()
    completion = client.chat.completions.create(
        model="mine", messages=[question("?", image_bytes())]
    )
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="yours", messages=[question()])
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
    answer = httpx.get(f"{server.url}/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    families = list(text_string_to_metric_families(answer.text))
    assert all(one.documentation and one.type != "unknown" for one in families)
    told = {
        (one.name, *one.labels.values()): one.value for some in families for one in some.samples
    }
    assert told["foveal_requests_total", "mine", "200"] == 1
    assert told["foveal_refused_requests_total", "404"] == 1
    assert told["foveal_first_token_seconds_count", "mine"] == 1
    assert told["foveal_answer_tokens_total", "mine"] == completion.usage.completion_tokens
    assert told["foveal_prompt_tokens_total", "mine"] == completion.usage.prompt_tokens
    assert told["foveal_answers_running",] == told["foveal_places_taken",] == 0


def test_paths_that_are_not_there_say_so_in_openais_shape(stage):
    server = stage()
    for path in ("/v1/nothing", "/docs", "/openapi.json", "/../etc/passwd"):
        answer = httpx.get(server.url + path)
        assert answer.status_code == 404
        assert answer.json()["error"]["type"] == "invalid_request_error"
    assert httpx.get(f"{server.url}/v1/chat/completions").status_code == 405


def test_a_data_uri_may_name_any_kind_of_picture(stage):
    address = data_uri(image_bytes()).replace("image/png", "application/octet-stream")
    shown = {"type": "image_url", "image_url": {"url": address, "detail": "high"}}
    completion = (
        stage()
        .client()
        .chat.completions.create(model="mine", messages=[{"role": "user", "content": [shown]}])
    )
    assert text_of(completion) == LINES[0]
