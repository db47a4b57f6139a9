"""Published checkpoint <-> our model: the same names both ways, nothing passed over in silence."""

from pathlib import Path
from typing import Any, Self

from transformers import GenerationConfig

from foveal.errors import ModelError
from foveal.models.phi3_vision.config import Phi3VisionConfig

SHARED_EMBEDDING = {
    r"^model\.vision_embed_tokens\.wte\.weight$": "model.embed_tokens.weight",
}
"""Files saved by the published code may hold the token embedding under its second name."""

NEVER_EMITTED = 2
"""`eos_token_id` of the published config, which the model never emits."""

ENDOFTEXT, END_OF_TURN = 32000, 32007


class StrictWeights:
    """Makes `from_pretrained` name every weight that is missing, unexpected or of another shape."""

    @classmethod
    def from_pretrained(cls, name: str | Path, *args: Any, **kwargs: Any) -> Self:
        """Load a model folder or hub name.

        Raises:
            ModelError: a weight is missing, unexpected, or has a wrong shape.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs.setdefault("key_mapping", SHARED_EMBEDDING)
        model, info = super().from_pretrained(  # type: ignore[misc]
            name, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
        problems = [f"missing weight {key}" for key in sorted(info["missing_keys"])]
        problems += [f"unexpected weight {key}" for key in sorted(info["unexpected_keys"])]
        problems += [
            f"weight {key} has shape {tuple(stored)} where the config asks for {tuple(wanted)}"
            for key, stored, wanted in sorted(info["mismatched_keys"])
        ]
        if problems:
            more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
            raise ModelError(f"{name}: {'; '.join(problems[:3])}{more}")
        # transformers would write each weight under the name that it was read from.
        model._weight_conversions = []
        if model.can_generate():
            generation = model.generation_config
            generation.eos_token_id = end_of_answer_ids(generation, model.config)
        return (model, info) if wants_info else model  # type: ignore[return-value]


def end_of_answer_ids(generation: GenerationConfig, config: Phi3VisionConfig) -> Any:
    """Choose the tokens at which an answer ends."""
    stated = generation.eos_token_id
    if stated in (NEVER_EMITTED, [NEVER_EMITTED]) and config.vocab_size > END_OF_TURN:
        return [ENDOFTEXT, END_OF_TURN]
    return stated
