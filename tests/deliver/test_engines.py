"""The page says which engine opens which family, by the names that stand in an exported folder."""

import json
import re
from pathlib import Path

import pytest
from tiny_models import FAMILIES as TINY

from foveal.deliver.export import export_run
from foveal.models import FAMILIES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "deliver.md").read_text()
DATA = json.loads(Path(__file__).with_name("engines.json").read_text())
ENGINES = DATA["engines"]
PHI = {"model_type": "phi3_v", "architectures": ["Phi3VForCausalLM"]}


def names_of(family):
    """What config.json of a family holds."""
    if family == "phi3_v":
        return PHI
    config, *_ = TINY[family]()
    return {"model_type": config.model_type, "architectures": config.architectures}


def opens(engine, family):
    found = names_of(family)[engine["key"]]
    return (found if isinstance(found, str) else found[0]) in engine["opens"]


@pytest.mark.parametrize("family", [one for one in FAMILIES if one == "phi3_v" or one in TINY])
def test_the_page_says_of_each_family_who_opens_it(family):
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{family}` |"))
    said = [cell.strip() for cell in row.strip("|").split("|")[1:]]
    assert [one.startswith("yes") for one in said] == [
        opens(engine, family) or (name, family) == ("transformers", "phi3_v")
        for name, engine in ENGINES.items()
    ]


def test_the_page_names_each_engine_with_the_version_and_the_file_that_was_read():
    head = next(line for line in PAGE.splitlines() if line.startswith("| `model_type` |"))
    assert [cell.strip() for cell in head.strip("|").split("|")[1:]] == list(ENGINES)
    for name, engine in ENGINES.items():
        version = engine["version"].split()[-1][:12]
        source = re.split(r"[,;]", engine["source"])[0]
        assert any(
            name in line and version in line and source in line for line in PAGE.splitlines()
        ), name


def test_the_page_says_what_each_engine_does_with_adapters_of_the_tower():
    rows = [f"| {' | '.join(row)} |" for row in DATA["tower_adapters"]]
    assert "\n".join(rows) in PAGE, "run .ci/write_tower_adapters"
    assert {row[0].split()[0] for row in DATA["tower_adapters"]} <= ENGINES.keys()


def test_transformers_has_every_family_that_the_page_says_it_has():
    from transformers.models.auto import modeling_auto as auto

    named = auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.keys()
    # Phi-4-multimodal stands among decoders of words alone there.
    named |= auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() & {"phi4_multimodal"}
    assert set(ENGINES["transformers"]["opens"]) <= named


def test_an_exported_folder_holds_the_names_and_files_that_they_look_for(full_run, tmp_path):
    folder = export_run(full_run, tmp_path / "out", proof=False).folder
    config = json.loads((folder / "config.json").read_text())
    assert {name: config[name] for name in PHI} == PHI
    assert all((folder / name).is_file() for name in DATA["files"])
    assert [one for one in folder.iterdir() if one.suffix in (".bin", ".pt")] == []
