"""A clip in a turn is shown by the right frames, whatever its container says, or named."""

import struct
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
from numbered_clips import CONTAINERS, SLOWING, STEADY, cut_clip, number_shown, write_clip
from tiny import make_model, turn, write_data

from foveal.config import DataSettings
from foveal.data.checking.check import check_file
from foveal.data.convert import Options, convert
from foveal.data.dataset import read_dataset
from foveal.data.encode import count_tokens
from foveal.data.example import read_examples
from foveal.data.images import clips
from foveal.data.images.clips import choose_frames, clip_seconds, read_frames
from foveal.data.images.frames import FrameChoice, parse_frame
from foveal.data.images.image_folder import ImageFolder
from foveal.data.images.media import image_size, open_image
from foveal.data.turn_processor import read_as
from foveal.errors import DataError


def places(clip: Path, most: int = 8, per_second: float | None = None) -> list[int]:
    chosen = choose_frames(clip, FrameChoice(most, per_second))
    return [number_shown(open_image(path)) for path in chosen]


def places_or_reason(clip: Path, choice: FrameChoice) -> tuple[list[int], str]:
    try:
        return places(clip, choice.most, choice.per_second), ""
    except DataError as error:
        return [], str(error)


@pytest.mark.parametrize(("ending", "codec", "b_frames"), CONTAINERS)
def test_frames_by_number_and_by_time_in_every_container(tmp_path, ending, codec, b_frames):
    clip = tmp_path / f"clip{ending}"
    write_clip(clip, codec, b_frames=b_frames)
    assert places(clip) == [0, 12, 25, 37, 50, 62, 75, 87]
    assert clip_seconds(clip) == pytest.approx(4, abs=0.05)
    assert places(clip, per_second=1.0) == [0, 25, 50, 75]
    assert places(clip, per_second=0.1) == [0]
    assert places(clip, 3, 1.0) == [0, 33, 66]  # four would be too many: spread evenly


def test_of_a_clip_whose_rate_varies_the_frame_that_is_seen_at_a_time_is_shown(tmp_path):
    # Frames 0 to 49 in the first two seconds, 50 to 99 one second each from then on: 52 s.
    clip = tmp_path / "clip.mkv"
    write_clip(clip, "libx264", SLOWING)
    assert clip_seconds(clip) == pytest.approx(52, abs=0.01)
    assert places(clip, 8, 0.1) == [0, 58, 68, 78, 88, 98]
    assert places(clip, 60, 1.0) == [0, 25, *range(50, 100)]


