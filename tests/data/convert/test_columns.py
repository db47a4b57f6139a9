"""What converting tables with pictures in them promises."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from layouts import assert_sound, image_bytes, turns_of

from foveal.data.convert import convert
from foveal.data.convert.sources.tables import Hub, open_splits
from foveal.errors import DataError, UserError


def put_parquet(path: Path, columns: dict[str, Sequence[Any]], images: Sequence[str] = ()) -> None:
    """Write Parquet as the hub has it: pictures as bytes and path, named as such."""
    import datasets

    path.parent.mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_dict(dict(columns))
    for name in images:
        nested = isinstance(columns[name][0], list)
        feature = datasets.List(datasets.Image()) if nested else datasets.Image()
        table = table.cast_column(name, feature)
    table.to_parquet(str(path))


def encoded(shade: int, kind: str = "PNG") -> dict[str, Any]:
    return {"bytes": image_bytes(shade, kind), "path": None}


def test_docvqa_columns_of_the_hub_are_read_and_a_page_is_stored_once(tmp_path):
    source = tmp_path / "source"
    columns = {
        "id": ["a", "b", "c"],
        "image": [encoded(1), encoded(1), encoded(2, "JPEG")],
        "query": [{"en": f"What {n}?", "de": f"Was {n}?"} for n in range(3)],
        "answers": [["x", "y"], ["z"], []],
    }
    put_parquet(source / "data" / "train-00000-of-00001.parquet", columns, ["image"])
    put_parquet(source / "data" / "test-00000-of-00001.parquet", columns, ["image"])
    out = tmp_path / "out"
    converted = convert("docvqa", source, out)
    turns = turns_of(out / "docvqa_train.jsonl")
    assert [turn["user"] for turn in turns] == [f"What {n}?\nAnswer briefly." for n in (0, 1)]
    assert turns[0]["assistant"] in turns[0]["answers"] == ["x", "y"]
    assert turns[0]["images"] == turns[1]["images"]
    assert len(list((out / "images" / "train").iterdir())) == 1
    assert (out / "images" / turns[0]["images"][0]).read_bytes() == image_bytes(1)
    assert converted.counts == {"docvqa_train": {"": 2}, "docvqa_test": {"": 2}}
    assert converted.left_out == {"no question with an answer in the row": 2}
    assert_sound(converted)


@pytest.mark.parametrize(
    ("kind", "answers", "choices"),
    [
        ("nlvr2", ["Yes.", "No."], ["Yes.", "No."]),
        ("hateful-memes", ["No", "Yes"], ["Yes", "No"]),
        ("docvqa", ["Yes.", "12."], None),
    ],
)
def test_columns_of_the_cauldron_are_read_and_its_first_rows_are_val(
    tmp_path, kind, answers, choices
):
    source, number = tmp_path / "source", 20
    columns = {
        "images": [[encoded(row), encoded(row + 100)] for row in range(number)],
        "texts": [
            [
                {"user": f"{row}?", "assistant": answers[row % 2], "source": "x"},
                {"user": f"and {row}?", "assistant": answers[1 - row % 2], "source": "x"},
            ]
            for row in range(number)
        ],
    }
    put_parquet(source / "train-00000-of-00001-abc.parquet", columns, ["images"])
    out = tmp_path / "out"
    converted = convert(kind, source, out)
    val = turns_of(out / f"{kind}_val.jsonl")
    assert [turn["user"] for turn in val] == ["0?", "and 0?", "1?", "and 1?"]  # a tenth
    assert len(turns_of(out / f"{kind}_train.jsonl")) == 36
    assert val[0]["images"] == val[1]["images"]
    assert len(val[0]["images"]) == 2
    assert [turn["assistant"] for turn in val[:2]] == answers
    assert all(turn.get("choices") == choices for turn in val)
    assert_sound(converted)


def test_two_splits_of_the_hub_that_are_one_to_us_are_both_read(tmp_path, monkeypatch):
    # A folder of that name stands for the hub: `datasets` looks there first.
    for name in ("dev", "validation", "test"):
        columns = {"image": [encoded(1)], "query": [f"{name}?"], "answers": [["x"]]}
        put_parquet(tmp_path / "owner" / "name" / "data" / f"{name}.parquet", columns, ["image"])
    (tmp_path / "owner" / "name" / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        + "".join(
            f"  - split: {name}\n    path: data/{name}.parquet\n"
            for name in ("dev", "validation", "test")
        )
        + "---\n"
    )
    monkeypatch.chdir(tmp_path)
    read = [
        (row.split, row.row["query"]) for one in open_splits(Hub("owner/name")) for row in one.rows
    ]
    assert sorted(read) == [("test", "test?"), ("val", "dev?"), ("val", "validation?")]


def test_a_row_with_a_broken_picture_is_left_out(tmp_path):
    source = tmp_path / "source"
    columns = {
        "image": [encoded(1), {"bytes": image_bytes(2)[:40], "path": None}],
        "query": ["Well?", "Broken?"],
        "answers": [["x"], ["y"]],
    }
    put_parquet(source / "test.parquet", columns)  # plain bytes and path, no feature named
    converted = convert("docvqa", source, tmp_path / "out")
    assert converted.counts == {"docvqa_test": {"": 1}}
    assert converted.left_out.total() == 1


def test_rows_that_break_off_are_a_mendable_error(tmp_path):
    columns = {"image": [encoded(1)], "query": ["Well?"], "answers": [["x"]]}
    path = tmp_path / "source" / "train.parquet"
    put_parquet(path, columns)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="source") as error:
        convert("docvqa", tmp_path / "source", tmp_path / "out")
    assert "\n" not in str(error.value)


def test_a_missing_datasets_package_is_said_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "train.parquet").touch()
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install foveal\[data\]"):
        convert("nlvr2", tmp_path / "source", tmp_path / "out")
