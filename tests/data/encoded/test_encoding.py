"""Examples are encoded once, whatever stops it, and what is kept is never of something else."""

import json
import os
import resource
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from numbered_clips import write_clip
from published import make_processor
from ticks import next_tick
from tiny import make_image, pages, turn, write_data
from words import WordProcessor

from foveal.data import lines
from foveal.data.dataset import read_dataset
from foveal.data.encode import encode
from foveal.data.encoded import encoding, measured
from foveal.data.encoded.column_files import Ragged, Texts
from foveal.data.example import read_examples
from foveal.data.images import archives
from foveal.data.images.archives import open_stored
from foveal.data.images.frames import FrameChoice
from foveal.data.images.image_folder import ImageFolder
from foveal.errors import DataError

TESTS = Path(__file__).parents[2]


def contents(dataset):
    """All that a plan and a batch are made of."""
    sizes, count = dataset.sizes, range(len(dataset.examples))
    arrays = [
        *(sizes.prefix_groups, sizes.extra_tokens, sizes.crops, sizes.later_crops),
        *(sizes.beginning_tokens, sizes.tokens, sizes.image_tokens, sizes.image_crops),
        dataset.examples.targets,
    ]
    examples = [
        (one.id, one.entries.tobytes(), one.learnt.tobytes(), one.prompt_entries, one.images)
        for one in dataset.examples
    ]
    lists = sizes.prompts.take(count), sizes.images.take(count)
    return dataset.fingerprint, [array.tolist() for array in arrays], examples, lists


def read(*arguments, **settings):
    return read_dataset(*arguments, **settings)[1]


def encoded_lines(monkeypatch):
    """Note the ids of the examples that are encoded."""
    seen = []

    def noting(example, *others):
        seen.append(example.id)
        return encode(example, *others)

    monkeypatch.setattr(encoding, "encode", noting)
    return seen


@pytest.mark.parametrize("chunk_bytes", [1, 300, 2**23])
def test_kept_examples_are_those_that_are_worked_out_at_once(tmp_path, monkeypatch, chunk_bytes):
    data, processor = pages(tmp_path, 3, 4), WordProcessor()
    whole = contents(read(data, processor))
    monkeypatch.setattr(encoding, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(encoding, "FEWEST_CHUNKS", 10_000)
    assert contents(read(data, processor)) == whole
    for _ in range(2):
        assert contents(read(data, processor, cache=tmp_path / "cache")) == whole
    folder = ImageFolder(data)
    for one, kept in zip(read_examples(data), read(data, processor).examples, strict=True):
        again = encode(one, processor, folder)
        assert np.array_equal(kept.entries, again.entries)
        assert np.array_equal(kept.learnt, again.learnt)


def test_examples_are_encoded_once_and_then_mapped(tmp_path, monkeypatch):
    data, cache = pages(tmp_path, 2, 2), tmp_path / "cache"
    seen = encoded_lines(monkeypatch)
    first = contents(read(data, WordProcessor(), cache=cache))
    assert len(seen) == 4
    assert contents(read(data, WordProcessor(), cache=cache)) == first
    assert len(seen) == 4
    headers = []
    usual = measured.image_size
    monkeypatch.setattr(measured, "image_size", lambda one: headers.append(one) or usual(one))
    read(data, WordProcessor(), cache=cache)
    assert len(headers) == 0
    assert contents(read(data, WordProcessor(), cache=cache, fresh=True)) == first
    assert len(seen) == 8
    assert len(headers) == 2


def test_fresh_believes_no_state_of_a_file(tmp_path, monkeypatch):
    """As where a disk says of a changed file all that it said of the former one."""
    for module in (archives, lines):
        monkeypatch.setattr(module, "stamp_of", lambda _: [1, 2, 3, 4])
    data, cache = pages(tmp_path, 3, 1), tmp_path / "cache"
    data.write_text(data.read_text().replace("data-", "pages.tar/data-"))
    images = sorted((tmp_path / "images").iterdir())

    def pack(files):
        with tarfile.open(tmp_path / "images" / "pages.tar", "w") as tar:
            for file, name in zip(files, images, strict=True):
                tar.add(file, name.name)

    pack(images)
    examples, first = read_dataset(data, WordProcessor(), cache=cache)
    texts = [examples[at].turns[0].assistant for at in range(3)]
    wide = make_image(tmp_path / "wide.png", 9, (300, 40))
    pack([wide, *images[:2]])
    data.write_text(
        "".join(reversed(data.read_text().replace("What", "Say what").splitlines(True)))
    )
    examples, trusting = read_dataset(data, WordProcessor(), cache=cache)
    assert contents(trusting) == contents(first)
    examples, fresh = read_dataset(data, WordProcessor(), cache=cache, fresh=True)
    assert [examples[at].turns[0].assistant for at in range(3)] == texts[::-1]
    assert contents(fresh) == contents(read(data, WordProcessor())) != contents(first)
    with open_stored(fresh.images[2].path) as file:
        assert file.read() == wide.read_bytes()


def test_what_is_kept_is_as_old_as_its_disk_says_whatever_the_clock_of_this_machine(
    tmp_path, monkeypatch
):
    data, cache = pages(tmp_path, 2, 2), tmp_path / "cache"
    before = read(data, WordProcessor(), cache=cache)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 3600)
    seen = encoded_lines(monkeypatch)
    read(data, WordProcessor(), cache=cache, fresh=True)
    assert len(seen) == 4
    make_image(tmp_path / "images" / "data-0.png", 0, (300, 200))
    assert read(data, WordProcessor(), cache=cache).fingerprint != before.fingerprint


