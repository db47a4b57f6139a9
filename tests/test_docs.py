"""Every command in the README and the docs is one that this version understands."""

import json
import re
import shlex
import tomllib
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, files, version
from pathlib import Path

import pytest
import typer
import yaml
from numbered_clips import write_clip
from template_fates import HEAD, PUBLISHED, TRL
from template_fates import row as row_of_template
from tiny import make_image, pages
from tiny_models import FAMILIES, write_tiny
from typer.testing import CliRunner
from upright_readers import BY_SOURCE, PACKAGES, READERS, row, write_lying

from foveal.cli import app
from foveal.config import Recipe, setting_names
from foveal.data.convert.draft import Options
from foveal.data.convert.sources.source import Source
from foveal.evaluate.metrics import METRICS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = typer.main.get_command(app)


def lines_of(page: Path) -> list[str]:
    """Take the command lines of a page: blocks, indented or fenced, and words in backquotes."""
    text = page.read_text().replace("\\\n", " ")
    shown = re.findall(r"^ *((?:srun )?(?:foveal|torchrun|python -m foveal\.cli) .+)$", text, re.M)
    shown += re.findall(r"`(foveal [^`]+)`", text)
    return [line.partition("  #")[0].strip() for line in shown]


def words_of(line: str) -> list[str]:
    """Take what stands behind `foveal`, whatever launches it."""
    words = shlex.split(line, comments=True)
    if "foveal.cli" in words:
        return words[words.index("foveal.cli") + 1 :]
    return words[1:] if words[0] == "foveal" else []


COMMANDS = sorted(
    {(page.name, line) for page in PAGES for line in lines_of(page) if words_of(line)}
)


def test_the_pages_have_commands():
    assert len({words_of(line)[0] for _, line in COMMANDS}) > 10


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_each_command_is_understood(page, line):
    name, *arguments = words_of(line)
    if name == "--help" or "--help" in arguments:
        return
    command = COMMAND.commands[name]
    if len(arguments) < sum(one.required for one in command.params):
        return  # `foveal train` in a sentence
    command.make_context(name, list(arguments))
    for word in arguments:
        setting, equals, _ = word.partition("=")
        if equals and not word.startswith("--"):
            assert setting in setting_names(Recipe), setting


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_recipes_that_a_page_names_are_there(page):
    for name in re.findall(r"recipes/[\w/]+\.yaml", page.read_text()):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_that_a_page_names_are_there(page):
    known = {*setting_names(Recipe), "data", "train", "evaluate", "lora"}
    named = re.findall(r"`((?:data|train|evaluate|lora)\.\w+)(?:[=:][^`]*)?`", page.read_text())
    assert {name for name in named if not name.endswith((".json", ".jsonl"))} <= known


def test_files_that_the_layout_names_are_there():
    text = (ROOT / "docs" / "architecture.md").read_text()
    for name in re.findall(r"`((?:data|models|train|evaluate|adapt)/[\w/]+\.py)`", text):
        assert (ROOT / "src" / "foveal" / name).exists(), name


def test_metrics_that_are_described_are_all_there_are():
    text = (ROOT / "docs" / "evaluate.md").read_text()
    table = text.partition("## Metrics")[2].partition("Closed answers")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, re.M)) == set(METRICS)


def test_the_layout_and_the_metric_that_a_page_adds_do_what_it_says(tmp_path):
    page = (ROOT / "docs" / "extend.md").read_text()
    metric, layout = re.findall(r"```python\n(.*?)```", page, re.S)
    added = {"Sequence": list}
    exec(metric.partition("METRICS")[0], added)  # the page's own words
    assert added["contains"]("It is RED.", ["red", "blue"]) == 1
    assert added["contains"]("It is red.", ["blue"]) == 0
    exec(layout, added)
    make_image(tmp_path / "images" / "a.png", 1)
    lines = ("image,caption", "a.png,A square.", "a.png,All of one colour.", "gone.png,Nothing.")
    (tmp_path / "captions.txt").write_text("\n".join(lines))
    *drafts, left_out = added["convert_captions"](Source(tmp_path), Options())
    assert [one.turns[0].assistant for one in drafts] == ["A square.", "All of one colour."]
    assert left_out.reason == "named by captions.txt, but not there"


def test_scripts_that_the_cookbook_page_names_are_there():
    text = (ROOT / "docs" / "cookbook.md").read_text()
    for name in re.findall(r"\w+_\w+\.py", text):
        assert (ROOT / "cookbook" / name).exists(), name


def test_every_page_is_in_the_menu_and_nothing_is_fetched():
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    listed = {name for entry in site["nav"] for name in entry.values()}
    assert listed == {page.name for page in (ROOT / "docs").glob("*.md")}
    assert site["theme"]["font"] is False
    assert site["plugins"] == ["search"]


RUN_ELSEWHERE = {
    "demo": "takes minutes; `make demo`",
    "bench": "tests/bench",
    "convert": "tests/data/test_convert.py",
    "export": "tests/deliver",
    "push": "tests/deliver",
    "reproduce": "tests/test_reproduce.py",
    "serve": "tests/serve",
}
NOT_HERE = ("microsoft/", "docvqa", "out/mine", "OUT", "SOURCE", "recipe.yaml", "--measure")
"""Of models and data that a test does not have, names that stand for others, what takes long."""

