"""What most runs of these tests begin from."""

import pytest
from tiny import pages, write_model


@pytest.fixture
def place(tmp_path):
    """A tiny model, four pages with three questions each, and two others to be asked about."""
    write_model(tmp_path / "model")
    pages(tmp_path, 4, 3, "train")
    pages(tmp_path, 2, 2, "validation")
    return tmp_path
