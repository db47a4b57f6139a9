"""The families of models: a new one is one line here and one file beside it."""

FAMILIES = {
    "phi3_v": "foveal.models.phi3_vision.seam:Phi3VisionFamily",
    "gemma3": "foveal.models.gemma:GemmaFamily",
    "gemma4": "foveal.models.gemma:GemmaFamily",
    "glm4v": "foveal.models.hub.hub_family:HubFamily",
    "idefics3": "foveal.models.hub.hub_family:HubFamily",
    "internvl": "foveal.models.hub.hub_family:HubFamily",
    "llava": "foveal.models.hub.hub_family:HubFamily",
    "llava_next": "foveal.models.hub.hub_family:HubFamily",
    "paligemma": "foveal.models.paligemma:PaliGemmaFamily",
    "phi4_multimodal": "foveal.models.phi4_multimodal:Phi4MultimodalFamily",
    "qwen2_5_vl": "foveal.models.hub.hub_family:HubFamily",
    "qwen3_vl": "foveal.models.hub.hub_family:HubFamily",
    "smolvlm": "foveal.models.hub.hub_family:HubFamily",
}
"""`model_type` of a model's config.json -> its family; of these, a test holds that they are read
exactly."""

GENERIC = "foveal.models.hub.hub_family:HubFamily"
"""Family of every other type that transformers has."""
