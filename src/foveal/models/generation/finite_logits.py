"""What a pass made -> which of it is no number, and the error that says so."""

from collections.abc import Sequence

import torch
from torch import Tensor

from foveal.errors import ModelError
from foveal.models.family import LoadedModel
from foveal.models.finite import explain_not_finite
from foveal.models.generation.passes import Growing, logits_behind, run_pass
from foveal.models.generation.prompt import Stretch
from foveal.models.generation.tree import Tree


class NotFiniteError(ModelError):
    """A model's numbers are not finite: nothing can be said of the answer."""

    def __init__(self, message: str, place: int = 0) -> None:
        super().__init__(message)
        self.place = place
        """Which of the questions asked for together it was."""


def are_finite(pieces: Sequence[Tensor]) -> list[bool]:
    """Tell of each (tokens, width) whether all of it is finite; waits for the device once."""
    rows = torch.cat(list(pieces)).isfinite().all(-1).cpu()
    return [bool(one.all()) for one in rows.split([len(piece) for piece in pieces])]


def not_finite(
    loaded: LoadedModel, whole: Stretch, is_long: bool, place: int = 0
) -> NotFiniteError:
    """Say where a prompt's numbers stop being finite, by running it alone once more.

    Args:
        loaded: model, in evaluation mode, and processor.
        whole: the prompt, and what is written behind it.
        is_long: whether it is rotated as a long example.
        place: of the question among those asked together.
    """
    tree = Tree(None, is_long)
    part = Growing(tree, tree.add_node(None), whole)
    reason = explain_not_finite(
        loaded, lambda: logits_behind(loaded, run_pass(loaded, [part])[0][-1:])
    )
    return NotFiniteError(reason, place)
