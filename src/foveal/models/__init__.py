"""The families of models: a new one is one line here and one folder beside it."""

FAMILIES = {
    "phi3_v": "foveal.models.phi3_vision.family",
}
"""`model_type` of a model's config.json -> module that holds its `FAMILY`."""
