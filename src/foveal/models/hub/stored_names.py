"""Weights in a model's files <-> the model's own, as transformers reads and writes them."""

from collections.abc import Mapping
from copy import deepcopy
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


class Regrouped:
    """Some weights of a model's files, and those that the model makes of them.

    A mixture puts the matrices of its experts into one; a tower splits what is stored as one.

    Args:
        stored: name in the files -> shape.
        target: what the converter calls what it makes.
        patterns: name in the files -> which of the converter's patterns it meets.
        converter: of transformers, from files to model.
        skeleton: the model without weights.
    """

    def __init__(
        self,
        stored: Mapping[str, tuple[int, ...]],
        target: str,
        patterns: Mapping[str, str],
        converter: Any,
        skeleton: Any,
    ) -> None:
        self.stored = tuple(stored)
        self._target, self._patterns = target, patterns
        self._converter, self._skeleton = converter, skeleton
        blank = {name: torch.empty(shape, device="meta") for name, shape in stored.items()}
        self.shapes = {name: tuple(one.shape) for name, one in self.own(blank).items()}
        """Of the model's own, by name."""

    def own(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Make the model's own weights of stored ones, as transformers loads them."""
        converter = deepcopy(self._converter)
        for name in self.stored:
            converter.add_tensor(self._target, name, self._patterns[name], tensors[name])
        skeleton = self._skeleton
        made = converter.convert(self._target, model=skeleton, config=skeleton.config)
        return {name: one[0] if isinstance(one, list) else one for name, one in made.items()}

    def written(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Make weights for a file of the model's own, as transformers saves them."""
        from transformers.core_model_loading import revert_weight_conversion

        made: dict[str, Tensor] = revert_weight_conversion(self._skeleton, dict(own))
        return made


class StoredNames:
    """What transformers makes of the weights in a folder, which it writes back the same way.

    Args:
        skeleton: the model without weights.
    """

    def __init__(self, skeleton: Any) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        self._found = get_model_conversion_mapping(skeleton)
        self._renamings = [one for one in self._found if isinstance(one, WeightRenaming)]
        self._converters = [one for one in self._found if isinstance(one, WeightConverter)]
        self._skeleton = skeleton

    @cached_property
    def _own(self) -> dict[str, Tensor]:
        own: dict[str, Tensor] = self._skeleton.state_dict()
        return own

    def own(self, stored: str) -> str | None:
        """Turn a name in a file into the model's own; of weights that are tied, the one they share.

        None: what the model makes of it is no single weight of its own; see `regrouped`.
        """
        renamed, pattern = self._rename(stored)
        if pattern is not None:
            return None
        return str(self._skeleton.all_tied_weights_keys.get(renamed, renamed))

    def regrouped(self, stored: Mapping[str, tuple[int, ...]]) -> list[Regrouped]:
        """Find which of all weights in a folder become others, and together with which.

        Args:
            stored: name -> shape.
        """
        from transformers.core_model_loading import dot_natural_key

        met: dict[str, dict[str, str]] = {}
        for name in sorted(stored, key=dot_natural_key):
            target, pattern = self._rename(name)
            if pattern is not None:
                met.setdefault(target, {})[name] = pattern
        # As after loading: what met no name is not reversed when weights are written.
        self._skeleton._weight_conversions = [one for one in self._found if one.was_used()]
        converters = {one: maker for maker in self._converters for one in maker.source_patterns}
        return [
            Regrouped(
                {name: stored[name] for name in patterns},
                target,
                patterns,
                converters[next(iter(patterns.values()))],
                self._skeleton,
            )
            for target, patterns in met.items()
        ]

    def _rename(self, stored: str) -> tuple[str, str | None]:
        from transformers.core_model_loading import rename_source_key

        renamed: tuple[str, str | None] = rename_source_key(
            stored,
            self._renamings,
            self._converters,
            self._skeleton.base_model_prefix,
            self._own,
        )
        return renamed
