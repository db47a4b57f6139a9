"""A model's type -> the numbers in which it was taught to speak of places in an image.

Only where it is published; all others get thousandths, which are the same at every resolution.
"""

from collections.abc import Sequence
from dataclasses import replace

from foveal.data.images.boxes import THOUSANDTHS, BoxFrame

RESIZED_PIXELS = ("qwen2_5_vl",)
"""Pixels of the image as its processor resizes it. Source: QwenLM/Qwen3-VL, issues 866 and 931, and
`spatial_understanding.ipynb` of Qwen2.5-VL; Qwen2-VL and Qwen3-VL count thousandths (issue 1741),
GLM-V and InternVL too."""

TOP_FIRST = ("gemma3", "gemma4")
"""Thousandths, top and bottom before left and right, as Gemini's `box_2d`; that Gemma 3 was taught
so is likely, and not confirmed (google/gemma-3-4b-it, discussion 38)."""


def describe_frame(model_type: str) -> str:
    """Say in words which numbers a tuned model of some type speaks in."""
    if model_type == "phi3_v":
        return (
            "pixels of the page that a picture is enlarged to before it is cut into crops, white "
            "borders too"
        )
    if model_type in RESIZED_PIXELS:
        return "pixels of the picture as its image processor resizes it"
    first = ", top and bottom before left and right" if model_type in TOP_FIRST else ""
    return f"thousandths of the picture's width and height{first}"


def box_frame_of(model_type: str, grid: Sequence[int], patch_size: int | None) -> BoxFrame:
    """Find the numbers of an image.

    Args:
        model_type: of the model's configuration.
        grid: patches of the image, (time, rows, columns), where the model counts them.
        patch_size: side of a patch, pixels.
    """
    if model_type in RESIZED_PIXELS and patch_size:
        _, rows, columns = grid
        return BoxFrame((columns * patch_size, rows * patch_size))
    return replace(THOUSANDTHS, y_first=model_type in TOP_FIRST)
