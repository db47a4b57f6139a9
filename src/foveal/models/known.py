"""What is known of types of models by name: how they train, what images cost, how boxes count."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from foveal.data.images.boxes import THOUSANDTHS, BoxFrame

# -- how rows are read -----------------------------------------------------------------------------

SHARED = (
    *("aria", "aya_vision", "cohere2_vision", "cohere_compass", "cosmos3_edge", "cosmos3_omni"),
    *("deepseek_vl", "ernie4_5_vl_moe", "exaone4_5", "gemma3", "gemma4", "glm46v", "glm4v"),
    *("glm4v_moe", "glm_ocr", "glmga", "hyperclovax_vision_v2", "idefics3", "internvl", "janus"),
    *("llava", "llava_next", "llava_next_video", "llava_onevision", "mistral3", "ovis2"),
    *("paddleocr_vl", "phi3_v", "phi4_multimodal", "qianfan_ocr", "qwen2_5_vl", "qwen2_vl"),
    *("qwen3_vl", "qwen3_vl_moe", "smolvlm", "video_llama_3", "vipllava"),
)
"""A row of several questions is what transformers makes of each sample: loss and gradients."""

CACHED = ("lfm2_vl", "lfm3_vl", "qwen3_5", "qwen3_5_moe")
"""The same, by a prefix that is read once and gone on from: decoders that carry a state."""

ALONE = ("paligemma",)
"""Each example by itself, in the model's own way."""

NEEDS_TORCHVISION = ("cohere2_vision", "lfm2_vl", "mistral3", "phi4_multimodal")
"""Of those, whose images transformers reads through torchvision alone."""

ONE_IMAGE = ("llava_onevision",)
"""Of those, which read an image in another way beside others: one image an example."""

REFUSED = {
    "got_ocr2": "its processor takes no list of images",
    "granite4_vision": "its tower gives features in another form",
    "idefics2": "its processor does not say what stands for an image",
    "minicpmv4_6": "its processor needs torchvision",
    "minicpmv4_7": "its processor needs torchvision",
}
"""Refused when it is loaded, and why."""


# -- what an image costs ---------------------------------------------------------------------------

LETTER_PAGE = "letter page, 150 dpi"
IMAGE_COSTS = Path(__file__).with_name("image_costs.json")
"""Tokens, and crops or patches of the tower, of images as each family is published: its processor
counted them (`.ci/write_image_costs`), since only it knows."""


def _read_costs() -> tuple[dict[str, list[int]], dict[str, dict[str, list[list[int]]]]]:
    tree = json.loads(IMAGE_COSTS.read_text(encoding="utf-8"))
    return tree["sizes"], tree["types"]


def letter_page_tokens() -> dict[str, int]:
    """Count the tokens of a page of 1275 x 1650 pixels, by model type."""
    sizes, types = _read_costs()
    place = list(sizes).index(LETTER_PAGE)
    return {kind: one["tokens and crops"][place][0] for kind, one in types.items()}


def cost_table() -> Iterator[str]:
    """Write tokens / crops by type and size, as lines of Markdown."""
    sizes, types = _read_costs()
    heads = [f"{name}<br>{width} x {height}" for name, (width, height) in sizes.items()]
    yield f"| published as | {' | '.join(heads)} |"
    yield "| --- |" + " ---: |" * len(heads)
    for kind, one in types.items():
        cells = [f"{tokens:,} / {crops:,}" for tokens, crops in one["tokens and crops"]]
        yield f"| `{kind}`: {one['of']} | {' | '.join(cells)} |"


# -- numbers of places in an image -----------------------------------------------------------------
# Only where they are published; all others get thousandths, the same at every resolution.

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
