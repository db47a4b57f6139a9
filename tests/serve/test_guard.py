"""What the endpoint promises about who may ask."""

import httpx
import openai
import pytest
from serving import LINES, question

from foveal.serve.limits import ServerSettings
from foveal.serve.server import is_loopback

GUARDED = ("/v1/models", "/v1/models/mine", "/metrics")


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.9.9.9", "localhost", "LOCALHOST", "::1", "[::1]"]
)
def test_loopback_is_told_by_its_names(host):
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "", "10.0.0.1", "example.com", "localhost.evil.example", "1"]
)
def test_whatever_others_can_reach_is_not_loopback(host):
    assert not is_loopback(host)


def test_with_a_token_nobody_asks_without_it(stage):
    server = stage(ServerSettings(token="s3cret"))
    asked = {"model": "mine", "messages": [question()]}
    for wrong in ("x", "S3CRET", "s3cret2", "wörd"):
        headers = {"Authorization": f"Bearer {wrong}".encode()}
        answers = [httpx.get(server.url + path, headers=headers) for path in GUARDED]
        answers.append(httpx.post(f"{server.url}/v1/chat/completions", json=asked, headers=headers))
        assert [one.status_code for one in answers] == [401] * 4
        assert answers[0].json()["error"]["code"] == "invalid_api_key"
        assert answers[0].headers["www-authenticate"] == "Bearer"
    with pytest.raises(openai.AuthenticationError):
        server.client("wrong").models.list()
    completion = server.client("s3cret").chat.completions.create(**asked)
    assert completion.choices[0].message.content == LINES[0]


def test_a_token_may_hold_any_letters(stage):
    server = stage(ServerSettings(token="gehört-mir"))
    for sent, status in (("gehört-mir", 200), ("gehort-mir", 401), ("gehört", 401)):
        headers = {"Authorization": f"Bearer {sent}".encode()}
        assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == status


def test_the_page_and_the_health_check_need_no_token(stage):
    url = stage(ServerSettings(token="s3cret")).url
    assert httpx.get(url).status_code == httpx.get(f"{url}/health").status_code == 200


def test_pages_of_other_sites_may_not_ask(stage, actor):
    """Browsers say where a request comes from; a form may be sent from anywhere unasked."""
    url = stage().url
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
        answer = httpx.post(
            f"{url}/v1/chat/completions",
            data={"request": '{"messages": [{"role": "user", "content": "?"}]}'},
            files={"image": b"x"},
            headers={"Origin": origin},
        )
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers
    assert actor.asked == []
    assert httpx.get(f"{url}/v1/models", headers={"Origin": url}).status_code == 200


def test_a_foreign_name_that_leads_here_is_refused_unless_a_token_is_borne(stage):
    foreign = {"Host": "rebound.example"}
    open_url = stage().url
    for path in GUARDED:
        assert httpx.get(open_url + path, headers=foreign).status_code == 403
    headers = foreign | {"Authorization": "Bearer s3cret"}
    url = stage(ServerSettings(token="s3cret")).url
    assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(("header", "broken"), [("Host", "["), ("Origin", "http://[")])
def test_a_name_that_is_none_is_refused_as_a_foreign_one(stage, header, broken, caplog):
    answer = httpx.get(f"{stage().url}/v1/models", headers={header: broken})
    assert answer.status_code == 403
    assert caplog.text == ""


def test_other_sites_may_not_read_or_ask_by_preflight(stage):
    answer = httpx.options(
        f"{stage().url}/v1/chat/completions",
        headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"},
    )
    assert answer.status_code == 405
    assert "access-control-allow-origin" not in answer.headers


def test_every_answer_bears_the_headers_that_keep_browsers_back(stage):
    url = stage().url
    answers = [httpx.get(url + path) for path in ("/", "/health", "/v1/models", "/nothing")]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["cache-control"] == "no-store"
    policy = answers[0].headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "frame-ancestors 'none'" in policy
