"""Our classes -> transformers' registries, without importing either before it is needed.

Importing transformers and torch takes seconds, and `import foveal` must not: the command line
answers `--help` in a fraction of one. So a registry gets a stand-in when transformers imports it,
and the stand-in fetches the real classes when somebody first asks it for anything.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MODEL_TYPE = "phi3_v"
MODEL_CLASS = "Phi3VisionForConditionalGeneration"
Entry = Callable[[ModuleType], None]


class StandIn:
    """Looks like a class of ours; its first use imports the class and registers all of them."""

    def __init__(self, home: str, name: str) -> None:
        self._home = home
        self.__name__ = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._real(), attribute)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Make one of the real class."""
        return self._real()(*arguments, **options)

    def _real(self) -> Any:
        register_now()
        return getattr(importlib.import_module(self._home), self.__name__)


CONFIG = StandIn("foveal.models.phi3_vision.config", "Phi3VisionConfig")
PROCESSOR = StandIn("foveal.models.phi3_vision.processor", "Phi3VProcessor")


def register_now() -> None:
    """Enter the real classes; imports transformers and torch."""
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    from foveal.models.phi3_vision.config import Phi3VisionConfig
    from foveal.models.phi3_vision.model import Phi3VisionForConditionalGeneration
    from foveal.models.phi3_vision.processor import Phi3VisionProcessor

    AutoConfig.register(MODEL_TYPE, Phi3VisionConfig, exist_ok=True)
    AutoModelForImageTextToText.register(
        Phi3VisionConfig, Phi3VisionForConditionalGeneration, exist_ok=True
    )
    AutoProcessor.register(Phi3VisionConfig, Phi3VisionProcessor, exist_ok=True)


def register_with_transformers() -> None:
    """Enter stand-ins in the registries that are imported, and in the others once they are."""
    entries: dict[str, Entry] = {
        "transformers.models.auto.configuration_auto": _stand_in_for_config,
        "transformers.models.auto.processing_auto": _stand_in_for_processor,
        "transformers.models.auto.modeling_auto": _name_causal_model,
    }
    for registry in [name for name in entries if name in sys.modules]:
        entries.pop(registry)(sys.modules[registry])
    if entries:
        sys.meta_path.insert(0, RegistryFinder(entries))


def _stand_in_for_config(registry: ModuleType) -> None:
    registry.CONFIG_MAPPING.register(MODEL_TYPE, CONFIG, exist_ok=True)


def _stand_in_for_processor(registry: ModuleType) -> None:
    registry.PROCESSOR_MAPPING.register(CONFIG, PROCESSOR, exist_ok=True)


def _name_causal_model(registry: ModuleType) -> None:
    """Name our class where transformers' Trainer looks for those whose labels it must shift.

    It computes the loss itself where labels are smoothed, and takes a class that it does not know
    for one whose logits stand under their own labels.
    """
    registry.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[MODEL_TYPE] = MODEL_CLASS


class RegistryFinder:
    """Notices the import of a registry; every other import passes by."""

    def __init__(self, waiting: dict[str, Entry]) -> None:
        self.waiting = waiting

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Take the registry's own specification, with an entry to make after its import."""
        entry = self.waiting.pop(fullname, None)
        if entry is None:
            return None
        spec = importlib.util.find_spec(fullname)  # this finder no longer waits for it
        loader: Any = spec and spec.loader
        if loader:
            execute = loader.exec_module

            def execute_and_enter(module: ModuleType) -> None:
                execute(module)
                entry(module)

            loader.exec_module = execute_and_enter
        return spec