def test_another_file_state_folder_or_processor_is_encoded_anew(tmp_path, monkeypatch):
    data, cache = pages(tmp_path, 2, 2), tmp_path / "cache"
    seen = encoded_lines(monkeypatch)
    read(data, WordProcessor(), cache=cache)
    read(data, WordProcessor(), cache=cache, images=tmp_path / "images")
    assert len(seen) == 8
    other = WordProcessor()
    other.words_fingerprint = lambda: "other words"
    read(data, other, cache=cache)
    assert len(seen) == 12
    monkeypatch.setattr(encoding, "code_fingerprint", lambda: "other code")
    read(data, WordProcessor(), cache=cache)
    assert len(seen) == 16
    next_tick(data)
    data.write_text(data.read_text().replace("It is 01", "It is 10"))  # as many bytes
    assert read(data, WordProcessor(), cache=cache).fingerprint == (
        read(data, WordProcessor()).fingerprint
    )
    kept = [one.name for one in (cache / "encoded").iterdir() if one.name.startswith("data-")]
    assert len(kept) == 1  # what the file was before is of use to nobody


def test_a_change_of_one_file_encodes_that_file_alone(tmp_path, monkeypatch):
    files = [pages(tmp_path / name, 2, 2) for name in ("one", "two")]
    read(files, WordProcessor(), cache=tmp_path / "cache")
    next_tick(files[1])
    files[1].write_text(files[1].read_text().replace("It is 01", "It is 10"))
    seen = encoded_lines(monkeypatch)
    kept = read(files, WordProcessor(), cache=tmp_path / "cache")
    assert len(seen) == 4
    assert contents(kept) == contents(read(files, WordProcessor()))


@pytest.mark.parametrize("cached", [False, True])
def test_who_shows_the_same_images_in_the_same_order_shares_them(tmp_path, cached):
    pages(tmp_path, 2, 1)
    names = ["data-0.png", "data-1.png"]
    asked = [
        [turn("<|image_2|><|image_1|> One?", "1", names)],
        [turn("<|image_1|><|image_2|> Two?", "2", names[::-1])],
        [turn("<|image_1|><|image_2|> Three?", "3", names)],
        [turn("None?", "4")],
        [turn("None?", "5")],
    ]
    data = write_data(tmp_path / "asked.jsonl", asked)
    dataset = read(data, make_processor(4), cache=tmp_path / "cache" if cached else None)
    assert dataset.sizes.prefix_groups.tolist() == [0, 0, 1, 2, 3]
    first, second, *_ = dataset.sizes.prompts.take(range(5))
    assert [entry for entry in first if entry < 0] == [entry for entry in second if entry < 0]


def test_boxes_are_moved_anew_when_their_image_or_what_they_count_changes(tmp_path):
    make_image(tmp_path / "images" / "a.png", 0, (300, 200))
    data = write_data(
        tmp_path / "data.jsonl", [[turn("Where is it?", "[30, 20, 60, 40]", ["a.png"])]]
    )
    cache, processor = tmp_path / "cache", make_processor(4)
    processor.boxes = "pixels"
    seen = [read(data, processor, cache=cache)]
    make_image(tmp_path / "images" / "a.png", 0, (150, 100))
    seen.append(read(data, processor, cache=cache))
    assert contents(seen[1]) == contents(read(data, processor))
    processor.boxes = "thousandths"
    seen.append(read(data, processor, cache=cache))
    processor.image_processor.num_crops = 1  # cuts them from an image of another size
    seen.append(read(data, processor, cache=cache))
    assert contents(seen[3]) == contents(read(data, processor))
    processor.boxes = None
    seen.append(read(data, processor, cache=cache))
    assert len({one.examples[0].entries.tobytes() for one in seen}) == 5


