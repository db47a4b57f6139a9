"""The families of models: a new one is one line here and one file beside it."""

FAMILIES = {
    "phi3_v": "foveal.models.phi3_vision.seam",
    "gemma3": "foveal.models.gemma",
    "gemma4": "foveal.models.gemma",
    "glm4v": "foveal.models.hub",
    "idefics3": "foveal.models.hub",
    "internvl": "foveal.models.hub",
    "llava": "foveal.models.hub",
    "llava_next": "foveal.models.hub",
    "paligemma": "foveal.models.paligemma",
    "phi4_multimodal": "foveal.models.phi4_multimodal",
    "qwen2_5_vl": "foveal.models.hub",
    "qwen3_vl": "foveal.models.hub",
    "smolvlm": "foveal.models.hub",
}
"""`model_type` of a model's config.json -> module whose `derive_family` makes its family; of these,
a test holds that they are read exactly."""

GENERIC = "foveal.models.hub"
"""Module that makes a family for every other type that transformers has."""
