"""Weights by name: one shard in memory at a time, safetensors alone, nothing silent."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from foveal.deliver.tensors import find_tensors, in_format, write_shards
from foveal.errors import ModelError


def planned(tensors, dtype=torch.float32):
    return {name: tensor.to("meta", dtype) for name, tensor in tensors.items()}


@pytest.fixture
def tensors():
    torch.manual_seed(0)
    return {f"layers.{number}.weight": torch.randn(10, 10) for number in range(5)}


def test_shards_hold_every_tensor_once_and_the_index_finds_them(tmp_path, tensors):
    files = write_shards(tmp_path, planned(tensors), tensors.items(), 900)
    assert [file.name for file in files] == [
        f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)
    ]
    assert all(file.stat().st_size < 900 + 500 for file in files)  # tensors and a header
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 5 * 10 * 10 * 4
    found = find_tensors(tmp_path)
    assert found.keys() == tensors.keys() == index["weight_map"].keys()
    for name, tensor in tensors.items():
        assert found[name].shape == (10, 10)
        assert found[name].read().equal(tensor)


def test_a_small_model_is_one_file_in_the_number_format_asked_for(tmp_path, tensors):
    rounded = {name: in_format(one, torch.bfloat16, name) for name, one in tensors.items()}
    write_shards(tmp_path, planned(tensors, torch.bfloat16), rounded.items(), 10**6)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        assert tensor.equal(tensors[name].bfloat16())


@pytest.mark.slow
def test_memory_holds_one_shard_at_a_time(tmp_path):
    # 20 tensors of 4 MB in shards of 8 MB: 80 MB pass through, twice; two tensors are held.
    probe = f"""
import pathlib, torch
from itertools import chain
from foveal.plan.this_machine import resident_bytes
from foveal.deliver.tensors import find_tensors, write_shards
folder = pathlib.Path({str(tmp_path)!r})
planned = {{f"weight.{{n}}": torch.empty(1024, 1024, device="meta") for n in range(20)}}
made = ((name, torch.full((1024, 1024), float(name.split(".")[1]))) for name in planned)
size = 8 * 2**20
(folder / "warm").mkdir()
write_shards(folder / "warm", {{"weight.0": planned["weight.0"]}}, [next(made)], size)
find_tensors(folder / "warm")["weight.0"].read() + 1
before = resident_bytes("VmHWM")
(folder / "first").mkdir()
write_shards(folder / "first", planned, chain([("weight.0", torch.zeros(1024, 1024))], made), size)
stored = find_tensors(folder / "first")
(folder / "second").mkdir()
write_shards(folder / "second", planned, ((n, one.read() + 1) for n, one in stored.items()), size)
print(resident_bytes("VmHWM") - before)
"""
    # Freed tensors go back to the kernel: in the heap they leave holes, more or fewer by chance.
    alone = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True, env=alone
    )
    assert int(done.stdout) < 12 * 2**20
    last = find_tensors(tmp_path / "second")["weight.19"].read()
    assert (last == 20).all()


def test_a_number_that_the_format_cannot_hold_is_an_error():
    with pytest.raises(ModelError, match=r"a.weight is not finite in torch.float16; --dtype bf16"):
        in_format(torch.tensor([1e5]), torch.float16, "a.weight")
    with pytest.raises(ModelError, match=r"not finite in torch.bfloat16; in the run too"):
        in_format(torch.tensor([torch.nan]), torch.bfloat16, "a.weight")


def test_pickled_weights_are_never_opened(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"would run")
    with pytest.raises(ModelError, match=r"pytorch_model.bin may run code and is never opened"):
        find_tensors(tmp_path)


def test_a_missing_shard_and_a_broken_file_are_named(tmp_path, tensors):
    write_shards(tmp_path, planned(tensors), tensors.items(), 900)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ModelError, match="model-00002-of-00003"):
        find_tensors(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(ModelError, match="no index of weights"):
        find_tensors(tmp_path)


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"weight_map": 3}'])
def test_a_broken_index_is_named(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError, match=r"index\.json: no index of weights .*; fetch it again"):
        find_tensors(tmp_path)
