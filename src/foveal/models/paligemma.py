"""PaliGemma: all that is asked is read both ways, an answer from left to right."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from foveal.data.turn_processor import AskedTurn, EncodedTurns
from foveal.models.family import Route
from foveal.models.hub.hub_family import HubFamily
from foveal.models.hub.hub_reader import HubReader


class PaliGemmaReader(HubReader):
    """Reads one question and its answer."""

    def encode_turns(self, turns: Sequence[AskedTurn], system: str = "") -> EncodedTurns:
        """Encode a question, with its answer where it has one.

        Raises:
            ValueError: there are several: what is asked later would be read as an answer is.
        """
        if len(turns) > 1:
            raise ValueError(
                "this model reads all that is asked at once, before it answers; give each turn a "
                "line of its own"
            )
        return super().encode_turns(turns, system)


class PaliGemmaFamily(HubFamily):
    """An image attends to the question behind it, so that no two questions can share one."""

    reader = PaliGemmaReader
    route: Route = "plain"

    def token_types(self, model: Any, ids: Tensor, answer_start: int | None) -> Tensor:
        """Tell what is asked, 0, from the answer, 1, in which no token sees a later one."""
        places = torch.arange(ids.shape[1], device=ids.device)
        start = ids.shape[1] if answer_start is None else answer_start
        return (places >= start).long()[None]
