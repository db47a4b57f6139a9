"""What the page promises, in a real browser: a picture dropped, a question, the answer streamed."""

import base64
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from browsers import PHONE, chromium
from numbered_clips import STEADY, write_clip
from playwright.sync_api import expect
from serving import ENDLESS, LINES, image_bytes, wait_until

from foveal.serve.limits import ServerSettings
from foveal.serve.server import read_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

DROP = """([coded, name, type]) => {
  const bytes = Uint8Array.from(atob(coded), (one) => one.charCodeAt(0));
  const held = new DataTransfer();
  held.items.add(new File([bytes], name, {type}));
  const at = document.querySelector("main");
  for (const kind of ["dragenter", "dragover", "drop"])
    at.dispatchEvent(new DragEvent(kind, {dataTransfer: held, bubbles: true, cancelable: true}));
}"""


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    with chromium() as started:
        yield started


@pytest.fixture
def page(browser: "Browser") -> "Iterator[Page]":
    """A page that must not complain, and may talk to its own server alone."""
    context = browser.new_context(viewport=PHONE)
    context.set_default_timeout(60_000)
    made = context.new_page()
    complaints: list[str] = []
    made.on("pageerror", lambda error: complaints.append(str(error)))
    made.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    yield made
    context.close()
    # Browsers write requests that were refused into the console by themselves.
    assert [one for one in complaints if not re.search("status of 40[01]", one)] == []


def drop(page: "Page", name: str, data: bytes, kind: str = "image/png") -> None:
    page.evaluate(DROP, [base64.b64encode(data).decode(), name, kind])


def ask(page: "Page", text: str) -> None:
    page.get_by_label("Question").fill(text)
    page.keyboard.press("Enter")


def test_a_picture_is_dropped_asked_about_and_the_answer_streams(stage, actor, page):
    actor.step_seconds = 0.05
    page.goto(stage().url)
    drop(page, "bill.png", image_bytes(1))
    drop(page, "other.png", image_bytes(2))
    page.get_by_role("button", name="Remove other.png").click()
    ask(page, "What is the total?")
    answer = page.locator(".answer")
    expect(page.locator(".answer .text")).to_have_text(re.compile(".{4}"))
    assert answer.get_attribute("aria-busy") == "true"
    partial = answer.locator(".text").text_content()
    assert LINES[0].startswith(partial)
    page.wait_for_selector(".answer[aria-busy=false]")
    assert answer.locator(".text").text_content() == LINES[0]
    assert re.search(r"\d+ tokens in \d+\.\d s", answer.locator(".measured").text_content())
    assert [len(one.prompt.images) for one in actor.asked] == [1]
    assert page.get_by_role("img", name="bill.png").is_visible()
    assert page.get_by_role("status").text_content().startswith(LINES[0])
    ask(page, "And without tax?")  # a second turn brings the first along
    expect(page.locator(".answer[aria-busy=false]")).to_have_count(2)
    first, second = (one.prompt for one in actor.asked)
    assert second.entries[: len(first.entries)] == first.entries
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "fits a phone"


def test_a_clip_is_dropped_and_asked_about_beside_a_picture(stage, actor, page, tmp_path):
    write_clip(tmp_path / "goal.webm", "libvpx-vp9", STEADY[:20])
    page.goto(stage().url)
    drop(page, "goal.webm", (tmp_path / "goal.webm").read_bytes(), "video/webm")
    drop(page, "bill.png", image_bytes(1))
    status = page.get_by_role("status")
    expect(status).to_have_text("1 picture, 1 clip to show.")
    drop(page, "notes.txt", b"words", "text/plain")
    expect(status).to_have_text("1 picture, 1 clip to show. 1 left out: no picture and no clip.")
    ask(page, "What happens?")
    page.wait_for_selector(".answer[aria-busy=false]")
    assert page.locator(".answer .text").text_content() == LINES[0]
    assert [len(one.prompt.images) for one in actor.asked] == [1 + 8]
    film = page.get_by_label("goal.webm")
    assert film.is_visible()
    assert (
        film.evaluate(
            "(one) => new Promise((done) => {"
            "if (one.readyState) done(one.videoWidth);"
            "one.onloadedmetadata = () => done(one.videoWidth); one.onerror = () => done(-1)})"
        )
        == 128
    )
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "fits a phone"


def test_a_hostile_answer_stays_text(stage, actor, page):
    actor.lines = LINES[1:]
    page.goto(stage().url)
    ask(page, "<b>What?</b>")
    page.wait_for_selector(".answer[aria-busy=false]")
    assert page.locator(".answer .text").text_content() == LINES[1]
    assert page.locator(".asked h2").text_content() == "<b>What?</b>"
    assert page.locator("#turns script, #turns .text img, #turns b").count() == 0
    assert page.title() == "mine"


