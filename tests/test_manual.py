"""One text with all commands, settings and errors, and an index, as the code has them."""

import importlib.machinery
import importlib.util
from pathlib import Path

from typer.main import get_command
from typer.testing import CliRunner

from foveal.cli import app
from foveal.config import Recipe, setting_names
from foveal.manual import messages, write_manual

ROOT = Path(__file__).parents[1]
WRITER = ROOT / ".ci" / "write_llms"


def printed(*words):
    return CliRunner().invoke(app, ["manual", *words]).stdout


def test_the_text_in_the_docs_is_what_the_code_says():
    assert (ROOT / "docs" / "agents.md").read_text() == printed("--no-errors"), "run .ci/write_llms"


def test_the_index_names_every_page_of_the_docs_with_its_first_sentence():
    loader = importlib.machinery.SourceFileLoader("write_llms", str(WRITER))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("write_llms", loader))
    loader.exec_module(module)
    written = (ROOT / "docs" / "llms.txt").read_text()
    assert written == module.index(), "run .ci/write_llms"
    pages = {page.name for page in (ROOT / "docs").glob("*.md")}
    assert {page for page in pages if f"]({page})" in written} == pages


def test_every_command_option_and_setting_stands_in_it():
    text = printed("--no-errors")
    for name, command in get_command(app).commands.items():
        assert f"### foveal {name}" in text
        options = [one for one in command.params if one.param_type_name == "option"]
        assert all(f"- `{one.opts[0]}" in text for one in options)
    for setting in setting_names(Recipe):
        assert f"{setting.rpartition('.')[2]}:" in text


def test_every_message_is_told_with_what_changes_in_braces():
    told = set(messages())
    assert "data.train is missing; give a JSONL file, data.train=..." in told
    assert "{run}: no checkpoint in {run}; train first" in told
    assert "{name} is missing: pip install 'foveal[quantize]'" in told
    assert "{url}: changed since it was looked into; start again" in told
    assert len(told) > 150
    text = write_manual(get_command(app))
    assert all(one in text for one in told)
