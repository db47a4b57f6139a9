"""What the endpoint promises when it is asked for too much, too slowly, or left alone."""

import json
import socket
import threading
import time
from contextlib import suppress

import httpx
import openai
import pytest
from prometheus_client import generate_latest
from serving import ENDLESS, image_bytes, question, wait_until

from foveal.serve import served
from foveal.serve.limits import ServerLimits, ServerSettings

CHAT = "/v1/chat/completions"
ASKED = json.dumps({"messages": [question()]}).encode()


def head(length, path=CHAT, more=""):
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length}\r\n{more}\r\n"
    ).encode()


def whole_answer(connection, *sent):
    """All that comes until the other side hangs up, in the middle of what is sent if it likes.

    What it has not read by then, it answers with a reset behind its last word.
    """
    pieces = []
    with suppress(ConnectionError):
        for piece in sent:
            connection.sendall(piece)
    with suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            pieces.append(piece)
    return b"".join(pieces)


def settings(**limits):
    return ServerSettings(limits=ServerLimits(**limits))


def test_who_finds_no_place_is_told_when_to_come_back(stage, actor):
    server = stage(settings(places=2))
    actor.going.clear()
    client = server.client()
    asked = {"model": "mine", "messages": [question()], "stream": True}
    streams = [client.chat.completions.create(**asked) for _ in range(2)]
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(**asked)
    assert int(caught.value.response.headers["retry-after"]) >= 1
    assert caught.value.code == "queue_full"
    actor.going.set()
    for stream in streams:
        assert "".join(one.choices[0].delta.content or "" for one in stream)
    wait_until(lambda: server.endpoint.admission.taken == 0)
    assert list(client.chat.completions.create(**asked))


def test_a_client_who_leaves_a_stream_frees_its_place(stage, actor):
    server = stage()
    actor.lines, actor.step_seconds = (ENDLESS,), 0.02
    asked = {"model": "mine", "messages": [question()], "max_tokens": 10**4}
    stream = server.client().chat.completions.create(**asked, stream=True)
    next(stream)
    stream.close()
    wait_until(lambda: actor.cancelled == [0] and server.endpoint.admission.taken == 0)
    counted = generate_latest(server.endpoint.measures.registry).decode()
    assert 'foveal_requests_total{model="mine",status="499"} 1.0' in counted


def test_a_client_who_does_not_wait_for_a_whole_answer_frees_its_place(stage, actor):
    server = stage()
    actor.going.clear()
    connection = server.connect()
    connection.sendall(head(len(ASKED)) + ASKED)
    wait_until(lambda: actor.num_active == 1)
    connection.close()
    wait_until(lambda: actor.cancelled == [0] and server.endpoint.admission.taken == 0)


@pytest.mark.parametrize("stated", [True, False])
def test_a_body_that_is_too_large_is_refused_however_it_comes(stage, actor, stated):
    server = stage(settings(body_bytes=20_000))
    body = json.dumps({"messages": [question("x" * 50_000)]}).encode()
    content = body if stated else iter([body[:30_000], body[30_000:]])
    kind = {"content-type": "application/json"}
    answer = httpx.post(server.url + CHAT, content=content, headers=kind)
    assert answer.status_code == 413
    assert "more than 20000 bytes" in answer.json()["error"]["message"]
    assert actor.asked == []
    assert server.endpoint.admission.taken == 0


def test_a_body_that_only_claims_to_be_huge_is_refused_unread(stage):
    connection = stage().connect()
    assert b" 413 " in whole_answer(connection, head(10**15)).splitlines()[0]


def test_a_body_without_end_is_not_read_to_it(stage):
    connection = stage(settings(body_bytes=20_000)).connect()
    chunked = head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    connection.sendall(chunked)
    piece = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    with pytest.raises(OSError, match=r"reset|Broken pipe"):
        connection.sendall(1000 * piece)


def test_a_form_is_counted_while_it_is_read(stage):
    server = stage(settings(body_bytes=20_000))
    files = [("image", ("a.png", b"x" * 50_000))]
    answer = httpx.post(server.url + CHAT, data={"request": "{}"}, files=files)
    assert answer.status_code == 413


def test_an_upload_is_measured_like_any_other_picture(stage):
    form = {"request": ASKED.decode()}
    answer = httpx.post(
        stage(settings(image_bytes=50)).url + CHAT,
        data=form,
        files=[("image", ("a.png", image_bytes()))],
    )
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "picture_too_large"


