"""The run and the page that several tests read."""

import pytest
from html_page import read_page
from run_folders import make_whole_run

from foveal.report.report import write_report


@pytest.fixture
def whole(tmp_path):
    return make_whole_run(tmp_path)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of a whole run, for those who only read it."""
    return read_page(write_report(make_whole_run(tmp_path_factory.mktemp("whole"))))
