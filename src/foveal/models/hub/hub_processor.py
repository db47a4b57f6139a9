"""A model folder -> its own processor; without torchvision, all of it but what reads clips."""

import inspect
from functools import lru_cache
from typing import Any


def load_hub_processor(name: str) -> Any:
    """Load a model's processor; without torchvision, that of a family with clips as well."""
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer
    from transformers.utils import is_torchvision_available

    if is_torchvision_available():
        return AutoProcessor.from_pretrained(name)
    try:
        return AutoProcessor.from_pretrained(name)
    except (ImportError, ValueError, RecursionError):  # the last: a clip reader that seeks itself
        found = _processor_class(name)
        if not _needed(found):
            raise
        # Its clips need torchvision, and so all of it is refused: taken apart, images do not.
        settings, _ = found.get_processor_dict(name)
        known = set(inspect.signature(found.__init__).parameters) - {"self", "kwargs"}
        own = {key: one for key, one in settings.items() if key in known - set(_needed(found))}
        own["image_processor"] = AutoImageProcessor.from_pretrained(name, backend="pil")
        own["tokenizer"] = AutoTokenizer.from_pretrained(name)
        return _without_clips(found)(**dict.fromkeys(_needed(found)), **own)


def _needed(processor_class: Any) -> list[str]:
    """Name what a processor must be given: beside words and images, what reads clips and sounds."""
    parameters = inspect.signature(processor_class.__init__).parameters
    return [
        name
        for name in parameters
        if name.endswith(("video_processor", "feature_extractor", "audio_processor"))
    ]


@lru_cache
def _without_clips(processor_class: Any) -> Any:
    def check(self: Any, argument_name: str, argument: Any) -> Any:
        if argument is None:
            return None
        return processor_class.check_argument_for_proper_class(self, argument_name, argument)

    body = {"check_argument_for_proper_class": check, "__module__": processor_class.__module__}
    return type(processor_class.__name__, (processor_class,), body)


def _processor_class(name: str) -> Any:
    import transformers
    from transformers import AutoConfig, ProcessorMixin
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    stated = ProcessorMixin.get_processor_dict(name)[0].get("processor_class")
    model_type = AutoConfig.from_pretrained(name).model_type
    return getattr(transformers, stated or PROCESSOR_MAPPING_NAMES.get(model_type, ""))
