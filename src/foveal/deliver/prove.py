"""A written folder, loaded again from disk, beside the run's own model: are they the same?"""

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foveal.adapt.adapters import add_adapters, merge_adapters
from foveal.deliver.evidence import (
    EvidenceExamples,
    answer_logits,
    greedy_answers,
    measure_scores,
)
from foveal.deliver.export_source import RunSource
from foveal.deliver.merge import through_four_bits
from foveal.deliver.open import put_adapter
from foveal.deliver.proof import Proof, check_scores, note_scores
from foveal.deliver.tensors import StoredTensor
from foveal.deliver.weight_only import WeightOnly
from foveal.errors import ModelError
from foveal.evaluate.prediction import Scores
from foveal.machine import DTYPES, Precision, pick_device
from foveal.models.family import LoadedModel, load

SAME = {"float32": 1e-4, "bf16": 1e-3, "fp16": 1e-3}
"""Most that logits may differ from the run's own weights in the same number format, as a share of
the largest logit: the two are merged and summed in other orders, no more."""

ROUNDED = {"float32": 1e-4, "bf16": 5e-2, "fp16": 1e-2}
"""Most that the number format may move logits, as a share of the largest: the weights keep 24, 8
or 11 bits, and errors of a few dozen layers add up."""


@dataclass(frozen=True)
class _Seen:
    """What one model gave."""

    logits: list[Tensor]
    answers: list[str]

    @property
    def is_finite(self) -> bool:
        return all(bool(one.isfinite().all()) for one in self.logits)

    def apart(self, logits: Sequence[Tensor]) -> float:
        pairs = zip(self.logits, logits, strict=True)
        return float(torch.stack([(one - other).abs().max() for one, other in pairs]).max())

    def equal_answers(self, other: "_Seen") -> int:
        return sum(a == b for a, b in zip(self.answers, other.answers, strict=True))


def prove(
    source: RunSource,
    folder: Path,
    dtype: Precision,
    examples: EvidenceExamples,
    *,
    merged: bool,
    bits: WeightOnly | None = None,
    tell: Callable[[str], None],
) -> Proof:
    """Load a written folder and compare it with the run's own model, one after the other.

    Args:
        source: of the folder.
        folder: as written.
        dtype: of its weights.
        examples: to compare on.
        merged: whether adapters were folded in.
        bits: how layers are held in fewer bits.
        tell: called with what is being done.
    """
    device = roomy_device(source, tell)
    exact, rounded, wanted = _look_at_run(
        source, DTYPES[dtype], examples, device, merged, bits, tell
    )
    four_bit_difference = None
    if merged and source.four_bit_layers:
        tell("Asking the run's own model on its 4-bit base")
        four_bit_difference = exact.apart(_four_bit_logits(source, examples, device))
    tell("Loading the written folder and asking it")
    written = load_written(source, folder, merged)
    written.model.to(device)
    seen = _look(written, examples, source)
    asks = wanted and seen.is_finite
    found = measure_scores(written, examples, source.recipe.evaluate) if asks else {}
    del written
    _let_go()
    largest = float(torch.stack([one.abs().max() for one in exact.logits]).max())
    return Proof(
        dtype=dtype,
        data=examples.file.name,
        examples=[examples.examples[place].id for place in examples.compared],
        largest_logit=largest,
        difference=seen.apart(rounded.logits),
        difference_limit=SAME[dtype] * largest,
        rounding_difference=seen.apart(exact.logits),
        rounding_limit=None if bits else ROUNDED[dtype] * largest,
        weights=bits.kind if bits else None,
        equal_answers=seen.equal_answers(rounded),
        answers=len(seen.answers),
        answers_changed_by_rounding=len(seen.answers) - rounded.equal_answers(exact),
        scores=check_scores(found, wanted or {}),
        scores_note=note_scores(found, wanted),
        four_bit_difference=four_bit_difference,
    )