SMALL = ("model=phi3-vision-tiny", "data.num_crops=4")
IN_A_MOMENT = (
    "precision=float32",
    "data.workers=0",
    "train.examples_per_step=3",
    "train.max_steps=1",
    "evaluate.max_new_tokens=2",
)


def as_small(words, folder):
    """Settings that let a command of a page end soon, on a model of the family that it names."""
    if words[0] == "inspect":
        return ["--set", SMALL[0]]
    if words[0] != "train":
        return []
    families = re.findall(r"recipes/(\w+)/", " ".join(words))
    if not set(families) & set(FAMILIES):
        return [*SMALL, *IN_A_MOMENT]
    model = write_tiny(families[0], folder / families[0])
    return [f"model={model}", "data.image_settings={}", "lora.rank=4", *IN_A_MOMENT]


def test_the_page_of_models_is_what_the_table_says():
    from foveal.models.known import ALONE, CACHED, REFUSED, SHARED

    page = (ROOT / "docs" / "models.md").read_text()
    tables = page.partition("## What an image costs")[0]
    rows = [line for line in tables.splitlines() if line.startswith("| ") and "`" in line]
    listed = [set(re.findall(r"`(\w+)`", row)) for row in rows]
    assert listed[:3] == [set(SHARED), set(CACHED), set(ALONE)]
    assert rows[3:] == [f"| `{one}` | {reason} |" for one, reason in sorted(REFUSED.items())]


def test_the_page_of_models_shows_what_the_command_prints():
    from foveal.models.known import cost_table

    assert "\n".join(cost_table()) in (ROOT / "docs" / "models.md").read_text()


def test_the_table_of_who_turns_a_photo_upright_is_what_the_installed_readers_do(tmp_path):
    write_lying(tmp_path)
    page = (ROOT / "docs" / "others.md").read_text()
    pinned = dict(one.split("==") for one in PACKAGES)
    for name, (package, *_) in READERS.items():
        assert f"| {name} {pinned[package]}, " in page
        with suppress(PackageNotFoundError):
            assert version(package) != pinned[package] or row(name, tmp_path) in page
    for name, where, _ in BY_SOURCE:
        assert f"| {name}, read, not run: {where} |" in page


def test_the_table_of_templates_is_what_they_do_where_they_are_installed():
    page = (ROOT / "docs" / "models.md").read_text()
    assert f"{HEAD}\n" in page
    assert f"the package TRL {TRL}:" in page
    for name in PUBLISHED.values():
        assert f"\n| {name} | " in page
    with suppress(PackageNotFoundError):
        assert version("trl") != TRL or all(
            row_of_template(file, Path(str(one.locate())).read_text()) in page
            for file in PUBLISHED
            for one in files("trl")
            if one.name == f"{file}.jinja"
        )


def to_run() -> list[tuple[str, list[str]]]:
    """Take the commands that run on own data, in the order of the pages; each once."""
    found = {
        tuple(words_of(line)): page.name
        for page in PAGES
        for line in lines_of(page)
        if line.startswith("foveal ") and not any(one in line for one in NOT_HERE)
    }
    return [
        (page, list(words))
        for words, page in found.items()
        if words[0] not in RUN_ELSEWHERE
        and len(words) > sum(one.required for one in COMMAND.commands[words[0]].params)
    ]


@pytest.mark.slow
def test_the_commands_of_the_pages_run_on_own_data(tmp_path, monkeypatch):
    """Word for word, but for a tiny model and a single step; `--fresh` is among them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    for number, name in enumerate(("train", "validation", "test")):
        pages(tmp_path, 3, 2, name)
        for page in range(3):  # no picture stands in two files
            make_image(tmp_path / "images" / f"{name}-{page}.png", 10 * number + page)
    for name in ("page", "left", "right"):
        make_image(tmp_path / f"{name}.png", 3)
    write_clip(tmp_path / "goal.mp4", "libx264")
    (tmp_path / "runs").mkdir()
    for name in ("one", "other"):
        (tmp_path / "runs" / name).symlink_to("mine")
    answer = {"id": "example-0", "prediction": "It is 00."}
    (tmp_path / "predictions.jsonl").write_text(json.dumps(answer) + "\n")
    ran = set()
    for page, words in to_run():
        done = CliRunner().invoke(app, [*words, *as_small(words, tmp_path)])
        said = f"{page}: foveal {' '.join(words)}: {done.output} {done.exception}"
        assert done.exit_code == 0 or (words[0] == "plan" and done.exit_code == 1), said
        ran.add(words[0])
    assert ran == set(COMMAND.commands) - set(RUN_ELSEWHERE)
    (kept,) = (tmp_path / "runs").glob("mine.before-*/evaluation/test/scores.json")
    scores = json.loads(kept.read_text())
    assert scores["accuracy"]["count"] == 6
    assert (tmp_path / "comparison.html").stat().st_size > 10_000


def test_what_is_needed_to_build_the_docs_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert any("mkdocs-material" in one for one in project["optional-dependencies"]["docs"])
