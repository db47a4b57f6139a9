"""The families of models: a new one is one line here and one file beside it."""

FAMILIES = {
    "phi3_v": "foveal.models.phi3_vision.family",
    "gemma3": "foveal.models.gemma",
    "gemma4": "foveal.models.gemma",
}
"""`model_type` of a model's config.json -> module whose `derive_family` makes its family."""

GENERIC = "foveal.models.hub"
"""Module that makes a family for every other type that transformers has."""