def test_frames_are_chosen_anew_when_a_clip_is_another_one(tmp_path):
    clip = tmp_path / "images" / "clip.avi"
    clip.parent.mkdir()
    data = write_data(
        tmp_path / "data.jsonl", [[{"videos": ["clip.avi"], "user": "?", "assistant": "!"}]]
    )
    cache, processor = tmp_path / "cache", WordProcessor()
    processor.frame_choice = FrameChoice(8, 1.0)
    found = []
    for frames in (100, 50):  # 25 a second
        write_clip(clip, "mpeg4", range(frames), b_frames=0)
        found.append(len(read(data, processor, cache=cache).images))
    processor.frame_choice = FrameChoice(3)
    found.append(len(read(data, processor, cache=cache).images))
    assert found == [4, 2, 3]


def test_what_was_noticed_is_said_again_with_its_lines_when_it_is_mapped(tmp_path, monkeypatch):
    data = pages(tmp_path, 2, 3)
    lines = data.read_text().splitlines()
    for at in (1, 2, 4, 5):
        line = json.loads(lines[at])
        line["conversations"][0]["user"] = " "
        lines[at] = json.dumps(line | {"id": "example-0"})
    data.write_text("\n\n".join(lines) + "\n")
    monkeypatch.setattr(encoding, "CHUNK_BYTES", 200)
    monkeypatch.setattr(encoding, "FEWEST_CHUNKS", 10_000)
    for _ in range(2):
        said = list(read(data, WordProcessor(), cache=tmp_path / "cache").remarks.lines())
        assert said[:3] == [f"{data}:{n}: turn 1: user is empty" for n in (3, 5, 9)]
        assert said[3].startswith("and 2 more")  # the fourth, and ids that are there twice


def test_a_bad_line_is_named_by_its_number_in_the_file(tmp_path, monkeypatch):
    data = pages(tmp_path, 2, 3)
    lines = data.read_text().splitlines()
    data.write_text("\n".join([*lines[:4], "", "{", lines[5]]) + "\n")
    monkeypatch.setattr(encoding, "CHUNK_BYTES", 200)
    monkeypatch.setattr(encoding, "FEWEST_CHUNKS", 10_000)
    for cache in (None, tmp_path / "cache"):
        with pytest.raises(DataError, match=r"data\.jsonl:6: not JSON"):
            read(data, WordProcessor(), cache=cache)
    (tmp_path / "images" / "data-1.png").unlink()
    with pytest.raises(DataError, match=r"data\.jsonl:4 \(example-3\): image data-1\.png is"):
        read(data, WordProcessor())


def test_an_image_that_is_gone_is_named_though_its_examples_are_kept(tmp_path):
    data, cache = pages(tmp_path, 2, 2), tmp_path / "cache"
    read(data, WordProcessor(), cache=cache)
    (tmp_path / "images" / "data-1.png").unlink()
    with pytest.raises(DataError, match=r"data-1\.png: No such file"):
        read(data, WordProcessor(), cache=cache)


def test_a_run_that_was_killed_while_it_encoded_goes_on_behind_the_last_piece(
    tmp_path, monkeypatch
):
    data, cache = pages(tmp_path, 4, 4), tmp_path / "cache"
    monkeypatch.setattr(encoding, "CHUNK_BYTES", 300)
    monkeypatch.setattr(encoding, "FEWEST_CHUNKS", 10_000)
    seen = []

    def dying(example, *others):
        if len(seen) == 9:
            raise KeyboardInterrupt
        seen.append(example.id)
        return encode(example, *others)

    monkeypatch.setattr(encoding, "encode", dying)
    with pytest.raises(KeyboardInterrupt):
        read(data, WordProcessor(), cache=cache)
    before = seen.copy()
    seen = encoded_lines(monkeypatch)
    assert contents(read(data, WordProcessor(), cache=cache)) == contents(
        read(data, WordProcessor())
    )
    again = seen[:-16]
    assert 16 - 9 <= len(again) < 16 - 9 + 4  # no more than the piece that it died in
    assert set(before) | set(again) == {f"example-{number}" for number in range(16)}


