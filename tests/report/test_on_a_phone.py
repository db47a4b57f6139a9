"""The page of a run can be read on a phone, in a real browser."""

from browsers import PHONE, chromium
from run_folders import make_examples, make_run

from foveal.report.report import write_report


def test_a_long_name_of_a_setting_leaves_its_values_room(tmp_path):
    below = {"train.evaluate_every_steps": None, "evaluate.metrics": ["accuracy", "anls"]}
    run = make_run(
        tmp_path / "run",
        make_examples(tmp_path / "data"),
        base={"file": "demo.yaml", "otherwise": below},
        train={"evaluate_every_steps": 100},
        evaluate={"metrics": ["accuracy", "token_f1"]},
    )
    with chromium() as browser:
        page = browser.new_page(viewport=PHONE)
        page.goto(write_report(run).as_uri())
        table = page.get_by_role("table").filter(has_text="demo.yaml").first
        named, former, now = (one.bounding_box() for one in table.locator("thead th").all())
        assert min(former["width"], now["width"]) > named["width"] / 2
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