def test_before_and_after_stand_side_by_side(stage, page):
    page.set_viewport_size({"width": 1100, "height": 800})
    page.goto(stage(names=("mine", "mine-before")).url)
    ask(page, "What?")
    expect(page.locator(".answer[aria-busy=false]")).to_have_count(2)
    cards = page.locator(".answer")
    assert cards.locator("h3").all_text_contents() == ["Before tuning", "After tuning"]
    assert cards.locator(".text").all_text_contents() == ["mine-before", LINES[0]]
    left, right = (card.bounding_box() for card in cards.all())
    assert left["x"] + left["width"] < right["x"]
    assert left["y"] == right["y"]
    page.get_by_label("Beside the model before tuning").uncheck()
    ask(page, "Again?")
    expect(page.locator(".answer[aria-busy=false]")).to_have_count(3)


def test_an_error_is_told_and_the_question_is_kept_to_mend(stage, actor, page):
    page.goto(stage().url)
    drop(page, "broken.png", image_bytes()[:-30])
    page.get_by_role("button", name="Remove broken.png").wait_for()
    ask(page, "What?")
    page.wait_for_selector(".answer.failed")
    assert "broken picture" in page.locator(".answer .text").text_content()
    assert page.get_by_label("Question").input_value() == "What?"
    assert page.get_by_role("button", name="Remove broken.png").is_visible()
    page.get_by_role("button", name="Remove broken.png").click()
    page.get_by_label("Question").press("Enter")
    expect(page.locator(".answer[aria-busy=false] .text").last).to_have_text(LINES[0])


def test_escape_stops_an_answer_and_its_model(stage, actor, page):
    actor.lines, actor.step_seconds = (ENDLESS,), 0.2
    page.goto(stage().url)
    ask(page, "What?")
    expect(page.locator(".answer .text")).to_have_text(re.compile(".{4}"))
    page.keyboard.press("Escape")
    page.wait_for_selector(".answer[aria-busy=false]")
    assert "stopped after" in page.locator(".answer .measured").text_content()
    wait_until(lambda: actor.is_idle)
    assert actor.cancelled == [0]


def test_a_server_with_a_token_asks_for_it(stage, page):
    page.goto(stage(ServerSettings(token="s3cret")).url)
    field = page.get_by_label("This server asks for its token.")
    field.fill("wrong")
    field.press("Enter")
    page.get_by_text("That is not the token.").wait_for()
    field.fill("s3cret")
    field.press("Enter")
    ask(page, "What?")
    page.wait_for_selector(".answer[aria-busy=false]")
    assert page.locator(".answer .text").text_content() == LINES[0]


def test_everything_is_reached_by_keyboard_and_has_a_name(stage, page):
    page.goto(stage(names=("mine", "mine-before")).url)
    expect(page.get_by_label("Question")).to_be_focused()
    drop(page, "a.png", image_bytes())
    page.get_by_role("button", name="Remove a.png").wait_for()
    page.get_by_label("Question").fill("What?")
    reached = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert {"files", "question", "send", "SUMMARY", "INPUT", "BUTTON"} <= reached
    nameless = page.evaluate(
        """[...document.querySelectorAll("button, input, textarea")].filter((one) =>
             !(one.getAttribute("aria-label") || one.labels?.length || one.textContent.trim()))
             .map((one) => one.outerHTML)"""
    )
    assert nameless == []


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_axe_finds_no_barrier_before_or_after_an_answer_or_at_the_lock(stage, page, colours):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()

    def barriers() -> list[str]:
        found = axe.run(page).response["violations"]
        return [f"{one['id']}: {node['html']}" for one in found for node in one["nodes"]]

    page.emulate_media(color_scheme=colours)
    page.goto(stage(names=("mine", "mine-before")).url)
    drop(page, "a.png", image_bytes())
    page.get_by_role("button", name="Remove a.png").wait_for()
    page.locator("summary").click()
    assert barriers() == []
    ask(page, "What?")
    expect(page.locator(".answer[aria-busy=false]")).to_have_count(2)
    assert barriers() == []
    page.goto(stage(ServerSettings(token="s3cret")).url)
    page.get_by_label("This server asks for its token.").wait_for()
    assert barriers() == []


def test_the_page_loads_nothing_and_runs_its_own_script_alone():
    text, policy = read_page()
    assert re.findall(r"""(?:src|href)=["'](?!data:)""", text) == []
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text
    assert "default-src 'none'; script-src 'sha256-" in policy
    assert "unsafe" not in policy
    assert "innerHTML" not in text