def test_a_broken_piece_is_made_again(tmp_path, monkeypatch):
    data, cache = pages(tmp_path, 4, 4), tmp_path / "cache"
    monkeypatch.setattr(encoding, "CHUNK_BYTES", 300)
    monkeypatch.setattr(encoding, "FEWEST_CHUNKS", 10_000)
    usual = encoding._joined

    def breaking(*kept):
        first = sorted(cache.rglob("*.npz"))[0]
        first.write_bytes(first.read_bytes()[:-40])
        return usual(*kept)

    monkeypatch.setattr(encoding, "_joined", breaking)
    kept = read(data, WordProcessor(), cache=cache)
    monkeypatch.setattr(encoding, "_joined", usual)
    assert contents(kept) == contents(read(data, WordProcessor()))


READ = """
import sys
sys.path[:0] = [{tests!r}]
from pathlib import Path
from words import WordProcessor
from foveal.data.encoded import encoding
from foveal.data.dataset import read_dataset
if __name__ == "__main__":
    usual = encoding.encode
    def noting(example, *others):
        with open({notes!r}, "a") as file:
            file.write(example.id + "\\n")
        return usual(example, *others)
    encoding.encode = noting
    encoding.CHUNK_BYTES = 2000
    encoding.FEWEST_CHUNKS = 10_000
    print(read_dataset(Path({data!r}), WordProcessor(), cache=Path({cache!r}))[1].fingerprint)
"""


def start(tmp_path, data):
    notes, cache = tmp_path / "notes", tmp_path / "cache"
    script = READ.format(tests=str(TESTS), notes=str(notes), data=str(data), cache=str(cache))
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)


def test_two_that_start_together_encode_once_and_a_kill_frees_the_other(tmp_path):
    data = pages(tmp_path, 4, 40)
    both = [start(tmp_path, data) for _ in range(2)]
    said = {process.communicate(timeout=60)[0].strip() for process in both}
    assert said == {read(data, WordProcessor()).fingerprint}
    notes = tmp_path / "notes"
    assert len(notes.read_text().splitlines()) == 160
    os.utime(data)
    notes.unlink()
    both = [start(tmp_path, data) for _ in range(2)]
    deadline = time.monotonic() + 60
    while not notes.exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    both[0].send_signal(signal.SIGKILL)  # whether it encodes or waits, the other ends alone
    assert both[1].communicate(timeout=60)[0].strip() in said
    both[0].communicate()


@pytest.mark.parametrize("most_bytes", [2000, 6000])
def test_a_full_disk_is_one_line_and_leaves_nothing_that_looks_whole(tmp_path, most_bytes):
    """A limit on a file's size is the nearest to a full disk that needs no root."""
    data, cache = pages(tmp_path, 4, 40), tmp_path / "cache"
    read(data, WordProcessor(), cache=tmp_path / "other")
    (lines,) = (tmp_path / "other").glob("data-*-lines-*/spans")
    assert 2000 < lines.stat().st_size < 6000  # where the index of lines fits, the tokens do not
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, limits[1]))
    try:
        with pytest.raises(DataError, match=r"cannot write to .*: File too large; free space"):
            read(data, WordProcessor(), cache=cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [*(cache / "encoded").glob("data-*")]
    assert contents(read(data, WordProcessor(), cache=cache)) == contents(
        read(data, WordProcessor())
    )


def test_names_that_are_no_utf_8_and_empty_lists_are_kept_as_they_are():
    texts = ["", "gr\udcf6n", "é"]
    assert list(Texts.of(texts)) == texts
    assert Texts.of(texts)[1:] == texts[1:]
    assert Ragged.of([[], [1, 2], []]).take([2, 1]) == [[], [1, 2]]


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("data/encode.py", True),
        ("data/encoded/packed.py", True),
        ("data/images/media.py", True),
        ("models/hub/hub_reader.py", True),
        ("data/convert/chats.py", False),
    ],
)
def test_only_a_change_of_what_encodes_makes_kept_examples_out_of_date(monkeypatch, file, counts):
    asked = encoding.code_fingerprint.__wrapped__
    before, read = asked(), Path.read_bytes
    changed = Path(encoding.__file__).parents[2] / file
    assert changed.is_file()
    monkeypatch.setattr(Path, "read_bytes", lambda one: read(one) + b"#" * (one == changed))
    assert (asked() != before) == counts
