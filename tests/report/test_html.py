"""What every page keeps to, whatever stands on it, and how it writes numbers."""

import json
import math
from collections import Counter

from html_page import EVIL, read_page
from run_folders import evaluate, make_run, measure

from foveal.data.example import Example, Turn, write_examples
from foveal.evaluate.prediction import Prediction
from foveal.report.html import chance, cut, duration, metric_title, percent, points
from foveal.report.report import write_report


def test_the_page_loads_nothing_and_runs_nothing(page):
    page.assert_inert()
    assert not page.all("link")
    for _, attributes in page.elements:
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/webp;base64,"))
    text = page.source
    assert "@import" not in text
    assert "url(http" not in text


def test_ids_are_unique_and_every_link_finds_its_place(page):
    ids = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert max(ids.values()) == 1
    links = [
        attributes[name][1:]
        for _, attributes in page.elements
        for name in ("href", "xlink:href")
        if attributes.get(name, "").startswith("#")
    ]
    assert set(links) <= set(ids)
    labels = [one["aria-labelledby"] for one in page.all("section")]
    assert set(labels) <= set(ids)


def test_the_page_can_be_read_aloud(page):
    assert page.all("html")[0]["lang"] == "en"
    assert all(one.get("scope") in ("col", "row") for one in page.all("th"))
    for image in page.all("svg"):
        assert image.get("aria-hidden") == "true" or image.get("aria-label")
    heads = [tag for tag, _ in page.elements if tag in ("h1", "h2", "h3")]
    assert heads.count("h1") == 1
    assert heads.index("h1") < heads.index("h2") < heads.index("h3")


def test_the_page_follows_light_dark_and_paper(page):
    text = page.source
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    assert 'name="viewport" content="width=device-width' in text


def test_nothing_from_data_or_a_model_becomes_markup(tmp_path):
    data = tmp_path / "data" / EVIL.replace("/", "_")
    data.parent.mkdir()
    turns = [
        Turn(
            images=(f"{EVIL}.png".replace("/", "|"),),
            user=f"question {EVIL}",
            assistant=EVIL,
            answers=(EVIL,),
            choices=(EVIL, "other"),
        )
    ]
    write_examples(data, [Example(id=f"{EVIL}{n}", conversations=tuple(turns)) for n in range(3)])
    base = {"file": EVIL, "otherwise": {"model": EVIL, EVIL: EVIL}}
    run = make_run(tmp_path / EVIL.replace("/", "_"), data, model=EVIL, base=base)
    measure(run, 3)
    answers = [
        Prediction(
            f"{EVIL}{n}",
            f"answer {EVIL}",
            answers=(EVIL,),
            scores={"accuracy": 0.0, EVIL: 0.5},
            choice_scores={EVIL: -1.0, "other": -0.5},
        )
        for n in range(3)
    ]
    for name in ("before", "step-1", "after"):
        evaluate(run, name, answers)
        scores = run / "evaluation" / name / "scores.json"
        tree = json.loads(scores.read_text())
        scores.write_text(json.dumps({EVIL: tree["accuracy"]} | tree))
    (run / "incidents.jsonl").write_text(json.dumps({"step": 1, EVIL: EVIL}) + "\n")
    (run / "machine.json").write_text(json.dumps({EVIL: EVIL}))
    (run / "data.json").write_text(json.dumps({EVIL: {EVIL: EVIL}}))
    page = read_page(write_report(run))
    page.assert_inert()
    assert not page.all("img")
    assert len(page.all("style")) == 1
    for text in (f"question {EVIL}", f"answer {EVIL}", EVIL):
        assert page.count_texts(text), text


def test_numbers_are_written_as_people_write_them():
    assert [percent(0.81249), percent(None), percent(math.nan)] == [
        "81.2",
        "\N{EN DASH}",
        "\N{EN DASH}",
    ]
    assert [points(0.031), points(-0.2), points(-0.0001)] == ["+3.1", "\N{MINUS SIGN}20.0", "0.0"]
    assert [chance(0.0001), chance(0.0421)] == ["p < 0.001", "p = 0.042"]
    assert [duration(3.21), duration(65 * 60), duration(600)] == ["3.2 s", "1 h 05 min", "10 min"]
    # At the edges of rounding no unit overflows into the next.
    edges = [59.94, 59.96, 59.999, 60.0, 89.0, 3569.0, 3570.1, 3599.9]
    assert list(map(duration, edges)) == [
        "59.9 s",
        *["1 min"] * 4,
        "59 min",
        *["1 h 00 min"] * 2,
    ]
    assert [metric_title(name) for name in ("anls_cookbook", "token_f1", "accuracy")] == [
        "ANLS cookbook",
        "Token F1",
        "Accuracy",
    ]
    assert [cut("abc", 3), cut("abcd", 3)] == ["abc", "ab…"]
