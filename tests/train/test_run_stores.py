"""A run whose images are in an object store ends as one whose images are on the disk."""

import pyarrow as pa
import pytest
from daily import daily
from loopback_store import BUCKET, loopback_store
from pyarrow import parquet
from rich.console import Console
from small_runs import losses, recipe, run, run_until, same_bits, weights
from tiny import pages, write_model

from foveal.data.images import objects
from foveal.run import TrainingRun


@pytest.mark.parametrize("workers", daily(1, beside=[0]))
def test_a_killed_run_goes_on_without_the_network_to_the_same_bits(tmp_path, monkeypatch, workers):
    write_model(tmp_path / "model")
    data = {"train": str(pages(tmp_path, 4, 3, "train")), "workers": workers, "num_crops": 4}
    run(recipe(tmp_path, "here", data=data))
    monkeypatch.setattr(objects, "PAUSE_SECONDS", 0.001)
    data |= {"images": f"s3://{BUCKET}/pages", "object_cache": str(tmp_path / "objects")}
    with loopback_store(monkeypatch) as store:
        store.put_folder("pages", tmp_path / "images")
        for image in (tmp_path / "images").iterdir():
            image.unlink()
        killed = TrainingRun(recipe(tmp_path, "there", data=data), Console(quiet=True))
        run_until(killed, 2)  # the third step ends the first pass: each page was opened
        store.cut_off(monkeypatch)
        run(recipe(tmp_path, "there", data=data))
    assert losses(tmp_path / "here") == losses(tmp_path / "there")
    assert same_bits(weights(tmp_path / "here"), weights(tmp_path / "there"))


@pytest.mark.parametrize("compression", daily("snappy", beside=["none"]))
def test_a_run_whose_images_are_in_rows_of_parquet_ends_with_the_same_bits(tmp_path, compression):
    write_model(tmp_path / "model")
    data = {"train": str(pages(tmp_path, 4, 3, "train")), "workers": 1, "num_crops": 4}
    run(recipe(tmp_path, "here", data=data))
    files = sorted((tmp_path / "images").iterdir())
    held = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    rows = tmp_path / "rows.parquet"
    parquet.write_table(pa.table({"image": held}), rows, row_group_size=3, compression=compression)
    for file in files:
        file.unlink()
    run(recipe(tmp_path, "there", data=data | {"images": str(rows)}))
    assert losses(tmp_path / "here") == losses(tmp_path / "there")
    assert same_bits(weights(tmp_path / "here"), weights(tmp_path / "there"))
