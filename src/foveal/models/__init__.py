"""The families of models: a new one is one line here and one file beside it."""

FAMILIES = {
    "phi3_v": "foveal.models.phi3_vision.seam",
    "gemma3": "foveal.models.gemma",
    "gemma4": "foveal.models.gemma",
    "glm4v": "foveal.models.hub.hub_family",
    "idefics3": "foveal.models.hub.hub_family",
    "internvl": "foveal.models.hub.hub_family",
    "llava": "foveal.models.hub.hub_family",
    "llava_next": "foveal.models.hub.hub_family",
    "paligemma": "foveal.models.paligemma",
    "phi4_multimodal": "foveal.models.phi4_multimodal",
    "qwen2_5_vl": "foveal.models.hub.hub_family",
    "qwen3_vl": "foveal.models.hub.hub_family",
    "smolvlm": "foveal.models.hub.hub_family",
}
"""`model_type` of a model's config.json -> module whose `derive_family` makes its family; of these,
a test holds that they are read exactly."""

GENERIC = "foveal.models.hub.hub_family"
"""Module that makes a family for every other type that transformers has."""
