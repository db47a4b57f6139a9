"""A model folder -> its own processor; without torchvision, all of it but what reads clips."""

import inspect
from typing import Any


def load_hub_processor(name: str) -> Any:
    """Load a model's processor; without torchvision, that of a family with clips as well."""
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer
    from transformers.utils import is_torchvision_available

    try:
        return AutoProcessor.from_pretrained(name)
    except (ImportError, ValueError, RecursionError):  # the last: a clip reader that seeks itself
        if is_torchvision_available():
            raise
        found = _processor_class(name)
        missing = _needed(found)
        if not missing:
            raise
        # Its clips need torchvision, and so all of it is refused: taken apart, images do not.
        settings, _ = found.get_processor_dict(name)
        known = set(inspect.signature(found.__init__).parameters) - {"self", "kwargs", *missing}
        own = {key: one for key, one in settings.items() if key in known}
        own["image_processor"] = AutoImageProcessor.from_pretrained(name, backend="pil")
        own["tokenizer"] = AutoTokenizer.from_pretrained(name)
        return _make_without(found, missing, own)


def _needed(processor_class: Any) -> list[str]:
    """Name what a processor must be given: beside words and images, what reads clips and sounds."""
    parameters = inspect.signature(processor_class.__init__).parameters
    return [
        name
        for name in parameters
        if name.endswith(("video_processor", "feature_extractor", "audio_processor"))
    ]


def _make_without(processor_class: Any, missing: list[str], own: dict[str, Any]) -> Any:
    class Lenient(processor_class):  # type: ignore[misc]
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument is None:
                return None
            return super().check_argument_for_proper_class(argument_name, argument)

    made = Lenient(**dict.fromkeys(missing), **own)
    made.__class__ = processor_class  # which processes beside this one find by its name
    return made


def _processor_class(name: str) -> Any:
    import transformers
    from transformers import AutoConfig, ProcessorMixin
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    stated = ProcessorMixin.get_processor_dict(name)[0].get("processor_class")
    model_type = AutoConfig.from_pretrained(name).model_type
    return getattr(transformers, stated or PROCESSOR_MAPPING_NAMES.get(model_type, ""))
