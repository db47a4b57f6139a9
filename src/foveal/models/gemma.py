"""Gemma 3 and Gemma 4: windows, and images whose tokens see each other."""

from typing import Any

from foveal.models.hub.hub_family import HubFamily
from foveal.models.row_view import ImageSight


class GemmaFamily(HubFamily):
    """Reads an image both ways: in all layers (3), or in those that have a window (4)."""

    def image_sight(self, model: Any) -> ImageSight:
        """Say what the tokens of an image see of it.

        Source: `create_masks_for_vision_model` and its callers in transformers 5.23.
        """
        text = model.config.get_text_config()
        if model.config.model_type == "gemma3":
            return "mutual"
        two_ways = getattr(text, "use_bidirectional_attention", None) == "vision"
        return "mutual_in_windows" if two_ways else "causal"