@pytest.mark.parametrize(
    ("limits", "images", "code"),
    [
        ({"image_bytes": 50}, [image_bytes()], "picture_too_large"),
        ({"pixels": 4000}, [image_bytes(), image_bytes(1)], "too_many_pixels"),
        ({"images": 1}, [image_bytes(), image_bytes(1)], "too_many_pictures"),
    ],
)
def test_pictures_that_are_too_large_or_too_many_are_413(stage, actor, limits, images, code):
    client = stage(settings(**limits)).client()
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model="mine", messages=[question("?", *images)])
    assert (caught.value.status_code, caught.value.code) == (413, code)
    assert actor.asked == []


def test_a_body_that_drips_is_given_up(stage):
    server = stage(settings(body_seconds=0.3))
    connection = server.connect()
    connection.sendall(head(1000) + b"{")
    assert b" 408 " in connection.recv(65536).splitlines()[0]
    wait_until(lambda: server.endpoint.admission.taken == 0)


@pytest.mark.parametrize("begun", [b"", b"POST /v1/chat/comp", b"GET / HTTP/1.1\r\nHost: a\r\n"])
def test_headers_that_do_not_come_end_the_connection(stage, begun):
    connection = stage(settings(header_seconds=0.3)).connect()
    began = time.monotonic()
    assert whole_answer(connection, *(bytes([byte]) for byte in begun)) == b""
    assert time.monotonic() - began < 10


def test_headers_that_are_too_large_are_refused(stage):
    connection = stage(settings(header_bytes=4096)).connect()
    much = f"GET / HTTP/1.1\r\nX-Much: {'x' * 100_000}".encode()
    assert b" 400 " in whole_answer(connection, much).splitlines()[0]


def test_a_client_that_reads_nothing_holds_up_nobody_and_is_cut_off(stage, actor):
    server = stage(settings(answer_seconds=1))
    actor.lines = ("The total is 12.50 dollars." * 400, "The total")
    much = json.dumps({"messages": [question()], "stream": True, "max_tokens": 10**4}).encode()
    deaf = server.connect()
    deaf.sendall(head(len(much)) + much)
    wait_until(lambda: len(actor.asked) == 1)
    server.endpoint.limits = ServerLimits()  # who reads has all the time there is
    completion = server.client().chat.completions.create(model="mine", messages=[question()])
    assert completion.choices[0].message.content == "The total"
    wait_until(lambda: server.endpoint.admission.taken == 0 and actor.is_idle)


def test_an_answer_that_takes_too_long_is_given_up(stage, actor):
    server = stage(settings(answer_seconds=0.3))
    actor.going.clear()
    with pytest.raises(openai.InternalServerError, match="no whole answer within"):
        server.client().chat.completions.create(model="mine", messages=[question()])
    wait_until(lambda: actor.cancelled == [0] and server.endpoint.admission.taken == 0)


def test_another_kind_of_body_is_refused(stage):
    answer = httpx.post(stage().url + CHAT, content=b"{}", headers={"content-type": "text/plain"})
    assert answer.status_code == 415


def test_too_many_pictures_are_refused_before_one_is_fetched(stage, monkeypatch):
    fetched = []
    monkeypatch.setattr(served, "fetch", lambda url, limits: fetched.append(url) or image_bytes())
    limits = ServerLimits(images=2)
    client = stage(ServerSettings(allow_urls=True, limits=limits)).client()

    def ask(count):
        urls = [{"url": f"https://host/{one}.png"} for one in range(count)]
        shown = [{"type": "image_url", "image_url": url} for url in urls]
        client.chat.completions.create(model="", messages=[{"role": "user", "content": shown}])

    with pytest.raises(openai.APIStatusError, match="3 pictures are more than 2") as caught:
        ask(3)
    assert (caught.value.code, fetched) == ("too_many_pictures", [])
    ask(2)
    assert fetched == ["https://host/0.png", "https://host/1.png"]


def test_a_client_who_leaves_is_read_to_the_end_and_keeps_its_place_or_not_at_all(
    stage, monkeypatch
):
    """No thread can be stopped: places that were free at once would bring more and more of them."""
    read, going, usual = [], threading.Event(), served.Endpoint._read

    def slowly(endpoint, *given):
        read.append(given)
        assert going.wait(30)
        return usual(endpoint, *given)

    monkeypatch.setattr(served.Endpoint, "_read", slowly)
    server = stage()
    for number in range(1, served.READERS + 5):
        connection = server.connect()
        connection.sendall(head(len(ASKED)) + ASKED)
        wait_until(lambda number=number: len(read) == min(number, served.READERS))
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b"", "the server knows that the client has left"
    assert httpx.get(f"{server.url}/health").status_code == 200  # and has done what follows
    assert server.endpoint.admission.taken >= served.READERS
    going.set()
    wait_until(lambda: server.endpoint.admission.taken == 0)
    assert len(read) == served.READERS
