"""An answer that is written like a date stays the text that it is."""

import io

import pytest
from datasets import Dataset, Features, Image, List, Value
from layouts import lines_of, put_image, put_json, turns_of
from PIL import Image as Pillow

from foveal.data.convert import Options, convert
from foveal.data.convert.unpack import unpacked

# datasets 5.2.0 reads such a column of a JSON file as moments in time, "2024-01-05 00:00:00"
# (packaged_modules/json/json.py, through the inference of pyarrow's read_json).
DATES = ["2024-01-05", "1997-10-30", "2024-01-05T10:30:00"]


@pytest.mark.parametrize("kind", ["llava", "sharegpt"])
def test_in_the_json_of_other_trainers(tmp_path, kind):
    source = tmp_path / "source"
    put_image(source / "page.png", 0)
    rows = [
        {
            "image": "page.png",
            "conversations": [
                {"from": "human", "value": "<image>\nWhen?"},
                {"from": "gpt", "value": date},
            ],
        }
        for date in DATES
    ]
    put_json(source / "rows.json", rows)
    out = tmp_path / "out"
    convert(kind, source, out, options=Options(validation_fraction=0))
    assert [turn["assistant"] for turn in turns_of(out / f"{kind}_train.jsonl")] == DATES


def test_in_the_columns_of_a_parquet_file(tmp_path):
    content = io.BytesIO()
    Pillow.new("RGB", (8, 8)).save(content, "PNG")
    rows = {
        "image": [{"bytes": content.getvalue(), "path": None}] * len(DATES),
        "question": ["When?"] * len(DATES),
        "answers": [[date] for date in DATES],
    }
    columns = Features(
        {"image": Image(), "question": Value("string"), "answers": List(Value("string"))}
    )
    file = tmp_path / "rows.parquet"
    Dataset.from_dict(rows, features=columns).to_parquet(file)
    read = lines_of(unpacked(file, tmp_path / "cache"))
    answers = [turn["answers"] for row in read for turn in row["conversations"]]
    assert answers == [[date] for date in DATES]
