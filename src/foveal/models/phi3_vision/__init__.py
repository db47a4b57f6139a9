"""Phi-3-vision and Phi-3.5-vision, native on transformers: published weights in and out.

Names are imported at their first use, since the model itself brings torch with it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foveal.models.phi3_vision.config import Phi3VisionConfig
    from foveal.models.phi3_vision.model import Phi3VisionForConditionalGeneration
    from foveal.models.phi3_vision.processor import Phi3VisionImageProcessor, Phi3VisionProcessor

__all__ = [
    "Phi3VisionConfig",
    "Phi3VisionForConditionalGeneration",
    "Phi3VisionImageProcessor",
    "Phi3VisionProcessor",
]

HOMES = {
    "Phi3VisionConfig": "config",
    "Phi3VisionForConditionalGeneration": "model",
    "Phi3VisionImageProcessor": "processor",
    "Phi3VisionProcessor": "processor",
}


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
