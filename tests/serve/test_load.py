"""What the endpoint promises under load, on a small one of `benchmarks/serve_load.py`."""

import importlib.util
from pathlib import Path


def load_script():
    path = Path(__file__).parents[2] / "benchmarks" / "serve_load.py"
    spec = importlib.util.spec_from_file_location("serve_load", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_request_of_many_clients_is_answered_and_memory_stands_still(tiny_folder):
    load = load_script().run(
        str(tiny_folder), requests=48, clients=8, pages=3, tokens=4, alone=8, side=40
    )
    assert load.errors == []
    assert load.is_well
    assert load.together_per_second > 0
    assert load.slowest_seconds >= load.median_seconds > 0
