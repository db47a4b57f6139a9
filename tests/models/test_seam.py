"""Outside of `models/` nobody knows one model from another: all is asked through the seam."""

import ast
from pathlib import Path

import foveal
from foveal.models import FAMILIES, GENERIC

SOURCE = Path(foveal.__file__).parent
MODULES = {
    *(family.partition(":")[0] for family in (*FAMILIES.values(), GENERIC)),
    *("foveal.models.phi3_vision", "foveal.models.hub.hub_reader"),
}
KNOWS_PHI = {"inputs.py", "plan"}
"""Makes the tiny model; plans from Phi's sizes. Nobody else."""


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_nobody_outside_of_models_imports_a_family():
    found = {}
    for path in SOURCE.rglob("*.py"):
        place = path.relative_to(SOURCE)
        if place.parts[0] in {"models", *KNOWS_PHI}:
            continue
        names = [
            name
            for name in imported(path)
            if any(name == module or name.startswith(f"{module}.") for module in MODULES)
        ]
        if names:
            found[str(place)] = names
    assert found == {}


def test_nobody_outside_of_models_asks_for_a_type_by_name():
    # A layout of data is called like one of them.
    quoted = {f'"{model_type}"' for model_type in FAMILIES if model_type != "llava"}
    for path in SOURCE.rglob("*.py"):
        # The demo writes small models of types that it names.
        if path.relative_to(SOURCE).parts[0] not in {"models", "demo"}:
            text = path.read_text(encoding="utf-8")
            assert not [name for name in quoted if name in text], path
