"""Sources that several tests convert."""

from pathlib import Path

import pytest
from layouts import put_clip, put_image, put_lines


@pytest.fixture
def nlvr(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    folder = source / "nlvr" / "dev"
    rows = [
        {"sentence": "A tower. ", "label": "true", "identifier": "12-0", "directory": "3"},
        {"sentence": "No tower.", "label": "false", "identifier": "12-1"},
        {"sentence": "Lost.", "label": "true", "identifier": "99-0", "directory": "3"},
    ]
    put_lines(folder / "dev.json", *rows)
    for shade, name in enumerate(["3/dev-12-0-0", "3/dev-12-0-5", "4/dev-12-1-2"]):
        put_image(folder / "images" / f"{name}.png", shade)
    pairs = [
        {
            "sentence": "The left image is red.",
            "left_image": "nlvr/dev/images/4/dev-12-1-2.png",
            "right_image": "nlvr/dev/images/3/dev-12-0-0.png",
            "label": "False",
            "identifier": "train-0-0-0",
        },
        {
            "sentence": "Lost.",
            "left_image": "nlvr/dev/images/4/dev-7-7-7.png",
            "right_image": "nlvr/dev/images/3/dev-12-0-0.png",
            "label": "True",
            "identifier": "train-1-0-0",
        },
    ]
    put_lines(source / "nlvr_pairs" / "train.json", *pairs)
    return source


@pytest.fixture
def ucf101(tmp_path: Path) -> Path:
    """Archery: groups 1 (test), 8, 9, 10 (train); Biking: one clip; one clip in no list."""
    source = tmp_path / "source"
    lists = source / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    (lists / "classInd.txt").write_text("1 Archery\n2 Biking\n3 Rowing\n")
    train = [f"Archery/v_Archery_g{group}_c01.avi 1" for group in ("08", "09", "10")]
    train += ["Archery/v_Archery_g08_c02.avi 1", "Rowing/v_Rowing_g09_c01.avi 3"]
    (lists / "trainlist01.txt").write_text("\r\n".join(train) + "\r\n")
    (lists / "testlist01.txt").write_text(
        "Archery/v_Archery_g01_c01.avi\nBiking/v_Biking_g01_c01.avi\n"
    )
    clips = source / "UCF-101"
    for name in ("g08_c01", "g08_c02", "g09_c01", "g10_c01", "g01_c01", "g25_c07"):
        put_clip(clips / "Archery" / f"v_Archery_{name}.avi")
    put_clip(clips / "Biking" / "v_Biking_g01_c01.avi", num_frames=3)
    return source
