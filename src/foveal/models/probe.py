"""A loaded model -> whether rows of ours are what its own code makes of separate samples.

Asked of families that no test of ours holds; those that are held are audited at a run's first step.
"""

import numpy as np
import torch
from PIL import Image

from foveal.data.forward_inputs import ForwardInputs, GroupSpan
from foveal.data.shapes import expand_entries
from foveal.data.turn_processor import AskedTurn
from foveal.models.family import LoadedModel
from foveal.models.forward import hidden_states

PROBE_SIZE = (160, 96)
QUESTIONS = ("What is in the upper left corner?", "How many of them?", "Which one is larger?")
TOLERANCE = 1e-3
"""Largest difference, in units of the largest number, in float32; a wrong mask shows as 0.1 and
more."""


@torch.no_grad()
def rows_are_exact(loaded: LoadedModel) -> bool:
    """Read an image of noise with three questions behind it, as one row and one by one."""
    model, processor, family = loaded.model, loaded.processor, loaded.family
    noise = np.random.default_rng(0).integers(0, 256, (*PROBE_SIZE[::-1], 3), np.uint8)
    image = Image.fromarray(noise)
    shape = processor.shape(*image.size)
    pixels = processor.stack([processor.pixels(image)], [shape])
    moved = {name: one.to(model.device) for name, one in pixels.items()}
    samples = []
    for question in QUESTIONS:
        entries = processor.encode_turns([AskedTurn(question, 1, None)]).entries
        ids, _ = expand_entries(np.asarray(entries, np.int32), [shape])
        samples.append((ids, processor.positions(ids, [shape])))
    prefix = next(
        at
        for at, some in enumerate(zip(*(ids for ids, _ in samples), strict=False))
        if len(set(some)) > 1
    )

    def run(ids: np.ndarray, positions: np.ndarray, cuts: list[int], plainly: bool) -> torch.Tensor:
        inputs = ForwardInputs(
            torch.from_numpy(ids)[None].to(model.device),
            torch.from_numpy(positions)[:, None].to(model.device),
            moved,
            (shape.features,),
            (0,),
        )
        group = GroupSpan(0, tuple(cuts), len(ids))
        return hidden_states(model, family, inputs, groups=(group,), plainly=plainly).float()

    row = np.concatenate([samples[0][0][:prefix], *(ids[prefix:] for ids, _ in samples)])
    places = [samples[0][1][:, :prefix], *(where[:, prefix:] for _, where in samples)]
    lengths = [len(ids) - prefix for ids, _ in samples]
    starts = [prefix + sum(lengths[:number]) for number in range(len(samples))]
    ours = run(row, np.concatenate(places, axis=1), starts, False)
    for (ids, where), start, length in zip(samples, starts, lengths, strict=True):
        own = run(ids, where, [], True)
        mine = torch.cat([ours[:prefix], ours[start : start + length]])
        if (own - mine).abs().max() > TOLERANCE * own.abs().max():
            return False
    return True
