#!/usr/bin/env bash
# ONNX Runtime's quantize_dynamic(per_channel=True) gives a table of embeddings one scale: one long row spoils all the others.
#
# Guessed:  with per_channel=True every weight that is quantized has a scale for each row or column, the table of embeddings too.
# Happens:  of 200 rows one is forty times as long as the rest: looked up (Gather), the others come back a quarter wrong, with
#           per_channel=True to the last bit as without; as the head's weight (MatMul, Gemm) the same numbers are right
#           to two per cent with it.
# Why:      onnxruntime/quantization/operators/gather.py, GatherQuant.quantize quantizes its table as if it were an activation
#           (quantize_activation), which has one scale; matmul.py asks for channels.
# Matters:  models with tied embeddings: what comes out is right and the words that go in are not, and Gather is among what is
#           quantized by default. Name op_types_to_quantize=["MatMul", "Gemm"] to leave the table as it is.
# Versions: onnxruntime 1.32.0, onnx 1.23.2.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=packages.sh
. "$(dirname "$0")/packages.sh" onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6

python - <<'PYTHON'
import logging
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession
from onnxruntime.quantization import quantize_dynamic

logging.disable()
ROWS, WIDTH, LONG = 200, 64, 7
random = np.random.default_rng(0)
table = random.normal(0, 0.02, (ROWS, WIDTH)).astype(np.float32)
table[LONG] *= 40
others = np.delete(np.arange(ROWS), LONG)


def results(kind, weights, entries, element, **options):
    """Give what a graph of one node makes of `entries`, before and after quantizing, and the number of scales."""
    fed, taken = helper.make_tensor_value_info("x", element, None), helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    names = ["table", "x"] if kind == "Gather" else ["x", "table"]
    node = helper.make_node(kind, names, ["y"], **({"transB": 1} if kind == "Gemm" else {}))
    graph = helper.make_graph([node], "one", [fed], [taken], [numpy_helper.from_array(weights, "table")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), "plain.onnx")
    quantize_dynamic("plain.onnx", "eight.onnx", **options)
    scales = sum(numpy_helper.to_array(one).size for one in onnx.load("eight.onnx").graph.initializer if one.name.endswith("_scale"))
    return *(InferenceSession(name).run(None, {"x": entries})[0] for name in ("plain.onnx", "eight.onnx")), scales


hidden = random.normal(0, 1, (50, WIDTH)).astype(np.float32)
cases = {
    "Gather": (table, others, TensorProto.INT64),
    "MatMul": (np.ascontiguousarray(table.T), hidden, TensorProto.FLOAT),
    "Gemm": (table, hidden, TensorProto.FLOAT),
}
seen = {}
for kind, (weights, entries, element) in cases.items():
    for per_channel in (False, True):
        plain, eight, scales = results(kind, weights, entries, element, per_channel=per_channel)
        if kind != "Gather":
            plain, eight = plain[:, others], eight[:, others]
        wrong = float(np.linalg.norm(eight - plain) / np.linalg.norm(plain))
        seen[kind, per_channel] = wrong, scales
        print(f"{kind}, per_channel={per_channel}: {scales} scales, the other rows are {wrong:.1%} wrong")
sys.exit(
    seen["Gather", True] != seen["Gather", False]
    or not 0.1 < seen["Gather", True][0] < 0.5
    or seen["Gather", True][1] != 1
    or any(seen[kind, True][0] > 0.03 or seen[kind, True][1] != ROWS for kind in ("MatMul", "Gemm"))
)
PYTHON
