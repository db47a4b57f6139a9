"""What writing a converted data set promises: no half of one, nothing twice, nothing outside."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from layouts import image_bytes, put_image

from foveal.data.convert import Options, convert
from foveal.data.convert.draft import Draft, DraftImage
from foveal.data.convert.write import claimed, write_drafts
from foveal.data.example import Example, Turn, write_examples
from foveal.errors import DataError


def snapshot(out: Path) -> dict[str, tuple[int, int]]:
    files = sorted((out / "images").rglob("*.png"))
    return {str(file): (file.stat().st_mtime_ns, file.stat().st_ino) for file in files}


def test_a_killed_conversion_goes_on_and_keeps_finished_pictures(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    for number in range(30):
        put_image(source / "cat" / f"{number:02}.png", number)
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from foveal.data.convert import convert\n"
        "def stop(done, total):\n"
        "    if done == 10: os.kill(os.getpid(), signal.SIGKILL)\n"
        "convert('imagefolder', Path(sys.argv[1]), Path(sys.argv[2]), progress=stop)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(source), str(out)], check=False)
    assert killed.returncode == -signal.SIGKILL
    before = snapshot(out)
    assert len(before) == 10
    assert not list(out.glob("*.jsonl"))  # a run cannot take it for finished
    (out / "images" / "train" / "cat" / "11.png.77.part").write_bytes(b"cut off")
    seen = []
    converted = convert("imagefolder", source, out, progress=lambda *step: seen.append(step))
    after = snapshot(out)
    assert len(after) == 30
    assert {name: after[name] for name in before} == before
    assert seen == [(done, 30) for done in range(1, 31)]
    assert not list(out.rglob("*.part"))
    convert("imagefolder", source, tmp_path / "straight")
    for file in converted.files:
        assert file.read_bytes() == (tmp_path / "straight" / file.name).read_bytes()


def test_another_conversion_cannot_go_on_in_the_same_folder(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    put_image(source / "cat" / "1.png")
    convert("imagefolder", source, out)
    convert("imagefolder", source, out)
    with pytest.raises(DataError, match="other options"):
        convert("imagefolder", source, out, options=Options(seed=5))
    put_image(source / "cat" / "2.png")
    with pytest.raises(DataError, match="other files"):
        convert("imagefolder", source, out)


def test_a_folder_with_other_things_in_it_is_not_written_to(tmp_path):
    put_image(tmp_path / "source" / "cat" / "1.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(DataError, match="not empty"):
        convert("imagefolder", tmp_path / "source", tmp_path / "out")
    with pytest.raises(DataError, match="inside the source"):
        convert("imagefolder", tmp_path / "source", tmp_path / "source" / "out")


def test_processes_write_the_same_files(tmp_path):
    source = tmp_path / "source"
    for number in range(40):
        put_image(source / "cat" / f"{number:02}.png", number)
    (source / "cat" / "20.png").write_bytes(b"\x89PNG broken")
    results = [convert("imagefolder", source, tmp_path / str(n), workers=n) for n in (1, 2)]
    assert results[0].counts == results[1].counts
    assert results[0].left_out == results[1].left_out
    assert results[0].left_out.total() == 1
    for one, other in zip(results[0].files, results[1].files, strict=True):
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("target", ["../evil.png", "/evil.png", "val/../../evil.png", "a\nb.png"])
def test_a_converter_cannot_write_outside_the_folder_either(tmp_path, target):
    turn = Turn(user="?", assistant="!")
    drafts = [
        Draft("val", (turn,), (DraftImage(image_bytes(shade), name),))
        for shade, name in enumerate(["val/good.png", target])
    ]
    converted = write_drafts(drafts, tmp_path / "a" / "out", "any")
    assert converted.left_out.total() == 1
    assert [file.name for file in tmp_path.rglob("*.png")] == ["good.png"]


def test_a_conversion_without_an_example_says_why_most_were_left_out(tmp_path):
    for number in range(3):
        (tmp_path / "source" / "cat").mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / "cat" / f"{number}.png").touch()
    with pytest.raises(DataError, match="no example came out of it; left out: 3 x"):
        convert("imagefolder", tmp_path / "source", tmp_path / "out")
    assert os.listdir(tmp_path / "out") == []


def test_a_conversion_that_breaks_off_leaves_no_half_of_a_picture(tmp_path):
    half, whole = (tmp_path / "images" / name for name in (".a.png.1-1.part", "b.png"))

    def break_off():
        with claimed(tmp_path, kind="any"):
            whole.parent.mkdir()
            half.touch()
            whole.touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert sorted(files) == [tmp_path / "conversion.json", whole]


@contextmanager
def full_disk() -> Iterator[None]:
    """Let no file grow beyond 2,000 bytes: the nearest to a full disk."""
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))


def test_a_full_disk_ends_a_conversion_and_no_picture_is_left_out_for_it(tmp_path):
    for number in range(2):
        put_image(tmp_path / "source" / "cat" / f"{number}.bmp", number, (60, 40))
    with full_disk(), pytest.raises(OSError, match="File too large") as error:
        convert("imagefolder", tmp_path / "source", tmp_path / "out")
    assert Path(error.value.filename).suffix == ".bmp"
    assert [file.name for file in (tmp_path / "out").rglob("*") if file.is_file()] == [
        "conversion.json"
    ]


def test_a_full_disk_leaves_no_half_of_the_lines(tmp_path):
    turns = (Turn(user="?" * 1000, assistant="!"),)
    examples = [Example(id=str(one), conversations=turns) for one in range(9)]
    with full_disk(), pytest.raises(OSError, match="File too large") as error:
        write_examples(tmp_path / "data.jsonl", examples)
    assert error.value.filename == str(tmp_path / "data.jsonl")
    assert list(tmp_path.iterdir()) == []
