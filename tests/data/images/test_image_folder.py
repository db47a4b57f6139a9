"""A path that leads to no image is answered with what to do about it."""

from unicodedata import normalize

import pytest
from tiny import make_image

from foveal.data.images.image_folder import ImageFolder
from foveal.errors import DataError


@pytest.fixture
def folder(tmp_path):
    make_image(tmp_path / "images" / "page.png", 0)
    make_image(tmp_path / "images" / "sub" / "Blätter 1.png", 1)
    make_image(tmp_path / "secret.png", 2)
    (tmp_path / "images" / "gone.png").symlink_to("gone.png")
    return ImageFolder(tmp_path / "data.jsonl", tmp_path / "images")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("page.PNG", "did you mean page.png?"),
        ("Page.png", "did you mean page.png?"),
        ("page.png ", "did you mean page.png?"),
        ("sub\\Blätter 1.png", "did you mean sub/Blätter 1.png?"),
        (normalize("NFD", "sub/Blätter 1.png"), "did you mean sub/Blätter 1.png?"),
        ("sub/Bl%C3%A4tter%201.png", "did you mean sub/Blätter 1.png?"),
        ("C:\\scans\\page.png", "did you mean page.png?"),
        ("~/page.png", "did you mean page.png?"),
        ("sub/page.png", "did you mean page.png?"),
        ("sub", "it is a folder; name an image in it"),
        ("gone.png", "it is a link that leads nowhere; bring back what it leads to"),
        ("", "leave the empty path out"),
        ("data:image/png;base64," + "A" * 5000, "the image itself; write that into a file"),
        ("other.png", "correct it, or name the folder that it starts from: --images"),
        ("nowhere/other.png", "correct it, or name the folder"),
    ],
)
def test_the_path_that_was_meant_is_named_or_what_else_to_do(folder, path, said):
    with pytest.raises(DataError) as refused:
        folder.find(path)
    assert str(refused.value).endswith(said) or said in str(refused.value)
    assert len(str(refused.value)) < 700


def test_what_lies_outside_the_folder_is_never_named(folder):
    with pytest.raises(DataError) as refused:
        folder.find("sub\\..\\..\\secret.png")
    assert "did you mean" not in str(refused.value)
