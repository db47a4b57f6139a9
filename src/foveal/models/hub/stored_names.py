"""Names of weights as a model's files have them -> the model's own, as transformers reads them."""

from typing import Any

from foveal.errors import ModelError


class PutTogetherError(ModelError):
    """What a file holds under one name is a piece of a model's weight, or it in another form."""


class StoredNames:
    """What transformers makes of the names in a folder, which it writes back the same way.

    Args:
        name: of the model, for errors.
        skeleton: the model without weights.
    """

    def __init__(self, name: str, skeleton: Any) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        found = get_model_conversion_mapping(skeleton)
        self._name = name
        self._renamings = [one for one in found if isinstance(one, WeightRenaming)]
        self._converters = [one for one in found if isinstance(one, WeightConverter)]
        self._prefix = skeleton.base_model_prefix
        self._own = skeleton.state_dict()
        self._tied = dict(skeleton.all_tied_weights_keys)

    def own(self, stored: str) -> str:
        """Turn a name in a file into the model's own; of weights that are tied, the one they share.

        Raises:
            PutTogetherError: what the model makes of it is no single weight of its own.
        """
        from transformers.core_model_loading import rename_source_key

        renamed, converted = rename_source_key(
            stored, self._renamings, self._converters, self._prefix, self._own
        )
        if converted is not None:
            raise PutTogetherError(
                f"model {self._name}: transformers puts {stored} together with others as "
                f"{renamed}, which cannot be written back"
            )
        return str(self._tied.get(renamed, renamed))
