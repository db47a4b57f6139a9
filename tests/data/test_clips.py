"""What reading a clip promises in every container: the frames that it shows, by their places."""

import pytest
from numbered_clips import SLOWING, number_shown, write_clip

from foveal.data.clips import read_frames
from foveal.data.convert import Options, convert


@pytest.mark.parametrize(
    ("ending", "codec", "b_frames"),
    [
        # decord2 3.4.0 gives frames 0, 2, 3, 15, 28 ... of these two (IndexKeyframes in its
        # video_reader.cc goes by presentation times, which AVI does not have),
        (".avi", "mpeg4", 2),
        (".mov", "mpeg4", 2),
        # and of these two, even in order, none before their second key frame.
        (".ts", "libx264", 2),
        (".mpg", "mpeg2video", 2),
        # Their headers hold no number of frames: transformers 5.23.0, read_video_pyav, refuses.
        (".webm", "libvpx-vp9", None),
        (".mkv", "libx264", None),
        (".flv", "libx264", 2),
        (".mp4", "libx264", None),
        (".gif", "gif", None),
    ],
)
def test_a_clip_gives_the_frames_that_its_places_name(tmp_path, ending, codec, b_frames):
    clip = tmp_path / f"clip{ending}"
    write_clip(clip, codec, b_frames=b_frames)
    assert [number_shown(frame) for frame in read_frames(clip)] == [0, 12, 25, 37, 50, 62, 75, 87]


@pytest.mark.parametrize("ending", [".mkv", ".mp4"])
def test_a_clip_whose_rate_varies_gives_all_the_frames_that_were_asked_for(tmp_path, ending):
    # Through OpenCV, transformers 5.23.0 (read_video_opencv) gives one frame of the first: it takes
    # duration times nominal rate, 1276, for the number of its 100 frames.
    clip = tmp_path / f"clip{ending}"
    write_clip(clip, "libx264", SLOWING)
    assert [number_shown(frame) for frame in read_frames(clip)] == [0, 12, 25, 37, 50, 62, 75, 87]


def test_clips_in_every_container_that_can_be_opened_are_found_in_folders(tmp_path):
    endings = (".ts", ".mts", ".m2ts", ".3gp", ".asf", ".ogv")
    source = tmp_path / "source"
    (source / "wave").mkdir(parents=True)
    for ending in endings:
        codec = {".asf": "msmpeg4", ".ogv": "libvpx"}.get(ending, "libx264")
        write_clip(source / "wave" / f"clip{ending}", codec, b_frames=0)
    options = Options(validation_fraction=0, num_frames=1)
    converted = convert("video-folder", source, tmp_path / "out", options=options)
    assert (converted.counts, converted.left_out) == (
        {"video-folder_train": {"wave": len(endings)}},
        {},
    )
