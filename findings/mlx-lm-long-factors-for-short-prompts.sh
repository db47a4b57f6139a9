#!/usr/bin/env bash
# mlx-lm turns the positions of short prompts by LongRoPE's long factors.
#
# Guessed:  as in the published code, prompts up to original_max_position_embeddings use short_factor.
# Happens:  short_factor changes nothing: two layers whose short factors differ give the same, for 8 positions of an
#           original length of 4096. mlx-vlm has a class of the same name that does choose by length.
# Why:      mlx_lm/models/rope_utils.py, SuScaledRoPE: takes short_factor and short_mscale and reads neither.
# Matters:  Phi-3 and Phi-3.5 answer ordinary prompts with the frequencies that were trained for long ones; weights
#           that were tuned elsewhere score lower there, for no visible reason.
# Versions: mlx-lm 0.32.2, mlx-vlm 0.7.10, mlx 0.32.4 (CPU).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" mlx-lm==0.32.2 'mlx[cpu]==0.32.4' mlx-vlm==0.7.10

python - <<'PYTHON'
import importlib.util
import sys

import mlx.core as mx

SIZE, ORIGINAL = 8, 4096


def module(package):
    """Load the one file, without the rest of the package."""
    root = importlib.util.find_spec(package).submodule_search_locations[0]
    spec = importlib.util.spec_from_file_location(package + "_rope", f"{root}/models/rope_utils.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def change(rope, length, **differing):
    """Largest change of the turned vectors when one of the factors is another."""
    (name, values), = differing.items()
    vectors = mx.random.normal((1, 1, length, SIZE), key=mx.random.key(0))
    factors = {"short_factor": [1.0] * 4, "long_factor": [1.0] * 4}
    turned = [
        rope.SuScaledRoPE(SIZE, original_max_position_embeddings=ORIGINAL, **factors | {name: each})(vectors)
        for each in ([1.0] * 4, values)
    ]
    return mx.abs(turned[0] - turned[1]).max().item()


OTHER = [2.0, 3.0, 4.0, 5.0]
seen = {}
for package in ("mlx_lm", "mlx_vlm"):
    rope = module(package)
    seen[package] = [change(rope, 8, short_factor=OTHER) > 0.01, change(rope, 8, long_factor=OTHER) > 0.01]
    print(f"{package}, 8 positions of {ORIGINAL}: short factors matter {seen[package][0]}, long ones {seen[package][1]}")
sys.exit(seen != {"mlx_lm": [False, True], "mlx_vlm": [True, False]})
PYTHON