def _look_at_run(
    source: RunSource,
    dtype: torch.dtype,
    examples: EvidenceExamples,
    device: torch.device,
    merged: bool,
    bits: WeightOnly | None,
    tell: Callable[[str], None],
) -> tuple[_Seen, _Seen, Scores | None]:
    """Ask the run's own model with its weights as they are, then rounded; and find its scores."""
    tell("Loading the run's own model and asking it")
    tuned = load_tuned(source)
    tuned.model.to(device)
    if merged:
        merge_adapters(tuned.model)
    exact = _look(tuned, examples, source)
    if bits:
        bits.round_model(tuned.model, dtype)
    else:
        round_weights(tuned.model, dtype, only_adapters=not merged)
    rounded = _look(tuned, examples, source)
    wanted = source.scores if examples.scored else None
    if examples.scored and wanted is None:
        tell("Scoring the run's own model: this step has no recorded evaluation")
        wanted = measure_scores(tuned, examples, source.recipe.evaluate)
    del tuned
    _let_go()
    return exact, rounded, wanted


def roomy_device(source: RunSource, tell: Callable[[str], None]) -> torch.device:
    """Choose the accelerator, or the CPU where the accelerator has no room for float32 weights."""
    device = pick_device()
    weights_bytes = 4 * source.num_weights
    if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] < 1.5 * weights_bytes:
        tell(f"Comparing on the CPU: {device} has no room for {weights_bytes / 1e9:.0f} GB")
        return torch.device("cpu")
    return device


def load_written(source: RunSource, folder: Path, merged: bool) -> LoadedModel:
    """Load a written folder as its users will: alone, or on its base through peft."""
    if merged:
        return load(str(folder), None)
    base = load(str(source.base), source.recipe.data.image_budget)
    put_adapter(base.model, folder)
    return base


def _look(loaded: LoadedModel, examples: EvidenceExamples, source: RunSource) -> _Seen:
    seen = _Seen(answer_logits(loaded, examples), [""] * len(examples.compared))
    if not seen.is_finite:  # no model can be asked then, and the logits alone fail the proof
        return seen
    return replace(seen, answers=greedy_answers(loaded, examples, source.recipe.evaluate))


def _four_bit_logits(
    source: RunSource, examples: EvidenceExamples, device: torch.device
) -> list[Tensor]:
    tuned = load_tuned(source)
    quantize_layers(tuned.model, source.four_bit_layers, source.recipe.quantization.double)
    tuned.model.to(device)
    logits = answer_logits(tuned, examples)
    del tuned
    _let_go()
    return logits


def _let_go() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def load_tuned(source: RunSource) -> LoadedModel:
    """Load a run's base and put what the run learnt in place, adapters beside their layers.

    Raises:
        ModelError: they do not belong together.
    """
    loaded = load(str(source.base), source.recipe.data.image_budget)
    if source.adapters:
        add_adapters(loaded.model, source.adapter_sizes, source.recipe.lora)
    put_weights(loaded.model, source.learnt)
    loaded.model.requires_grad_(False).eval()
    return loaded


@torch.no_grad()
def put_weights(model: nn.Module, stored: Mapping[str, StoredTensor]) -> None:
    """Put the weights of a checkpoint in place, one at a time.

    Raises:
        ModelError: the model has no weight of a name, or one of another shape.
    """
    weights = model.state_dict()
    for name, one in stored.items():
        if name not in weights or weights[name].shape != one.shape:
            raise ModelError(f"{one.file}: the base model has no weight {name} of {one.shape}")
        weights[name].copy_(one.read())


@torch.no_grad()
def round_weights(model: nn.Module, dtype: torch.dtype, only_adapters: bool = False) -> None:
    """Round weights as a file in `dtype` would; they stay float32 to compute with."""
    for name, weight in model.named_parameters():
        if not only_adapters or ".lora_" in name:
            weight.copy_(weight.to(dtype).to(weight.dtype))


@torch.no_grad()
def quantize_layers(model: nn.Module, layers: Sequence[str], double: bool) -> None:
    """Put the weights of some linear layers through 4 bits; adapters beside them stay."""
    for name in layers:
        layer: Any = model.get_submodule(name)
        plain = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer
        plain.weight.copy_(through_four_bits(plain.weight, double))
