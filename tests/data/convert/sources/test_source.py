"""What a source promises: a folder or a zip, and what cannot be one."""

import os
import zipfile
from pathlib import Path

import pytest
from held import held
from layouts import image_bytes, left_out, put_image, put_json, turns_of, zip_folder

from foveal.data.convert import KINDS, convert
from foveal.data.convert.sources.source import Source
from foveal.data.convert.write import LOCK
from foveal.errors import DataError
from foveal.storage import AtWorkError


def test_a_folder_its_zip_and_a_folder_of_zips_convert_alike(nlvr, tmp_path):
    zips = tmp_path / "zips"
    zips.mkdir()
    zip_folder(nlvr, tmp_path / "all.zip")
    for part in ("nlvr", "nlvr_pairs"):
        with zipfile.ZipFile(zips / f"{part}.zip", "w") as archive:
            for file in (nlvr / part).rglob("*"):
                archive.write(file, file.relative_to(nlvr))
    written = []
    for number, source in enumerate([nlvr, tmp_path / "all.zip", zips]):
        out = tmp_path / f"out{number}"
        convert("nlvr", source, out)
        files = [file for file in out.rglob("*") if file.suffix in (".jsonl", ".png")]
        written.append({file.relative_to(out): file.read_bytes() for file in files})
    assert len(written[0]) == 5
    assert written[0] == written[1] == written[2]


def test_the_inner_folder_may_be_given_too(nlvr, tmp_path):
    converted = convert("nlvr", nlvr / "nlvr", tmp_path / "out")
    assert converted.counts == {"nlvr_dev": {"True": 2, "False": 1}}


@pytest.mark.parametrize(
    "name", ["../../evil.png", "/evil.png", "a/../../../evil.png", "..\\evil.png"]
)
def test_a_zip_cannot_write_outside_the_folder(tmp_path, name):
    archive_path = tmp_path / "a" / "b" / "source.zip"
    archive_path.parent.mkdir(parents=True)
    with zipfile.ZipFile(archive_path, "w") as archive:
        archive.writestr(f"cat/{name}", image_bytes(1))
        archive.writestr(f"{name}", image_bytes(2))
        archive.writestr("cat/good.png", image_bytes(3))
    out = tmp_path / "a" / "b" / "out"
    convert("imagefolder", archive_path, out)
    outside = [file for file in tmp_path.rglob("*.png") if not file.is_relative_to(out)]
    assert outside == []
    assert not Path("/evil.png").exists()
    assert (out / "images" / "train" / "cat" / "good.png").exists()


def test_a_link_out_of_the_folder_is_left_out(tmp_path):
    secret = put_image(tmp_path / "secret.png")
    put_image(tmp_path / "source" / "cat" / "1.png")
    (tmp_path / "source" / "cat" / "2.png").symlink_to(secret)
    put_image(tmp_path / "elsewhere" / "dog" / "3.png")
    (tmp_path / "source" / "dog").symlink_to(tmp_path / "elsewhere" / "dog")
    converted = convert("imagefolder", tmp_path / "source", tmp_path / "out")
    assert converted.left_out == {"a link out of the source, or to a folder": 2}
    assert set(left_out(tmp_path / "out")) == {"2.png", "dog"}
    assert len(list((tmp_path / "out").rglob("*.png"))) == 1


def test_an_entry_is_found_by_the_longest_common_end_of_its_path(tmp_path):
    for place in ("x/train/img/1.png", "x/test/img/1.png", "x/test/img/2.png"):
        put_image(tmp_path / place)
    source = Source(tmp_path)

    def found(name: str) -> str | None:
        entry = source.find(name)
        return entry.name if entry else None

    assert found("train/img/1.png") == "x/train/img/1.png"
    assert found("other/test/img/1.png") == "x/test/img/1.png"
    assert found("img/1.png") is None  # two fit equally well
    assert found("elsewhere/2.png") == "x/test/img/2.png"
    assert found("3.png") is None


def test_what_cannot_be_a_source_is_said_in_one_line(tmp_path):
    (tmp_path / "file.txt").write_text("text")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "data.zip").write_bytes(b"PK, but no more")
    for name, message in [
        ("none", "give a folder, a zip, or a file of rows"),
        ("file.txt", "give a folder, a zip, or a file of rows"),
        ("empty", "nothing in it"),
        ("broken", "broken zip"),
    ]:
        with pytest.raises(DataError, match=message):
            convert("imagefolder", tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_of_another_kind_is_said_in_one_line(tmp_path, kind):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "readme.txt").write_text("nothing here")
    with pytest.raises(DataError, match="source") as error:
        convert(kind, tmp_path / "source", tmp_path / "out")
    assert "\n" not in str(error.value)


def test_an_unknown_kind_lists_the_known_ones(tmp_path):
    with pytest.raises(DataError, match=r"voc: unknown kind.*ucf101"):
        convert("voc", tmp_path, tmp_path / ".." / "out")


def test_one_file_of_rows_is_read_with_the_pictures_beside_it_and_no_other_file(tmp_path):
    put_image(tmp_path / "source" / "pictures" / "a.png")
    for name, question in (("one", "Which?"), ("two", "What?")):
        rows = [{"image": "pictures/a.png", "question": question, "answer": "red"}]
        put_json(tmp_path / "source" / f"{name}.json", rows)
    done = convert("table", tmp_path / "source" / "two.json", tmp_path / "out")
    assert done.counts == {"table_train": {"": 1}}
    (example,) = turns_of(tmp_path / "out" / "table_train.jsonl")
    assert example["user"] == "What?"
    assert (tmp_path / "out" / "images" / example["images"][0]).is_file()


def test_a_key_that_is_there_twice_is_refused_with_its_place(tmp_path):
    twice = '{"image": "a.png", "question": "?", "answer": "red", "answer": "blue"}'
    put_image(tmp_path / "source" / "a.png")
    for name, where in (("rows.jsonl", "rows.jsonl:1: "), ("rows.json", "rows.json: ")):
        file = tmp_path / "source" / name
        file.write_text(twice if name.endswith("l") else f"[{twice}]")
        with pytest.raises(DataError, match=f'{where}key "answer" is there twice'):
            convert("table", file, tmp_path / "out")


def test_a_folder_that_another_process_fills_is_left_to_it(tmp_path):
    put_image(tmp_path / "source" / "cat" / "1.png")
    with held(tmp_path / "out" / LOCK), pytest.raises(AtWorkError, match=r"at work in it: .*out"):
        convert("imagefolder", tmp_path / "source", tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == [LOCK]
    convert("imagefolder", tmp_path / "source", tmp_path / "out")
    assert not (tmp_path / "out" / LOCK).exists()


def test_a_name_that_no_line_of_json_can_hold_is_refused(tmp_path):
    put_image(tmp_path / "source" / "cat" / "1.png")
    (tmp_path / "source" / "cat" / "1.png").rename(
        os.fsdecode(os.fsencode(tmp_path / "source" / "cat") + b"/\xff.png")
    )
    with pytest.raises(DataError, match=r"cat/\\xff\.png: a name that is not UTF-8; rename it"):
        Source(tmp_path / "source")


def test_a_whole_path_is_that_file_whatever_else_has_its_name(tmp_path):
    rows = tmp_path / "rows.csv"
    rows.touch()
    for place in ("page.png", "images/page.png", "images/old/page.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    for source in (Source(rows), Source(tmp_path)):
        for place in ("page.png", "images/page.png", "images/old/page.png"):
            assert source.find(place).name == place
            assert source.find(str(tmp_path / place)).name == place
        assert source.find("elsewhere/page.png") is None  # any of three
