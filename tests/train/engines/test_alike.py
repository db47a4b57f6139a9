"""An error of one process of several is known alike in all of them."""

import os
import sys
from pathlib import Path

import pytest
from forked import fork_group
from launched import free_port, make_place
from rich.console import Console

from foveal.config import load_recipe
from foveal.data import loader
from foveal.errors import StoreError, UserError
from foveal.run import TrainingRun
from foveal.train.checkpoint import checkpoints
from foveal.train.engines import make_engine


def say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def fail_in_the_second() -> None:
    engine = make_engine("ddp", "float32")

    def work() -> str:
        if not engine.is_main:
            raise StoreError("no answer", may_pass=True)
        return "done"

    try:
        engine.alike(work)
    except StoreError as error:
        say(f"{error}, which may pass: {error.may_pass}")
    say(f"{engine.by_main(lambda: 'made')} with {engine.add_up([1.0])}")


def test_all_hear_of_an_error_of_one_and_can_go_on(tmp_path):
    group = fork_group(2, free_port(), tmp_path, fail_in_the_second)
    heard = "no answer, which may pass: True\n"
    ends = [(0, f"{heard}{made} with [2.0]\n") for made in ("made", None)]
    assert [one.ended() for one in group] == ends


def run_until_lost(recipe: str, rows: int) -> None:
    """Run a recipe, of which the second process reaches the images of so many rows."""
    build, seen = loader.build_batch, []

    def build_batch(row, *rest):
        seen.append(row)
        if os.environ["RANK"] == "1" and len(seen) > rows:
            raise StoreError("no answer")
        return build(row, *rest)

    loader.build_batch = build_batch
    try:
        TrainingRun(load_recipe(Path(recipe)), Console(quiet=True)).go()
    except UserError as error:
        say(f"foveal: {error}")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_a_store_that_does_not_answer_one_of_them_costs_no_step(tmp_path, engine):
    place = make_place(tmp_path)
    recipe = place.recipe("run", engine=engine, train__save_every_steps=100)
    group = fork_group(2, free_port(), tmp_path, run_until_lost, str(recipe), 4)
    assert [one.ended() for one in group] == [(0, "foveal: no answer\n")] * 2
    taken = len(place.metrics("run"))
    assert [one.name for one in checkpoints(tmp_path / "run" / "checkpoints")] == [f"step-{taken}"]


@pytest.mark.slow
def test_a_table_that_the_main_process_reads_for_all_is_refused_by_all_in_one_line(tmp_path):
    place, table = make_place(tmp_path), tmp_path / "bad.csv"
    table.write_text("image,question,answer\npage.png,what,\n")
    recipe = place.recipe("run", data__train=str(table))
    group = fork_group(2, free_port(), tmp_path, run_until_lost, str(recipe), 0)
    ours, theirs = (one.ended() for one in group)
    assert ours == theirs
    assert ours[1].startswith(f"foveal: {table}")
    assert ours[1].count("\n") == 1
