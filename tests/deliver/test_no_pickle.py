"""Nothing that runs code when it is opened is written or read anywhere in the house."""

import ast
import re
from pathlib import Path

import pytest

import foveal

SOURCE = Path(foveal.__file__).parent
UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {("torch", "load"), ("torch", "save"), ("yaml", "load"), ("yaml", "unsafe_load")}
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npz"}


def unsafe_places(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [one.name for one in node.names if one.name.split(".")[0] in UNSAFE_MODULES]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            named = {(module, one.name) for one in node.names}
            found += [module] * (module.split(".")[0] in UNSAFE_MODULES)
            found += [".".join(one) for one in named & UNSAFE_CALLS]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found += [".".join(one) for one in {(node.value.id, node.attr)} & UNSAFE_CALLS]
        elif isinstance(node, ast.keyword) and node.arg in ("weights_only", "allow_pickle"):
            safe = node.arg == "weights_only"
            if getattr(node.value, "value", None) is not safe:
                found.append(node.arg)
    return found


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\nx = torch.load('f')",
        "from torch import save",
        "f(weights_only=False)",
        "np.load(f, allow_pickle=True)",
    ],
)
def test_the_search_finds_what_it_is_for(line):
    assert unsafe_places(ast.parse(line))


def test_no_source_file_reads_or_writes_a_pickle():
    files = list(SOURCE.rglob("*.py"))
    assert len(files) > 60
    found = {
        str(path.relative_to(SOURCE)): places
        for path in files
        if (places := unsafe_places(ast.parse(path.read_text(encoding="utf-8"))))
    }
    assert found == {}


def test_checkpoints_and_final_models_hold_no_pickle(full_run, lora_run):
    for run in (full_run, lora_run):
        files = [path for path in run.rglob("*") if path.is_file()]
        assert any(path.suffix == ".safetensors" for path in files)
        assert not [path.name for path in files if path.suffix in PICKLES]
        for path in files:  # whatever its name
            start = path.read_bytes()[:4]
            assert not re.match(rb"\x80[\x02-\x05]|PK\x03\x04", start), path.name
