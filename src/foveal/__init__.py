"""Fine-tunes vision-language models, Phi-3.5-vision first.

After `import foveal`, transformers' `AutoConfig`, `AutoModelForImageTextToText` and `AutoProcessor`
open a published Phi-3(.5)-vision folder without remote code, and `foveal.load` opens a run or a
model to ask it questions.
"""

from typing import TYPE_CHECKING

from foveal.models.hub.registration import register_with_transformers

if TYPE_CHECKING:
    from pathlib import Path

    from foveal.deliver.answerer import Answerer

__all__ = ["__version__", "load"]

__version__ = "0.1.0"

register_with_transformers()


def load(model: "str | Path", *, tokens_at_once: int = 65536) -> "Answerer":
    """Open a model to ask it questions.

        model = foveal.load("runs/mine")
        model.answer("page.png", "What is the total?")

    Args:
        model: run folder, model folder or hub name.
        tokens_at_once: of all questions that are worked on together, images counted in; lower
            it when memory runs out.

    Raises:
        foveal.errors.ModelError: it cannot be read.
    """
    from foveal.deliver.answerer import load_answerer  # imports torch

    return load_answerer(model, tokens_at_once=tokens_at_once)
