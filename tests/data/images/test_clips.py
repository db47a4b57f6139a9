"""What reading a clip promises in every container: the frames that it shows, by their places."""

import pytest
from numbered_clips import CONTAINERS, SLOWING, number_shown, write_clip

from foveal.data.convert import Options, convert
from foveal.data.images.clips import read_frames


@pytest.mark.parametrize(
    ("ending", "codec", "b_frames"),
    CONTAINERS,
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