@pytest.mark.parametrize("ending", [".mp4", ".mov"])
def test_a_clip_that_was_cut_between_key_frames_begins_and_ends_with_what_it_shows(
    tmp_path, ending
):
    # All 100 frames are in the file, and its edit list hides 25. decord2 3.4.0 counts them
    # (IndexKeyframes in video_reader.cc) and gives 25 34 43 52 61 70 54 63 of every ninth;
    # OpenCV 5.0.0 counts 100 too, which transformers 5.23.0, read_video_opencv, believes.
    write_clip(tmp_path / "whole.mp4", "libx264")
    clip = tmp_path / f"cut{ending}"
    cut_clip(tmp_path / "whole.mp4", clip, seconds=1)
    with av.open(str(clip)) as container:
        assert container.streams.video[0].frames == 100
    assert places(clip) == [25 + k * 75 // 8 for k in range(8)]
    assert clip_seconds(clip) == pytest.approx(3, abs=0.01)
    assert places(clip, per_second=2.0) == [25, 37, 50, 62, 75, 87]


def test_a_clip_of_one_frame_is_shown_by_it(tmp_path):
    clip = tmp_path / "clip.mp4"
    write_clip(clip, "libx264", STEADY[:1])
    assert places(clip, 3) == [0, 0, 0]
    assert places(clip, 3, 2.0) == [0]


@pytest.mark.parametrize("claimed", [0, 50, 200])
def test_a_header_that_lies_about_the_number_of_frames_changes_nothing(tmp_path, claimed):
    clip = tmp_path / "clip.avi"
    write_clip(clip, "mpeg4", b_frames=0)
    content = bytearray(clip.read_bytes())
    for mark, place in ((b"avih", 24), (b"strh", 40)):  # dwTotalFrames, dwLength
        at = content.index(mark) + place
        assert struct.unpack_from("<I", content, at) == (100,)
        struct.pack_into("<I", content, at, claimed)
    clip.write_bytes(content)
    assert places(clip) == [0, 12, 25, 37, 50, 62, 75, 87]
    assert places(clip, per_second=1.0) == [0, 25, 50, 75]


def test_a_clip_of_no_frames_a_second_is_shown_by_number_or_named(tmp_path):
    clip = tmp_path / "clip.avi"
    write_clip(clip, "mpeg4", b_frames=0)
    content = bytearray(clip.read_bytes())
    struct.pack_into("<I", content, content.index(b"strh") + 32, 0)  # dwRate
    struct.pack_into("<I", content, content.index(b"avih") + 8, 0)  # microseconds a frame
    clip.write_bytes(content)
    assert places(clip) == [0, 12, 25, 37, 50, 62, 75, 87]
    found, reason = places_or_reason(clip, FrameChoice(8, 1.0))
    assert found[:1] == [0] or reason.startswith(f"{clip}: ")
    assert found == sorted(found)
    assert "\n" not in reason


@pytest.mark.parametrize("ending", [".avi", ".mp4", ".mkv", ".ts"])
@pytest.mark.parametrize("left", [0.02, 0.5, 0.9])
def test_of_a_file_that_is_cut_off_what_is_there_is_shown_or_the_file_is_named(
    tmp_path, ending, left
):
    clip = tmp_path / f"clip{ending}"
    write_clip(clip, "mpeg4" if ending == ".avi" else "libx264", b_frames=0)
    content = clip.read_bytes()
    clip.write_bytes(content[: int(len(content) * left)])
    for choice in (FrameChoice(), FrameChoice(8, 1.0)):
        found, reason = places_or_reason(clip, choice)
        assert found[:1] == [0] or reason.startswith(f"{clip}: ")
        assert found == sorted(found)
        assert max(found, default=0) < 100 * left + 10
        assert "\n" not in reason


def test_a_clip_that_was_filmed_on_its_side_is_shown_upright(tmp_path):
    clip = tmp_path / "clip.mp4"
    write_clip(clip, "libx264", b_frames=0)
    lying = read_frames(clip, 2)[1]
    assert number_shown(lying) == 50  # bars, which look another way when they are turned
    content = bytearray(clip.read_bytes())
    at = content.index(b"tkhd") + 44
    one = 1 << 16
    # "Turn by a quarter with the clock", as phones write it into the track's header.
    struct.pack_into(">9i", content, at, 0, one, 0, -one, 0, 0, lying.height * one, 0, 1 << 30)
    clip.write_bytes(content)
    path = choose_frames(clip, FrameChoice(2))[1]
    assert image_size(path) == (lying.height, lying.width)
    assert open_image(path).tobytes() == lying.rotate(-90, expand=True).tobytes()


def test_frames_of_a_clip_whose_size_changes_are_shown_in_that_of_the_first(tmp_path):
    # As calls are recorded, whose frames grow and shrink with the line.
    clip = tmp_path / "call.ts"
    content = b""
    for width, shade in ((128, 0), (64, 255)):
        with av.open(str(clip), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = width, 64, "yuv420p"
            pixels = np.full((64, width, 3), shade, np.uint8)
            for _ in range(10):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
        content += clip.read_bytes()
    clip.write_bytes(content)
    shown = choose_frames(clip, FrameChoice(4))
    frames = [open_image(path) for path in shown]
    assert (
        [frame.size for frame in frames] == [image_size(path) for path in shown] == [(128, 64)] * 4
    )
    assert [np.asarray(frame).mean() > 128 for frame in frames] == [False, False, True, True]


def test_the_frames_of_a_clip_are_decoded_once(tmp_path, monkeypatch):
    clip = tmp_path / "clip.avi"
    write_clip(clip, "mpeg4", b_frames=0)
    decoded = []
    usual = clips.decode_frames
    monkeypatch.setattr(
        clips, "decode_frames", lambda *given: decoded.append(given[1]) or usual(*given)
    )
    first = [open_image(path).tobytes() for path in choose_frames(clip, FrameChoice())]
    assert decoded == [clip]
    write_clip(clip, "mpeg4", STEADY[:50], b_frames=0)  # another in its place
    assert [open_image(path).tobytes() for path in choose_frames(clip, FrameChoice())] != first
    assert len(decoded) == 2


def test_what_is_done_to_a_frame_does_not_reach_those_that_are_opened_later(tmp_path):
    clip = tmp_path / "clip.avi"
    write_clip(clip, "mpeg4", b_frames=0)
    path = choose_frames(clip, FrameChoice())[3]
    open_image(path).paste("red", (0, 0, 128, 64))
    assert number_shown(open_image(path)) == 37


def test_a_file_whose_name_ends_like_a_frames_is_a_file(tmp_path):
    assert parse_frame("page#3.png") is None
    assert parse_frame("page#3of8.png") is None
    assert parse_frame("a#b/clip.avi#3of8@0.5").per_second == 0.5


@pytest.fixture
def processor(tmp_path):
    made = make_model(tmp_path / "model").processor
    read_as(made, DataSettings(frames=3, num_crops=4))
    return made


def test_a_turn_shows_its_images_and_then_the_frames_of_its_clips(tmp_path, processor):
    (tmp_path / "images").mkdir()
    for name in ("a.avi", "b.avi"):
        write_clip(tmp_path / "images" / name, "mpeg4", b_frames=0)
    read_frames(tmp_path / "images" / "a.avi", 1)[0].save(tmp_path / "images" / "page.png")
    line = [turn("What moves?", "All.", ["page.png"], videos=["a.avi", "b.avi"])]
    data = write_data(tmp_path / "data.jsonl", [line, line])
    _, dataset = read_dataset(data, processor)
    names = [fact.path.name for fact in dataset.images]
    assert names == ["page.png", *(f"{clip}.avi#{k}of3" for clip in "ab" for k in (1, 2, 3))]
    assert dataset.image_numbers(0) == dataset.image_numbers(1) == list(range(7))
    found = check_file(
        data,
        count_tokens=partial(count_tokens, processor),
        frame_choice=processor.frame_choice,
    )
    assert list(found) == []
    assert found.summary.tokens == int(dataset.sizes.tokens.sum())


def test_a_clip_that_is_missing_or_broken_is_named_by_its_line(tmp_path, processor):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "broken.avi").write_bytes(b"RIFF\0\0\0\0AVI LIST")
    for name, said in (("gone.avi", "image gone.avi is not in"), ("broken.avi", "broken clip")):
        data = write_data(tmp_path / "data.jsonl", [[turn("?", "!", videos=[name])]])
        (problem,) = check_file(data)
        assert said in problem.message
        with pytest.raises(DataError, match=said):
            read_dataset(data, processor)


def test_image_tags_beside_clips_are_found(tmp_path):
    (tmp_path / "images").mkdir()
    write_clip(tmp_path / "images" / "a.avi", "mpeg4", b_frames=0)
    line = [turn("<|image_1|> moves?", "Yes.", videos=["a.avi"])]
    (problem,) = check_file(write_data(tmp_path / "data.jsonl", [line]))
    assert "image tags beside clips" in problem.message


def test_ucf101_has_the_same_examples_from_clips_as_from_frames(tmp_path, processor):
    for name, split in (("Archery", "train"), ("Bowling", "val")):
        (tmp_path / "source" / split / name).mkdir(parents=True)
        for number in range(2):
            clip = tmp_path / "source" / split / name / f"v_{name}_g01_c0{number}.avi"
            write_clip(clip, "mpeg4", STEADY[: 30 + number], b_frames=0)
    seen = []
    for out, options in (
        ("frames", Options(num_frames=3)),
        ("clips", Options(num_frames=3, keep_clips=True)),
    ):
        made = convert("ucf101", tmp_path / "source", tmp_path / out, options=options)
        assert made.left_out == {}
        for file in made.files:
            assert list(check_file(file)) == []
            _, dataset = read_dataset(file, processor)
            encoded = dataset.examples[0]
            examples = [(one.id, one.source, one.turns[0].user) for one in read_examples(file)]
            seen.append((out, examples, encoded.entries.tolist(), dataset.sizes.tokens.tolist()))
    half = len(seen) // 2
    assert [one[1:] for one in seen[:half]] == [one[1:] for one in seen[half:]] != []
    folder = ImageFolder(tmp_path / "clips" / "ucf101_train.jsonl")
    first = next(iter(read_examples(tmp_path / "clips" / "ucf101_train.jsonl"))).turns[0]
    assert first.images == ()
    frames = choose_frames(folder.find(first.videos[0]), processor.frame_choice)
    assert [number_shown(open_image(path)) for path in frames] == [0, 10, 20]
