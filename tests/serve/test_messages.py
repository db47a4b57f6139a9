"""What reading a request promises: nothing that would change the answer is passed over."""

import json

import pytest
from openai.types.chat import ChatCompletionMessage

from foveal.serve.limits import RequestError
from foveal.serve.messages import parse_request

HELLO = [{"role": "user", "content": "Hello"}]


def read(**fields):
    return parse_request(json.dumps({"model": "m", "messages": HELLO} | fields))


def test_the_fields_we_honour_are_read():
    asked = read(
        max_tokens=5,
        temperature=0.5,
        top_p=0.9,
        stop="\n",
        seed=3,
        n=2,
        logprobs=True,
        top_logprobs=4,
        stream=True,
        stream_options={"include_usage": True},
    )
    assert (asked.most_tokens, asked.temperature, asked.top_p, asked.stop) == (5, 0.5, 0.9, ("\n",))
    assert (asked.seed, asked.n, asked.top_logprobs, asked.stream) == (3, 2, 4, True)


def test_the_new_name_of_the_longest_answer_wins():
    assert read(max_tokens=5, max_completion_tokens=7).most_tokens == 7
    assert read(max_completion_tokens=7).most_tokens == 7
    assert read().most_tokens is None


@pytest.mark.parametrize(
    "fields",
    [
        {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "tools": []},
        {"response_format": {"type": "text"}, "modalities": ["text"], "tool_choice": "none"},
        {"user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"},
        {"stop": None, "stream": None, "n": None, "temperature": None, "logprobs": None},
    ],
)
def test_fields_that_ask_for_nothing_are_taken(fields):
    assert read(**fields).messages[0].content[0].text == "Hello"


def test_null_is_an_absent_value_everywhere():
    image = {"url": "data:image/png;base64,", "detail": None}
    parts = [
        {"type": "image_url", "image_url": image, "text": None},
        {"type": "text", "text": "Hello", "image_url": None, "input_audio": None},
    ]
    said = {"role": "user", "content": parts, "name": None, "tool_calls": None, "audio": None}
    asked = read(messages=[said], model=None, reasoning_effort=None, stream_options=None, stop=None)
    sparse = [
        {"type": "image_url", "image_url": {"url": image["url"]}},
        {"type": "text", "text": "Hello"},
    ]
    assert asked == read(messages=[{"role": "user", "content": sparse}], model="")


def test_an_answer_may_be_sent_back_as_openais_client_writes_it():
    answer = ChatCompletionMessage(role="assistant", content="Hi.", annotations=[])
    asked = read(messages=[*HELLO, answer.model_dump(), *HELLO])
    assert [one.content[0].text for one in asked.messages] == ["Hello", "Hi.", "Hello"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"presence_penalty": 0.5}, "presence_penalty: "),
        ({"logit_bias": {"5": 100}}, "logit_bias"),
        ({"tools": [{"type": "function"}]}, "tools: "),
        ({"response_format": {"type": "json_object"}}, "response_format.type: "),
        ({"max_token": 5}, "max_token is not a field that we know"),
        ({"max_tokens": 0}, "max_tokens: input should be greater than or equal to 1"),
        ({"temperature": 3}, "temperature: "),
        ({"top_p": 0}, "top_p: "),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop: "),
        ({"stop": ""}, "stop holds an empty text"),
        ({"stop": ["a", "b" * 257]}, "stop.1: string should have at most 256 characters"),
        ({"top_logprobs": 3}, "top_logprobs needs logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs: "),
        ({"stream_options": {"include_usage": True}}, "stream_options needs stream"),
        ({"seed": 2**63}, "seed: "),
        ({"messages": []}, "messages: "),
        (
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": "a"}]}]},
            "messages.0.tool_calls: ",
        ),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content is missing"),
        ({"messages": [{"role": "user", "content": "?", "audio": {}}]}, "messages.0.audio is not"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role: "),
        ({"messages": [{"role": "user"}]}, "messages.0.content is missing"),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            "messages.0.content.0: ",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages.0.content.0.image_url.url is missing",
        ),
    ],
)
def test_what_we_do_not_honour_is_refused_by_name(fields, said):
    with pytest.raises(RequestError) as caught:
        read(**fields)
    assert caught.value.status == 400
    assert said in caught.value.message
    assert caught.value.body()["error"]["type"] == "invalid_request_error"


def test_a_body_that_is_no_json_is_told_so():
    with pytest.raises(RequestError, match="the body is not JSON"):
        parse_request(b'{"messages": [')


def test_a_body_nested_without_end_is_refused_not_followed():
    with pytest.raises(RequestError):
        parse_request(b'{"metadata":' + b'{"a":' * 100_000)
