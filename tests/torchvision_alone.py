"""Imported first, lets torchvision's wheel from PyPI load beside a torch built without CUDA.

The wheel's kernels need CUDA's libraries, and without them its import stops at their names.
transformers' image processors use its Python alone, so naming them is enough.
"""

import torch


def _declare() -> None:
    global _names  # what is declared lives as long as this
    _names = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        _names.define(f"{name}(Tensor boxes, Tensor scores, float overlap) -> Tensor")
    for name in ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d"):
        _names.define(f"{name}(Tensor pixels) -> Tensor")
        _names.define(f"_{name}_backward(Tensor gradient) -> Tensor")


try:
    import torchvision
except RuntimeError:  # operator torchvision::nms does not exist
    import sys

    for found in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[found]
    _declare()
    import torchvision  # noqa: F401
