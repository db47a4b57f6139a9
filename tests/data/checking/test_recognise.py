"""What a file of another kind is called, and which command it is sent to."""

import bz2
import gzip
import json
import lzma
import os
import zipfile

import pytest
from layouts import put_image

from foveal.data.checking.check import check_file
from foveal.data.checking.recognise import other_kind
from foveal.data.convert.unpack import unpacked
from foveal.errors import DataError

OURS = {"id": "1", "conversations": [{"images": ["a.png"], "user": "?", "assistant": "!"}]}
FLAT = {"image": "a.png", "question": "Which?", "answer": "red"}
LLAVA = {"image": "a.png", "conversations": [{"from": "human", "value": "<image>?"}]}
CHAT = {"messages": [{"role": "user", "content": "?"}], "images": ["a.png"]}
COCO = {"info": {}, "images": [{"id": 1}], "annotations": [{"caption": "a dog"}]}

LABELS = {"id": 1, "annotations": [{"result": []}], "data": {"image": "/data/upload/1/a.png"}}


def text(value, **how) -> bytes:
    return json.dumps(value, **how).encode() + b"\n"


PACKED = gzip.compress(text(OURS), mtime=0)  # a test's name holds no time


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("d.csv", b"image,question,answer\na.png,?,x\n", "a CSV table; foveal convert table"),
        ("d.jsonl", b"image;question;answer\na.png;?;x\n", "a CSV table; foveal convert table"),
        ("d.tsv", b"image\tquestion\na.png\t?\n", "a TSV table; foveal convert table"),
        ("d.json", text([FLAT]), "a JSON array; foveal convert table"),
        ("d.json", text([LLAVA], indent=1), "a JSON array; foveal convert llava"),
        ("d.json", text([CHAT]), "a JSON array; foveal convert sharegpt"),
        ("d.json", text([]), "a JSON array; foveal convert"),
        ("d.jsonl", text(FLAT), "rows of pictures, questions and answers; foveal convert table"),
        ("d.jsonl", text(CHAT), "another layout; foveal convert sharegpt"),
        ("d.jsonl", text(LLAVA), "another layout; foveal convert llava"),
        ("d.jsonl", text(OURS, indent=1), "one JSON object over several lines"),
        ("d.json", text(COCO), "COCO's annotations; foveal convert coco"),
        (
            "d.jsonl",
            text({"scan": "a.png", "ask": "?", "reply": "!"}),
            "rows of the columns scan, ask, reply; foveal convert table",
        ),
        ("d.json", text([LABELS]), "Label Studio's whole export; foveal convert table"),
        ("d.jsonl.gz", PACKED, "packed by gzip; unpack it: gunzip --keep d"),
        ("d.jsonl.bz2", bz2.compress(text(OURS)), "packed by bzip2; unpack it: bunzip2"),
        ("d.jsonl.xz", lzma.compress(text(OURS)), "packed by xz; unpack it: unxz"),
        ("d.jsonl", text(OURS).decode().encode("utf-16"), "UTF-16 text; write it as UTF-8: iconv"),
        ("d.jsonl", text(OURS).decode().encode("utf-32"), "UTF-32 text"),
        ("d.jsonl", text(OURS).decode().encode("utf-16-le"), "UTF-16LE text; write it as UTF-8"),
        ("d.jsonl", text(OURS).decode().encode("utf-16-be"), "UTF-16BE text; write it as UTF-8"),
        ("d.jsonl", b"\r".join([text(OURS).strip()] * 2), r"end in CR alone; write LF: tr '\r'"),
        ("d.jsonl", b"\0" * 100, "not a text"),
        ("d.jsonl", b"PAR1....", "a Parquet file; let its name end in .parquet"),
        (
            "r.yaml",
            b"model: m\ndata: {train: d.jsonl}\n",
            "a recipe, by its name; give the file that",
        ),
        ("d.jsonl", b"\x89PNG\r\n\x1a\n\0\0\0", "not a text"),
    ],
)
def test_a_file_of_another_kind_is_named_with_the_command_that_reads_it(
    tmp_path, name, content, said
):
    path = tmp_path / name
    path.write_bytes(content)
    assert said in other_kind(path)
    (problem,) = check_file(path)
    assert problem.message == other_kind(path)
    with pytest.raises(DataError) as error:
        unpacked(path, tmp_path / "cache")
    assert str(error.value) == f"{path}: {other_kind(path)}"
    assert "\n" not in str(error.value)


def test_a_zip_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        archive.writestr("d.jsonl", text(OURS))
    assert "packed by zip; unpack it: unzip d.zip" in other_kind(tmp_path / "d.zip")


@pytest.mark.parametrize(
    "content",
    [
        text(OURS),
        b"\xef\xbb\xbf" + text(OURS),
        b"\n\n  " + text(OURS),
        text(OURS | {"colour": "red"}),
        text({"id": "1", "conversation": []}),
        text({"id": "1", "conversations": []}),
        b"{\n" + text(OURS),
        b'{"id": "1", \n',
        b"",
        b"hello, world\n"[:5],
    ],
)
def test_examples_right_or_wrong_are_looked_at_line_by_line(tmp_path, content):
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    assert other_kind(path) is None


def test_a_byte_order_mark_is_read_over_by_check_fix_and_runs(tmp_path):
    put_image(tmp_path / "images" / "a.png")
    data, fixed = tmp_path / "data.jsonl", tmp_path / "fixed.jsonl"
    data.write_bytes(b"\xef\xbb\xbf" + text(OURS) + text(OURS | {"id": "2"}) + b"\xef\xbb\xbf\n")
    check = check_file(data, fix=fixed)
    assert list(check) == []
    assert check.summary.lines == 2
    assert fixed.read_bytes() == b"\xef\xbb\xbf" + text(OURS) + text(OURS | {"id": "2"})
    from foveal.data.lines import Examples

    for file in (data, fixed):
        opened = Examples([file], tmp_path / "cache")
        assert [opened[0].id, opened[1].id, len(opened)] == ["1", "2", 2]
        assert [one.id for one in opened] == ["1", "2"]


def test_a_pipe_is_named_in_place_of_being_waited_for(tmp_path):
    os.mkfifo(tmp_path / "d.jsonl")
    with pytest.raises(DataError, match="no file that can be read more than once"):
        unpacked(tmp_path / "d.jsonl", tmp_path / "cache")
