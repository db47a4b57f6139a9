"""Imported first, lets torchvision's wheel from PyPI load beside a torch built without CUDA.

The wheel's kernels need CUDA's libraries, and without them its import stops at their names. The
scripts here use its Python alone, so naming them is enough.
"""

import torch

_names = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _names.define(f"{_name}(Tensor boxes, Tensor scores, float overlap) -> Tensor")
for _name in ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d"):
    _names.define(f"{_name}(Tensor pixels) -> Tensor")
    _names.define(f"_{_name}_backward(Tensor gradient) -> Tensor")
