"""Model types of transformers -> how well they train here, as the tests found on tiny models."""

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
