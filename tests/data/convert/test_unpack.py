"""Parquet rows and hub data sets that a recipe names become JSONL and pictures, once."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveal.config import Columns
from foveal.data.convert import unpack
from foveal.data.convert.unpack import find_rows, unpacked
from foveal.data.images.image_folder import ImageFolder
from foveal.data.lines import Examples
from foveal.errors import DataError

datasets = pytest.importorskip("datasets")


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def own_rows(first: int = 0, pages: int = 2) -> list[dict]:
    return [
        {
            "id": f"row-{first + place}",
            "source": "ours",
            "conversations": [
                {
                    "images": [{"bytes": png(place // 2), "path": "page.png"}],
                    "user": f"question {place}",
                    "assistant": f"answer {place}",
                    "answers": ["x", f"answer {place}"] if place else None,
                }
            ],
        }
        for place in range(2 * pages)
    ]


def own_table(rows: list[dict]) -> "datasets.Dataset":
    turn = {
        "images": datasets.List(datasets.Image()),
        "user": datasets.Value("string"),
        "assistant": datasets.Value("string"),
        "answers": datasets.List(datasets.Value("string")),
    }
    text = datasets.Value("string")
    features = {"id": text, "source": text, "conversations": datasets.List(turn)}
    return datasets.Dataset.from_list(rows, features=datasets.Features(features))


def write(path: Path, table: "datasets.Dataset") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(str(path))
    return path


def images_of(file: Path) -> list[bytes]:
    folder = ImageFolder(file)
    return [folder.find(name).read_bytes() for one in Examples([file]) for name in one.images]


def test_rows_of_our_own_layout_keep_their_ids_answers_and_pictures(tmp_path):
    path = write(tmp_path / "x.parquet", own_table(own_rows()))
    file = unpacked(path, tmp_path / "cache")
    examples = Examples([file])
    assert [one.id for one in examples] == [f"row-{place}" for place in range(4)]
    assert examples[0].source == "ours"
    assert examples[0].turns[0].answers == ()
    assert examples[3].turns[0].answers == ("x", "answer 3")
    assert images_of(file) == [png(0), png(0), png(1), png(1)]
    stored = list(file.parent.rglob("*.png"))
    assert len(stored) == 2  # what two rows show is one file, so they share it


def test_a_folder_of_shards_is_read_in_the_order_of_their_names(tmp_path):
    folder = tmp_path / "shards"
    write(folder / "train-00001-of-00002.parquet", own_table(own_rows(4)))
    write(folder / "train-00000-of-00002.parquet", own_table(own_rows(0)))
    examples = Examples([unpacked(folder, tmp_path / "cache")])
    assert [one.id for one in examples] == [f"row-{place}" for place in range(8)]


def test_a_folder_of_several_splits_has_to_say_which(tmp_path):
    folder = tmp_path / "shards"
    write(folder / "train-00000-of-00001.parquet", own_table(own_rows(0)))
    write(folder / "test-00000-of-00001.parquet", own_table(own_rows(4)))
    write(folder / "deep" / "validation" / "0000.parquet", own_table(own_rows(8)))
    with pytest.raises(DataError, match=r"several splits; .*shards:test or .*shards:train or"):
        unpacked(folder, tmp_path / "cache")
    firsts = {"train": "row-0", "test": "row-4", "validation": "row-8", "val": "row-8"}
    for split, first in firsts.items():
        (one, *_) = Examples([unpacked(Path(f"{folder}:{split}"), tmp_path / "cache")])
        assert one.id == first
    with pytest.raises(DataError, match="no split dev2 in it; there are test, train, val"):
        unpacked(Path(f"{folder}:dev2"), tmp_path / "cache")


@pytest.mark.parametrize(
    ("split", "ids"),
    [("train[:2]", [4, 5]), ("train[50%:]", [6, 7]), ("train[-1:]", [7]), ("train", [4, 5, 6, 7])],
)
def test_a_part_of_a_split_is_written_as_datasets_has_it(tmp_path, monkeypatch, split, ids):
    place = tmp_path / "owner" / "name" / "data"
    write(place / "train-00000-of-00001.parquet", own_table(own_rows(4)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    file = unpacked(Path(f"hf://owner/name:{split}"), Path("cache"))
    assert [one.id for one in Examples([file])] == [f"row-{number}" for number in ids]
    with pytest.raises(DataError, match="train"):
        unpacked(Path("hf://owner/name:train[x:]"), Path("cache"))


def test_only_the_published_set_gets_the_published_words(tmp_path, monkeypatch):
    rows = {"image": [{"bytes": png(1), "path": None}], "query": [{"en": "Total?", "de": "?"}]}
    table = datasets.Dataset.from_dict(rows | {"answers": [["12"]]})
    (turn,) = Examples([unpacked(write(tmp_path / "x.parquet", table), tmp_path / "c")])[0].turns
    assert turn.user == "Total?"
    write(tmp_path / "nielsr" / "docvqa_1200_examples" / "train.parquet", table)
    monkeypatch.chdir(tmp_path)
    published = unpacked(Path("hf://nielsr/docvqa_1200_examples:train"), Path("cache"))
    assert Examples([published])[0].turns[0].user == "Total?\nAnswer briefly."


@pytest.mark.parametrize("asked", [{"en": None}, {"en": " ", "de": None}, None, float("nan")])
def test_a_question_that_is_absent_is_not_asked(tmp_path, asked):
    row = {"image": {"bytes": png(1), "path": None}, "query": asked, "answers": ["12"]}
    path = write(tmp_path / "x.parquet", datasets.Dataset.from_list([row]))
    with pytest.raises(DataError, match=r"x row 1: .*question"):
        unpacked(path, tmp_path / "cache")


def test_columns_may_be_named_and_other_names_are_another_set(tmp_path):
    rows = {"page": [{"bytes": png(1), "path": None}], "ask": ["?"], "one": ["1"], "two": ["2"]}
    path = write(tmp_path / "x.parquet", datasets.Dataset.from_dict(rows))
    for answer, text in (("one", "1"), ("two", "2")):
        columns = Columns(images="page", question="ask", answer=answer)
        (example,) = Examples([unpacked(path, tmp_path / "cache", columns)])
        assert example.turns[0].assistant == text
    with pytest.raises(DataError, match=r"x row 1: no column of the images .* page, ask, one, two"):
        unpacked(path, tmp_path / "cache")


def test_an_id_that_a_table_turned_into_a_fraction_is_whole_again(tmp_path):
    rows = [row | {"id": 12.0 + place} for place, row in enumerate(own_rows())]
    path = write(tmp_path / "x.parquet", datasets.Dataset.from_list(rows))
    found = Examples([unpacked(path, tmp_path / "cache")])
    assert [one.id for one in found] == ["12", "13", "14", "15"]


def test_an_answer_that_is_a_text_is_learnt_whole(tmp_path):
    rows = {"image": [{"bytes": png(1), "path": None}], "question": ["?"], "answers": ["red"]}
    path = write(tmp_path / "x.parquet", datasets.Dataset.from_dict(rows))
    (example,) = Examples([unpacked(path, tmp_path / "cache")])
    assert (example.turns[0].assistant, example.turns[0].answers) == ("red", ("red",))


def test_pictures_may_lie_beside_the_rows_and_not_elsewhere(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.png").write_bytes(png(3))
    (tmp_path / "b.png").write_bytes(png(4))
    rows = {"image": ["a.png"], "question": ["?"], "answer": ["x"]}
    path = write(tmp_path / "set" / "x.parquet", datasets.Dataset.from_dict(rows))
    assert images_of(unpacked(path, tmp_path / "cache")) == [png(3)]
    for name in ("../b.png", "c.png"):
        path = write(
            tmp_path / "set" / "x.parquet", datasets.Dataset.from_dict(rows | {"image": [name]})
        )
        with pytest.raises(DataError, match="x row 1: no picture of that name; take it out"):
            unpacked(path, tmp_path / "cache")


def test_a_split_of_a_data_set_on_the_hub_is_named_by_owner_name_and_split(tmp_path, monkeypatch):
    # A folder of that name stands for the hub: `datasets` looks there first.
    write(
        tmp_path / "owner" / "name" / "data" / "train-00000-of-00001.parquet",
        own_table(own_rows(4)),
    )
    write(
        tmp_path / "owner" / "name" / "data" / "test-00000-of-00001.parquet", own_table(own_rows())
    )
    monkeypatch.chdir(tmp_path)
    file = unpacked(Path("hf://owner/name:test"), Path("cache"))
    assert [one.id for one in Examples([file])] == [f"row-{place}" for place in range(4)]


def cauldron() -> "datasets.Dataset":
    rows = [
        {
            "images": [{"bytes": png(7), "path": None}],
            "texts": [
                {"user": "Is it grey?", "assistant": "No.", "source": "s"},
                {"user": "What is it?", "assistant": "Noise.", "source": "s"},
            ],
        }
    ]
    pair = {name: datasets.Value("string") for name in ("user", "assistant", "source")}
    features = {"images": datasets.List(datasets.Image()), "texts": datasets.List(pair)}
    return datasets.Dataset.from_list(rows, features=datasets.Features(features))


def test_columns_of_the_cauldron_give_an_example_a_question(tmp_path):
    file = unpacked(write(tmp_path / "c.parquet", cauldron()), tmp_path / "cache")
    turns = [one.turns[0] for one in Examples([file])]
    assert [(turn.user, turn.assistant) for turn in turns] == [
        ("Is it grey?", "No."),
        ("What is it?", "Noise."),
    ]
    assert turns[0].choices == ("Yes.", "No.")
    assert images_of(file) == [png(7), png(7)]


def test_what_is_unpacked_once_is_read_again_until_the_file_changes(tmp_path, monkeypatch):
    path = write(tmp_path / "x.parquet", own_table(own_rows()))
    first = unpacked(path, tmp_path / "cache")
    monkeypatch.setattr(unpack, "stream_parquet", None)  # would be called
    assert unpacked(path, tmp_path / "cache") == first
    monkeypatch.undo()
    write(path, own_table(own_rows(4)))
    again = unpacked(path, tmp_path / "cache")
    assert again != first
    assert Examples([again])[0].id == "row-4"


def test_a_jsonl_file_stays_where_it_is(tmp_path):
    assert unpacked(tmp_path / "data.jsonl", tmp_path) == tmp_path / "data.jsonl"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conversations": [{"images": [], "user": "q", "assistant": None}]}, "missing key"),
        (
            {"conversations": [{"images": [{"bytes": b"", "path": None}], "user": "q"}]},
            "a picture without bytes",
        ),
        ({"id": None}, 'missing key "id"'),
    ],
)
def test_a_row_that_is_no_example_is_named_by_its_number(tmp_path, change, message):
    rows = own_rows()
    rows[2] |= change
    path = write(tmp_path / "x.parquet", own_table(rows))
    with pytest.raises(DataError, match=rf"x row 3: not an example \({message}.*"):
        unpacked(path, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.jsonl"))


@pytest.mark.parametrize("name", ["hf://owner:train", "hf://owner/name", "hf://a/b/c/d:train"])
def test_another_way_to_name_the_hub_is_refused(name):
    with pytest.raises(DataError, match="write hf://OWNER/NAME:SPLIT"):
        find_rows(Path(name))


def test_what_cannot_be_read_is_an_error_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="without Parquet files"):
        unpacked(tmp_path / "empty", tmp_path / "cache")
    with pytest.raises(DataError, match=r"broken\.parquet"):
        unpacked(tmp_path / "broken.parquet", tmp_path / "cache")
