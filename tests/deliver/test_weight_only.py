"""A tuned model in fewer bits, in the layout that vLLM reads: what is written is what is proven."""

import json

import pytest
import torch
from safetensors.torch import load_file

from foveal.deliver.export import export_run

pytest.importorskip("compressed_tensors")


@pytest.mark.parametrize("kind", ["int8", "fp8", "int4"])
def test_a_run_in_fewer_bits_is_the_run_rounded_to_them(lora_run, tmp_path, kind):
    said = []
    done = export_run(lora_run, tmp_path / "out", quantize=kind, tell=said.append)
    print(said, done.lines())
    assert done.proof is not None
    print(json.loads((done.folder / "config.json").read_text())["quantization_config"])
    print({n:(t.dtype,tuple(t.shape)) for n,t in load_file(done.folder/"model.safetensors").items() if "layers.0" in n or "head" in n})
    assert done.proof.problems() == []
    assert done.folder == tmp_path / "out"
